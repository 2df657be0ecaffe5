"""The way of every annotation function: records stream in, are converted or refused, are shuffled on disk and stream out."""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from unicode.annotations.conversation import NOT_TEXT, RefusedError
from unicode.annotations.image_ids import ImageIds
from unicode.annotations.report import Report
from unicode.annotations.shuffle import LineSpool, open_spool
from unicode.annotations.sources import Item

Made = list[tuple[int, dict[str, Any]]]
"""(group, record) of each record that was made from one thing."""
Convert = Callable[[Any, str], Made]
"""(thing, where it comes from) -> what is made of it; raises RefusedError to leave it out."""

DRY_RUN_RECORDS = 100


def build(
    report: Report,
    items: Iterable[Item],
    convert: Convert,
    outputs: Mapping[Path, Collection[int]],
    *,
    images: ImageIds | None = None,
    dry_run: bool = False,
) -> Report:
    """Convert all items and write each file of `outputs` with the records of its groups; the first is the main one.

    The report lies beside the main file. With `dry_run` the first items are converted and nothing is written.

    Raises:
        ValueError: not one record was left for the main file; the message says why.
        OSError: the disk is full; older files of those names stay as they were.
    """
    main = next(iter(outputs))
    if images is not None:
        stores = [str(store.path) for store in images.stores]
        report.ids = {"layout": images.layout.to_dict(), "tokenizer": images.tokenizer, "stores": stores}
    if dry_run:
        made = sum(len(_convert(report, convert, item)) for item in islice(items, DRY_RUN_RECORDS))
        _check_made(report, made)
        report.note(f"dry run: the first {report.read} records were read, {made} made of them; {', '.join(map(str, outputs))} not written")
        return report
    with open_spool(main.parent, seed=report.seed) as spool:
        for item in items:
            for copy, (group, record) in enumerate(_convert(report, convert, item)):
                _keep(report, spool, item, record, group=group, copy=copy)
        _check_made(report, len(spool))
        report.outputs = {str(path): count for path, count in spool.write(outputs).items()}
    report.finish(main.with_name(f"{main.stem}.report.json"))
    return report


def _convert(report: Report, convert: Convert, item: Item) -> Made:
    source, index, thing = item
    report.count_read()
    try:
        return convert(thing, source)
    except RefusedError as refused:
        report.drop(refused, source=source, index=index, name=thing.get("id") if isinstance(thing, dict) else thing)
        return []


def _keep(report: Report, spool: LineSpool, item: Item, record: dict[str, Any], *, group: int, copy: int) -> None:
    source, index, _ = item
    try:
        spool.add(record, group=group, copy=copy)
    except UnicodeEncodeError as error:
        report.drop(RefusedError(NOT_TEXT, f"half a surrogate pair: {error.reason}"), source=source, index=index, name=record.get("id"))


def _check_made(report: Report, made: int) -> None:
    if not made:
        examples = "; ".join(str(dropped.examples[0]["detail"]) for dropped in report.dropped.values())
        raise ValueError(f"{report.func}: of {report.read} records none is left to write ({report.reasons()}). {examples}".rstrip())
