"""Annotations whose answers are images: text to image, decompression, unconditional."""

from pathlib import Path
from typing import Any

from unicode.annotations.build import LAION, ImageIds, Made, Report, build, find_source, output_path
from unicode.annotations.records import NO_IMAGE, NOT_CHOSEN, REPEATED, RefusedError, make_record, read_record
from unicode.annotations.templates import (
    DECOMPRESSION,
    FIRST_ROW,
    NEXT_ROW,
    TEXT_TO_IMAGE,
    UNCONDITIONAL,
    draw,
    draw_share,
    fill,
    fill_caption,
)
from unicode.ids.text import write_run

WHOLE, PART = 0, 1


def get_t2v_anno(
    root: str | Path,
    images: ImageIds,
    out: str | Path,
    *,
    seed: int = 0,
    anno: str | Path = f"{LAION}.json",
    parts: int = 1,
    request: str = "",
    dry_run: bool = False,
) -> Report:
    """Captioned images -> text-to-image conversations: the whole image, and parts of it row by row.

    Whole: a caption is given, the answer is all ids of the image. Part: caption and the rows so far are given, the answer is the next row
    of coarse cells; each row is as likely as any other, the first (from nothing) and the last included. Writes three shuffled files,
    <name>_t2v.json (all), <name>_t2v_full.json and <name>_t2v_part.json. Records that are not one image with one answer are left out and
    counted. `parts`: part records per image, each of another row; at most as many as the image has rows.
    `request`: words of every request, with the slot {caption}; "": those of the task's templates, of which the first is that of generation.
    '{caption}' alone suits captions that are requests in many forms already; tune with the same words in model.request.
    """
    source, layout = find_source(root, anno), images.layout
    if request:
        fill_caption(request, "words")  # one without the slot ends here
    if not 0 <= parts <= layout.coarse_rows:
        raise ValueError(f"parts is {parts}; choose 0 to {layout.coarse_rows}, the rows of an image of {layout.describe()}")

    def convert(record: Any, _: str) -> Made:
        conversation = read_record(record, form="llava")
        caption, name = conversation.caption, source.key(conversation.keys[0])
        key, ids = f"{conversation.id}\0{name}", images.get(name)
        prompt = fill_caption(request, caption) if request else fill(TEXT_TO_IMAGE, seed, key, caption=caption)
        made = [(WHOLE, make_record(conversation.id, TEXT_TO_IMAGE, [prompt, write_run(ids)], **images.fields))]
        for row in draw_rows(layout.coarse_rows, parts, seed, key):
            before = write_run(ids[: layout.prefix(row)])  # the requests for the first row have no slot for it
            prompt = fill(NEXT_ROW if row else FIRST_ROW, seed, f"{key}\0{row}", caption=caption, ids=before)
            turns = [prompt, write_run(ids[layout.row_slice(row)])]
            made.append((PART, make_record(conversation.id, NEXT_ROW, turns, **images.fields)))
        return made

    main = output_path(out, f"{source.name}_t2v.json", [source])
    outputs = {main: (WHOLE, PART), main.with_stem(f"{main.stem}_full"): (WHOLE,), main.with_stem(f"{main.stem}_part"): (PART,)}
    return build(Report("get_t2v_anno", seed), [source], convert, outputs, images=images, dry_run=dry_run)


def draw_rows(num_rows: int, count: int, seed: int, key: str) -> list[int]:
    """`count` different rows out of `num_rows`, every row equally likely, fixed by seed and key."""
    if count == 1:
        return [draw(num_rows, seed, "row", key)]
    ranks = {row: draw_share(seed, "row", key, str(row)) for row in range(num_rows if count else 0)}
    return sorted(ranks, key=ranks.__getitem__)[:count]


def get_decompression_anno(
    root: str | Path, images: ImageIds, out: str | Path, *, seed: int = 0, anno: str | Path = "", share: float = 1.0, dry_run: bool = False
) -> Report:
    """Image decompression, the paper's in-context pre-training task: a compressed image is given, all of its ids are the answer.

    The question holds the run of ids, and the record the field "input_mode": "sum": a reader puts one embedding per coarse cell in its
    place, the sum of the rows of the cell's ids (Layout.cell_length of them stand side by side). The answer is the same run, to be written
    out. Writes <name>_decompression.json, shuffled, one record for each different image. `anno`: take the images of this annotation file;
    without it every image of the stores. `share`: share of the images, above 0 and up to 1.
    """
    return _build_uncaptioned(DECOMPRESSION, "decompression", root, images, out, seed=seed, anno=anno, share=share, dry_run=dry_run)


def get_uncond_anno(
    root: str | Path, images: ImageIds, out: str | Path, *, seed: int = 0, anno: str | Path = "", share: float = 0.1, dry_run: bool = False
) -> Report:
    """A share of the images without a caption, which classifier-free guidance needs.

    Writes <name>_uncond.json, shuffled, to be mixed with a text-to-image file by concat_uni_anno. `anno`: take the images of this
    annotation file; without it every image of the stores. `share`: share of the images, above 0 and up to 1.
    """
    return _build_uncaptioned(UNCONDITIONAL, "uncond", root, images, out, seed=seed, anno=anno, share=share, dry_run=dry_run)


def _build_uncaptioned(
    task: str, kind: str, root: str | Path, images: ImageIds, out: str | Path, *, seed: int, anno: str | Path, share: float, dry_run: bool
) -> Report:
    """A record of `task` for each different image of the annotation file, or of the stores, that `share` selects."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    source = find_source(root, anno) if anno else None
    fields = {**({"input_mode": "sum"} if task == DECOMPRESSION else {}), **images.fields}
    taken: set[str] = set()

    def convert(thing: Any, _: str) -> Made:
        keys = (thing,) if source is None else tuple(map(source.key, read_record(thing, form="llava").keys))
        if not keys:
            raise RefusedError(NO_IMAGE, "a text-only record")
        new = [key for key in dict.fromkeys(keys) if key not in taken]
        if not new:
            raise RefusedError(REPEATED, f"'{keys[0]}'")
        runs = {key: write_run(images.get(key)) for key in new if draw_share(seed, kind, key) < share}
        if not runs:
            raise RefusedError(NOT_CHOSEN, f"share {share:g}")
        if source is not None:  # the stores name each image once by themselves
            taken.update(runs)
        return [(0, make_record(key, task, [fill(task, seed, key, ids=run), run], **fields)) for key, run in runs.items()]

    report = Report(f"get_{kind}_anno", seed)
    if source is not None:
        main = output_path(out, f"{source.name}_{kind}.json", [source])
        return build(report, [source], convert, main, images=images, dry_run=dry_run)
    report.inputs = [str(store.path) for store in images.stores]
    items = ((store, index, key) for index, (store, key) in enumerate(images.keys()))
    return build(report, items, convert, output_path(out, f"images_{kind}.json", []), images=images, dry_run=dry_run)
