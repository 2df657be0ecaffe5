"""Captions and ids -> "draw this": whole images, and images row by row."""

from pathlib import Path
from typing import Any

from unicode.annotations.build import Made, build
from unicode.annotations.conversation import make_record, parse_record
from unicode.annotations.image_ids import ImageIds
from unicode.annotations.prompts import FIRST_ROW, NEXT_ROW, TEXT_TO_IMAGE, draw, draw_share, fill
from unicode.annotations.report import Report
from unicode.annotations.sources import LAION, find_source, output_name, output_path, read_sources
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
    dry_run: bool = False,
) -> Report:
    """Captioned images -> text-to-image conversations: the whole image, and parts of it row by row.

    Whole: a caption is given, the answer is all ids of the image. Part: caption and the rows so far are given, the answer is the
    next row of coarse cells; each row is as likely as any other, the first (from nothing) and the last included.
    Writes three shuffled files, <name>_t2v.json (all), <name>_t2v_full.json and <name>_t2v_part.json. Records that are not one
    image with one answer are left out and counted.

    Args:
        root: folder of the annotation file.
        images: the ids.
        out: a folder, or the path of the main .json file.
        seed: of templates, rows and order.
        anno: LLaVA's annotation file, relative to `root`; FILE@FOLDER where its image paths start from a folder of the image root.
        parts: part records per image, each of another row; at most as many as the image has rows.
        dry_run: convert the first records and write nothing.

    Raises:
        FileNotFoundError: no such annotation file.
        ValueError: a damaged annotation file, a bad argument, or nothing left to write.
    """
    source, layout = find_source(root, anno), images.layout
    if not 0 <= parts <= layout.coarse_rows:
        raise ValueError(f"parts is {parts}; choose 0 to {layout.coarse_rows}, the rows of an image of {layout.describe()}")

    def convert(record: Any, _: str) -> Made:
        conversation = parse_record(record)
        caption, name = conversation.caption, source.key(conversation.images[0])
        key, ids = f"{conversation.id}\0{name}", images.get(name)
        prompt = fill(TEXT_TO_IMAGE, seed, key, caption=caption)
        made = [(WHOLE, make_record(conversation.id, TEXT_TO_IMAGE, [prompt, write_run(ids)], **images.fields))]
        for row in draw_rows(layout.coarse_rows, parts, seed, key):
            slots = {"caption": caption, "ids": write_run(ids[: layout.prefix(row)])} if row else {"caption": caption}
            prompt = fill(NEXT_ROW if row else FIRST_ROW, seed, f"{key}\0{row}", **slots)
            turns = [prompt, write_run(ids[layout.row_slice(row)])]
            made.append((PART, make_record(conversation.id, NEXT_ROW, turns, **images.fields)))
        return made

    main = output_path(out, output_name(source, "t2v"), [source])
    outputs = {main: (WHOLE, PART), main.with_stem(f"{main.stem}_full"): (WHOLE,), main.with_stem(f"{main.stem}_part"): (PART,)}
    report = Report("get_t2v_anno", seed, inputs=[str(source.path)])
    return build(report, read_sources([source]), convert, outputs, images=images, dry_run=dry_run)


def draw_rows(num_rows: int, count: int, seed: int, key: str) -> list[int]:
    """`count` different rows out of `num_rows`, every row equally likely, fixed by seed and key."""
    if count == 1:
        return [draw(num_rows, seed, "row", key)]
    ranks = {row: draw_share(seed, "row", key, str(row)) for row in range(num_rows if count else 0)}
    return sorted(ranks, key=ranks.__getitem__)[:count]
