"""Conversations that need images but no words about them: decompression, and drawing without a caption."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unicode.annotations.build import Made, build
from unicode.annotations.conversation import NO_IMAGE, NOT_CHOSEN, REPEATED, RefusedError, make_record, parse_record
from unicode.annotations.image_ids import ImageIds
from unicode.annotations.prompts import DECOMPRESSION, UNCONDITIONAL, draw_share, fill
from unicode.annotations.report import Report
from unicode.annotations.sources import Item, find_source, output_name, output_path, read_sources
from unicode.ids.text import write_run


def get_decompression_anno(
    root: str | Path, images: ImageIds, out: str | Path, *, seed: int = 0, anno: str | Path = "", share: float = 1.0, dry_run: bool = False
) -> Report:
    """Image decompression, the paper's in-context pre-training task: a compressed image is given, all of its ids are the answer.

    The question holds the run of ids, and the record the field "input_mode": "sum": a reader puts one embedding per coarse cell in
    its place, the sum of the rows of the cell's ids (Layout.cell_length of them stand side by side). The answer is the same run,
    to be written out. Writes <name>_decompression.json, shuffled, one record for each different image.

    Args:
        root: folder of the annotation file.
        images: the ids.
        out: a folder, or the path of the .json file.
        seed: of templates, order, and the choice of images where `share` is below 1.
        anno: take the images of this annotation file (FILE or FILE@FOLDER); without it every image of the stores.
        share: share of the images, above 0 and up to 1.
        dry_run: convert the first records and write nothing.

    Raises:
        FileNotFoundError: no such annotation file.
        ValueError: a damaged annotation file, a bad argument, or nothing left to write.
    """

    def make(key: str, ids: np.ndarray) -> dict[str, Any]:
        run = write_run(ids)
        return make_record(key, DECOMPRESSION, [fill(DECOMPRESSION, seed, key, ids=run), run], input_mode="sum", **images.fields)

    report = Report("get_decompression_anno", seed)
    return _build_wordless(report, make, root, images, out, anno=anno, share=share, kind="decompression", dry_run=dry_run)


def get_uncond_anno(
    root: str | Path, images: ImageIds, out: str | Path, *, seed: int = 0, anno: str | Path = "", share: float = 0.1, dry_run: bool = False
) -> Report:
    """A share of the images, asked for without a caption: what classifier-free guidance has to know about.

    Writes <name>_uncond.json, shuffled, to be mixed with a text-to-image file by concat_uni_anno.

    Args:
        root: folder of the annotation file.
        images: the ids.
        out: a folder, or the path of the .json file.
        seed: of the choice of images, of templates and order.
        anno: take the images of this annotation file (FILE or FILE@FOLDER); without it every image of the stores.
        share: share of the images, above 0 and up to 1.
        dry_run: convert the first records and write nothing.

    Raises:
        FileNotFoundError: no such annotation file.
        ValueError: a damaged annotation file, a bad argument, or nothing left to write.
    """

    def make(key: str, ids: np.ndarray) -> dict[str, Any]:
        return make_record(key, UNCONDITIONAL, [fill(UNCONDITIONAL, seed, key), write_run(ids)], **images.fields)

    report = Report("get_uncond_anno", seed)
    return _build_wordless(report, make, root, images, out, anno=anno, share=share, kind="uncond", dry_run=dry_run)


def _build_wordless(
    report: Report,
    make: Callable[[str, np.ndarray], dict[str, Any]],
    root: str | Path,
    images: ImageIds,
    out: str | Path,
    *,
    anno: str | Path,
    share: float,
    kind: str,
    dry_run: bool,
) -> Report:
    """One record by `make` for each different image of the annotation file, or of the stores, that `share` lets through."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    source = find_source(root, anno) if anno else None
    taken: set[str] = set()

    def convert(thing: Any, _: str) -> Made:
        if source is None:
            keys: tuple[str, ...] = (thing,)
        else:
            conversation = parse_record(thing)
            if not conversation.images:
                raise RefusedError(NO_IMAGE, "a text-only record")
            keys = tuple(map(source.key, conversation.images))
        new = [key for key in dict.fromkeys(keys) if key not in taken]
        if not new:
            raise RefusedError(REPEATED, f"'{keys[0]}'")
        chosen = [key for key in new if draw_share(report.seed, kind, key) < share]
        if not chosen:
            raise RefusedError(NOT_CHOSEN, f"share {share:g}")
        made = [(0, make(key, images.get(key))) for key in chosen]
        if source is not None:  # the stores name each image once by themselves
            taken.update(chosen)
        return made

    items = read_sources([source]) if source else _store_items(images)
    report.inputs = [str(source.path)] if source else [str(store.path) for store in images.stores]
    main = output_path(out, output_name(source, kind), [source] if source else [])
    return build(report, items, convert, {main: (0,)}, images=images, dry_run=dry_run)


def _store_items(images: ImageIds) -> Iterator[Item]:
    for index, (store, key) in enumerate(images.keys()):
        yield store, index, key
