"""Lists of images to train a tokenizer on: joined, split into train and val."""

import base64
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unicode.annotations.build import LAION, MIX, PUBLISHED_NAMES, Report, Source, check_share, find_first, find_source
from unicode.annotations.records import BAD_IMAGE, NO_IMAGE, RefusedError, image_key, read_keys
from unicode.annotations.templates import draw_share
from unicode.common.files import atomic_write, read_jsonl, read_list, write_list
from unicode.common.json_lists import read_json_list
from unicode.metrics.benchmarks import BENCHMARKS
from unicode.metrics.benchmarks.base import Options

TRAIN, VAL = SPLITS = ("train", "val")
CONCAT, CONCAT_VQA = "llava_concat", "llava_concat_vqa"


def concat_vae_with_mix(
    root: str | Path, out: str | Path, *, seed: int = 0, annos: Sequence[str | Path] = (), val_share: float = 0.05, dry_run: bool = False
) -> Report:
    """The images of LLaVA's 558K and 665K in two lists, llava_concat_train.txt and llava_concat_val.txt, each image once.

    A file <name>_train.txt comes with its <name>_val.txt (or the published <name>_test.txt) and keeps its split; the images of annotation
    files and other lists are split by a hash, so that an image is on the same side whatever else is in the files. No image of the val list
    is in the train list. Paths that leave the root are left out. `annos`: .json annotation files and .txt lists, FILE or FILE@FOLDER.
    Without them llava_laion558k and llava_mix665k: the published lists where they exist, else the annotation files. `val_share`: share of
    the val list where no split is given.
    """
    check_share(val_share)
    report = Report("concat_vae_with_mix", seed)
    defaults = [[Path(root) / f"{PUBLISHED_NAMES[stem]}_{TRAIN}.txt", Path(root) / f"{stem}.json"] for stem in (LAION, MIX)]
    sources = [find_source(root, anno) for anno in annos] or [Source(path) for path in find_first(defaults, report)]
    report.inputs = [str(source.path) for source in sources]
    lists: dict[str, dict[str, None]] = {TRAIN: {}, VAL: {}}  # dicts keep the order and each key once
    for source in sources:
        for given, part in _parts(source, report):
            for key in _keys(part, report):
                split = given or (VAL if draw_share(seed, "val", key) < val_share else TRAIN)
                lists[split][key] = None
    train = [key for key in lists[TRAIN] if key not in lists[VAL]]
    if len(train) < len(lists[TRAIN]):
        report.note(f"{len(lists[TRAIN]) - len(train)} images are in a train list and in a val list; they stay in val only")
    return _write_lists(report, CONCAT, (train, list(lists[VAL])), Path(out), dry_run=dry_run)


def concat_vae_with_vqabench(
    root: str | Path, out: str | Path, *, seed: int = 0, bench: str = "eval", allow_test_images: bool = False, dry_run: bool = False
) -> Report:
    """Append the images of LLaVA's benchmarks to what concat_vae_with_mix made: llava_concat_vqa_train.txt, and _val.txt unchanged.

    This trains the tokenizer on test images. Published tokenizers were trained so. It needs allow_test_images, and results of such a
    tokenizer must state it. Benchmarks that are not there are named and left out. The pictures inside MMBench's tables are written to files
    beside them. The lists are read from `out`, else from `root`. `bench`: folder of the benchmarks (LLaVA's playground/data/eval), relative
    to `root`. `allow_test_images`: confirms that test images may be used.
    """
    if not allow_test_images:
        consequence = "then scores on the twelve benchmarks are no longer scores on unseen images"
        raise ValueError(f"concat_vae_with_vqabench trains the tokenizer on test images; {consequence}. To do so, give --allow-test-images")
    try:
        folder = image_key(bench)
    except RefusedError as refused:
        raise ValueError(f"--bench {bench}: the lists hold paths relative to --root, so must this be ({refused})") from None
    report = Report("concat_vae_with_vqabench", seed)
    report.note("the train list holds test images of the benchmarks: state this with every score of a tokenizer trained on it")
    places = [[Path(folder) / f"{CONCAT}_{split}.txt" for folder in (out, root)] for split in SPLITS]
    lists = [find_first([paths], report, remedy="make it with --func concat_vae_with_mix")[0] for paths in places]
    report.inputs = [*map(str, lists), str(Path(root) / bench)]
    questions = {name: benchmark.files["questions"].find(Path(root) / folder) for name, benchmark in BENCHMARKS.items()}
    missing = [name for name, path in questions.items() if path is None]
    if len(missing) == len(BENCHMARKS):
        looked = ", ".join(path for benchmark in BENCHMARKS.values() for path in benchmark.files["questions"].paths)
        raise FileNotFoundError(f"no benchmark in {Path(root) / folder}: looked for {looked}")
    if missing:
        report.note(f"benchmarks not in {Path(root) / folder} and left out: {', '.join(missing)}")
    train, val = (dict.fromkeys(_keys(Source(path), report)) for path in lists)
    for name, path in questions.items():
        if path is not None:
            source = Source(path, f"{folder}/{BENCHMARKS[name].image_folder(Options())}")
            train |= dict.fromkeys(_keys(source, report, pictures=None if dry_run else Path(root) / source.folder))
    return _write_lists(report, CONCAT_VQA, (list(train), list(val)), Path(out), dry_run=dry_run)


def _parts(source: Source, report: Report) -> list[tuple[str, Source]]:
    """A source with its split, or with "" where it has none; a train list brings its val list along."""
    name = source.path.name
    if not name.endswith(f"_{TRAIN}.txt"):
        return [("", source)]
    siblings = [source.path.with_name(name.removesuffix(f"{TRAIN}.txt") + f"{split}.txt") for split in (VAL, "test")]
    found = [path for path in siblings if path.is_file()]
    if not found:
        report.note(f"{source.path} has no {siblings[0].name} beside it; its images are split by val_share")
        return [("", source)]
    return [(TRAIN, source), (VAL, Source(found[0], source.folder))]


def _keys(source: Source, report: Report, *, pictures: Path | None = None) -> Iterator[str]:
    """The keys of the images that a list, annotation file, question file or table names, refused ones counted.

    The pictures of a table are written to the folder `pictures`, if there is one.
    """
    readers = {".txt": read_list, ".jsonl": read_jsonl, ".tsv": _read_table}
    for index, thing in enumerate(readers.get(source.path.suffix, read_json_list)(source.path)):
        report.read += 1
        try:
            if source.path.suffix == ".tsv":
                thing["image"] = _save_picture(thing, pictures)
            keys = (image_key(thing.strip()),) if isinstance(thing, str) else read_keys(thing)
            if not keys:
                raise RefusedError(NO_IMAGE, "a text-only record")
            if any(len(key.splitlines()) > 1 for key in keys):
                raise RefusedError(BAD_IMAGE, "a line end in a path, which a list of one path a line cannot hold")
        except RefusedError as refused:
            report.drop(refused, (str(source.path), index, thing))
        else:
            yield from map(source.key, keys)


def _read_table(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        if not {"index", "image"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} has the columns {rows.fieldnames}; expected 'index' and 'image' among them")
        earlier = set()
        for row in rows:
            if row["image"] not in earlier:  # newer tables name an earlier row in place of the same picture
                yield {"id": row["index"], "image": row["image"] or ""}
            earlier.add(row["index"])


def _save_picture(row: dict[str, Any], folder: Path | None) -> str:
    """Write the base64 picture of a row to `folder` unless it is there, and return its name."""
    try:
        picture = base64.b64decode(row["image"], validate=True)
    except ValueError as error:
        raise RefusedError(BAD_IMAGE, f"not base64: {error}") from error
    if not picture or not str(row["id"]).isdigit():
        raise RefusedError(BAD_IMAGE, f"the row has the index {row['id']!r} and {len(picture)} bytes of picture")
    name = f"{row['id']}.jpg"
    if folder is not None and not (folder / name).is_file():
        with atomic_write(folder / name, "wb") as file:
            file.write(picture)
    return name


def _write_lists(report: Report, name: str, lists: tuple[list[str], list[str]], out: Path, *, dry_run: bool) -> Report:
    if out.suffix in (".txt", ".json"):
        raise ValueError(f"--out {out} is a file; two lists are written, name their folder")
    if not lists[0]:
        raise ValueError(f"{report.func}: no image for the train list ({report.reasons()})")
    if not lists[1]:
        report.note("no image for the val list; raise val_share")
    files = {out / f"{name}_{split}.txt": keys for split, keys in zip(SPLITS, lists, strict=True)}
    report.outputs = {str(path): len(keys) for path, keys in files.items()}
    if dry_run:
        report.note(f"dry run: {report.outputs} not written")
        return report
    for path, keys in files.items():
        write_list(path, keys)
    report.finish(out / f"{name}.report.json")
    return report
