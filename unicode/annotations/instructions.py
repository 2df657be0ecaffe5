"""LLaVA's instructions: the images in them become ids, or stay images and are only put together."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unicode.annotations.build import Made, build
from unicode.annotations.conversation import IMAGE_TAG, IMAGE_TO_TEXT, TEXT_ONLY, make_record, parse_record
from unicode.annotations.image_ids import ImageIds
from unicode.annotations.report import Report
from unicode.annotations.sources import LAION, MIX, PUBLISHED_NAMES, find_source, find_sources, output_path, read_sources
from unicode.ids.text import write_run

_TAG = re.compile(re.escape(IMAGE_TAG))


def get_llava_uni_anno(
    root: str | Path, images: ImageIds, out: str | Path, *, seed: int = 0, anno: str | Path = f"{MIX}.json", dry_run: bool = False
) -> Report:
    """LLaVA's instructions with each image as its ids: every <image> becomes <vistok>...</vistok> where it stands.

    A conversation may have several images ("image" is a list then, in the order of the tags); text-only records are kept.
    Writes llava_mix665k.json for LLaVA's 665K mix, llava_laion558k.json for its 558K, <name>_uni.json for any other file, shuffled.

    Args:
        root: folder of the annotation file.
        images: the ids.
        out: a folder, or the path of the .json file.
        seed: of the order.
        anno: LLaVA's annotation file, relative to `root`; FILE@FOLDER where its image paths start from a folder of the image root.
        dry_run: convert the first records and write nothing.

    Raises:
        FileNotFoundError: no such annotation file.
        ValueError: a damaged annotation file, or nothing left to write.
    """
    source = find_source(root, anno)

    def convert(record: Any, _: str) -> Made:
        conversation = parse_record(record)
        if not conversation.images:
            return [(0, make_record(conversation.id, TEXT_ONLY, conversation.turns))]
        runs = iter([write_run(images.get(source.key(path))) for path in conversation.images])
        turns = [put_runs(turn, runs) for turn in conversation.turns]
        return [(0, make_record(conversation.id, IMAGE_TO_TEXT, turns, **images.fields))]

    stem = source.path.stem
    main = output_path(out, f"{PUBLISHED_NAMES.get(stem, f'{stem}_uni')}.json", [source])
    report = Report("get_llava_uni_anno", seed, inputs=[str(source.path)])
    return build(report, read_sources([source]), convert, {main: (0,)}, images=images, dry_run=dry_run)


def concat_llava_anno(
    root: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    annos: Sequence[str | Path] = (f"{LAION}.json", f"{MIX}.json"),
    dry_run: bool = False,
) -> Report:
    """LLaVA's own annotation files in one, for training that reads the image files themselves.

    Records stay as they are and get "split": the place of their file in `annos`, which tells the trainer the image folder to use.
    Malformed records and image paths that leave the root are left out. Writes llava_v1_5_concat.json, shuffled.

    Args:
        root: folder of the annotation files.
        out: a folder, or the path of the .json file.
        seed: of the order.
        annos: annotation files, relative to `root`; the published two by default.
        dry_run: convert the first records and write nothing.

    Raises:
        FileNotFoundError: no such annotation file.
        ValueError: a damaged annotation file, one that is named twice, or nothing left to write.
    """
    sources = find_sources(root, annos)
    splits = {str(source.path): number for number, source in enumerate(sources)}

    def convert(record: Any, source: str) -> Made:
        parse_record(record)
        return [(0, {**record, "split": splits[source]})]

    main = output_path(out, "llava_v1_5_concat.json", sources)
    report = Report("concat_llava_anno", seed, inputs=list(splits))
    return build(report, read_sources(sources), convert, {main: (0,)}, dry_run=dry_run)


def put_runs(turn: str, runs: Iterator[str]) -> str:
    """Replace each image tag of a turn by the next run."""
    return _TAG.sub(lambda _: next(runs), turn)
