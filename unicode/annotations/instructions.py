"""LLaVA's instructions with images as ids, and mixtures of finished annotation files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unicode.annotations.build import LAION, MIX, ImageIds, Made, Report, build, find_first, find_sources, output_path, split_weight
from unicode.annotations.records import (
    IMAGE_TAG,
    IMAGE_TO_TEXT,
    NOT_CHOSEN,
    TAG_MISMATCH,
    TEXT_ONLY,
    RefusedError,
    make_record,
    read_record,
)
from unicode.annotations.templates import draw_share
from unicode.common.json_lists import dump_line
from unicode.ids.text import write_run

MIXED = ("llava_laion558k", "llava_mix665k", "llava_laion558k_t2v", "llava_laion558k_uncond", "images_uncond", "images_decompression")
"""Stems of what is mixed when no files are named: those of these files that exist."""


def get_llava_uni_anno(
    root: str | Path, images: ImageIds, out: str | Path, *, seed: int = 0, anno: str | Path = f"{MIX}.json", dry_run: bool = False
) -> Report:
    """LLaVA's instructions with each image as its ids: every <image> becomes <vistok>...</vistok> where it stands.

    A conversation may have several images ("image" is a list then, in the order of the tags); text-only records are kept.
    Writes llava_mix665k.json for LLaVA's 665K mix, llava_laion558k.json for its 558K, <name>_uni.json for any other file, shuffled.
    """
    (source,) = find_sources(root, [anno])

    def convert(record: Any, _: str) -> Made:
        read = read_record(record, form="llava")
        if not read.keys:
            return [(0, make_record(read.id, TEXT_ONLY, read.turns))]
        runs = [write_run(images.get(source.key(key))) for key in read.keys]
        turns = []
        for turn in read.turns:
            first, *rest = turn.split(IMAGE_TAG)
            turns.append(first + "".join(runs.pop(0) + words for words in rest))
        return [(0, make_record(read.id, IMAGE_TO_TEXT, turns, **images.fields))]

    main = output_path(out, f"{source.name}{'' if source.name != source.path.stem else '_uni'}.json", [source])
    return build(Report("get_llava_uni_anno", seed), [source], convert, main, images=images, dry_run=dry_run)


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
    """
    sources = find_sources(root, annos)
    splits = {str(source.path): number for number, source in enumerate(sources)}

    def convert(record: Any, source: str) -> Made:
        read_record(record, form="llava")
        return [(0, {**record, "split": splits[source]})]

    return build(Report("concat_llava_anno", seed), sources, convert, output_path(out, "llava_v1_5_concat.json", sources), dry_run=dry_run)


def concat_uni_anno(
    root: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    annos: Sequence[str | Path] = (),
    weights: Sequence[float] = (),
    dry_run: bool = False,
) -> Report:
    """Files made by the other functions in one, each with a weight: how often one of its records occurs on average.

    Weight 1 takes a file as it is, 0.25 a quarter of its records, 2 every record twice, 1.5 every record once and half of them again; the
    choice is fixed by the seed and the record. Records whose ids cannot be read are left out; files whose ids are of two tokenizers or in
    two orders are refused. Writes unicode_concat.json, shuffled. `annos`: FILE or FILE*WEIGHT of our form, relative to `root`; without them
    all of the default names that exist in `out` or `root`. `weights`: one for each file, in place of FILE*WEIGHT; 1 without.
    """
    report = Report("concat_uni_anno", seed)
    folder = Path(out).parent if Path(out).suffix == ".json" else Path(out)
    if not annos:
        defaults = [[place / f"{name}.json" for place in (folder, Path(root))] for name in MIXED]
        annos = [path.resolve() for path in find_first(defaults, report)]
    files, written = zip(*map(split_weight, annos), strict=True)
    sources = find_sources(root, files)
    if weights and (len(weights) != len(sources) or not all(0 <= weight < 1e6 for weight in weights)):
        names = ", ".join(source.path.name for source in sources)
        raise ValueError(f"weights {list(weights)} for {len(sources)} files; give one number from 0 up for each of {names}")
    weight_of = {str(source.path): weight for source, weight in zip(sources, weights or written, strict=True)}
    first: list[str] = []  # layout and tokenizer of the first record with ids, and its file

    def convert(record: Any, source: str) -> Made:
        read = read_record(record)
        if read.keys:
            raise RefusedError(TAG_MISMATCH, f"{IMAGE_TAG} stands for an image file; get_llava_uni_anno puts ids in its place")
        if read.runs:
            meaning = f"{read.layout or 'no layout given'}, tokenizer {read.tokenizer or 'not given'}"
            if not first:
                first[:] = meaning, source
            if meaning != first[0]:
                both = f"{first[0]} in {first[1]}, {meaning} in {source} (record {read.id!r})"
                raise ValueError(f"ids of two tokenizers or orders do not mix: {both}; make both files from stores of one tokenizer")
        copies = count_copies(weight_of[source], seed, record)
        if not copies:
            raise RefusedError(NOT_CHOSEN, f"weight {weight_of[source]:g}")
        return [(0, record)] * copies

    main = output_path(out, "unicode_concat.json", sources)
    report.inputs = [f"{source} x {weight:g}" for source, weight in weight_of.items()]
    return build(report, sources, convert, main, dry_run=dry_run)


def count_copies(weight: float, seed: int, record: dict[str, Any]) -> int:
    """How often a record occurs at this weight: the integer part always, once more with the fraction as probability."""
    whole = int(weight)
    rest = weight - whole
    return whole + (rest > 0 and draw_share(seed, "copies", dump_line(record)) < rest)
