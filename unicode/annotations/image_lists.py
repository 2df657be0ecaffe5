"""Lists of images to train a tokenizer on, a path a line: annotation files and lists are joined and split into train and val."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from unicode.annotations.benchmark_images import benchmark_images
from unicode.annotations.conversation import NO_IMAGE, RefusedError, image_key, parse_images
from unicode.annotations.prompts import draw_share
from unicode.annotations.report import Report
from unicode.annotations.sources import LAION, MIX, PUBLISHED_NAMES, Item, Source, find_source, read_sources
from unicode.common.records import read_list, write_list

TRAIN, VAL = SPLITS = ("train", "val")
CONCAT, CONCAT_VQA = "llava_concat", "llava_concat_vqa"
TEST_IMAGES = (
    "concat_vae_with_vqabench would put the images of the twelve benchmarks, test images among them, into the training data of the "
    "tokenizer; scores on those benchmarks are then no longer scores on unseen images. If that is what you want, say --allow-test-images"
)


def concat_vae_with_mix(
    root: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    annos: Sequence[str | Path] = (),
    val_share: float = 0.05,
    dry_run: bool = False,
) -> Report:
    """The images of LLaVA's 558K and 665K in two lists, llava_concat_train.txt and llava_concat_val.txt, each image once.

    A file <name>_train.txt comes with its <name>_val.txt (or the published <name>_test.txt) and keeps its split; the images of
    annotation files and other lists are split by a hash, so that an image is on the same side whatever else is in the files.
    No image of the val list is in the train list. Paths that leave the root are left out.

    Args:
        root: folder of the files.
        out: folder of the two lists.
        seed: of the split.
        annos: .json annotation files and .txt lists, FILE or FILE@FOLDER with the folder of the image root that their paths start
            from. Without them llava_laion558k and llava_mix665k: the published lists where they exist, else the annotation files.
        val_share: share of the val list where no split is given.
        dry_run: read everything and write nothing.

    Raises:
        FileNotFoundError: no such file, or none of the default ones.
        ValueError: a damaged annotation file, a bad argument, or not one image.
    """
    if not 0 <= val_share < 1:
        raise ValueError(f"val_share is {val_share}; it must be 0 or more and below 1")
    report = Report("concat_vae_with_mix", seed)
    sources = [find_source(root, anno) for anno in annos] or _default_sources(Path(root), report)
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
    return _write_lists(report, CONCAT, train, list(lists[VAL]), Path(out), dry_run=dry_run)


def concat_vae_with_vqabench(
    root: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    bench: str = "eval",
    allow_test_images: bool = False,
    dry_run: bool = False,
) -> Report:
    """Append the images of LLaVA's benchmarks to what concat_vae_with_mix made: llava_concat_vqa_train.txt, and _val.txt unchanged.

    This trains the tokenizer on test images. It is here because published tokenizers were trained so; it needs allow_test_images,
    and numbers of a tokenizer trained so must say it. Benchmarks that are not there are named and left out. The pictures
    inside MMBench's tables are written to files beside them.

    Args:
        root: the image root; also searched for llava_concat_{train,val}.txt.
        out: folder of the lists, searched first.
        seed: noted in the report, nothing is drawn.
        bench: folder of the benchmarks (LLaVA's playground/data/eval), relative to `root`.
        allow_test_images: yes, train on them.
        dry_run: read everything and write nothing.

    Raises:
        FileNotFoundError: no lists of concat_vae_with_mix, or no benchmark.
        ValueError: allow_test_images is not given, or a damaged question file.
    """
    if not allow_test_images:
        raise ValueError(TEST_IMAGES)
    report = Report("concat_vae_with_vqabench", seed)
    report.note("the train list holds test images of the benchmarks: say so with every score of a tokenizer trained on it")
    lists = {split: _find_list(f"{CONCAT}_{split}.txt", (Path(out), Path(root))) for split in SPLITS}
    report.inputs = [*map(str, lists.values()), str(Path(root) / bench)]
    val = list(_keys(Source(lists[VAL]), report))
    images = benchmark_images(Path(root), bench, report, dry_run=dry_run)
    train = dict.fromkeys(chain(_keys(Source(lists[TRAIN]), report), _checked(images, Source(Path(root)), report)))
    return _write_lists(report, CONCAT_VQA, list(train), val, Path(out), dry_run=dry_run)


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


def _keys(source: Source, report: Report) -> Iterator[str]:
    """The keys of the images in a list or annotation file, refused ones counted."""
    if source.path.suffix == ".txt":
        items: Iterator[Item] = ((str(source.path), index, line.strip()) for index, line in enumerate(read_list(source.path)))
    else:
        items = read_sources([source])
    return _checked(items, source, report)


def _checked(items: Iterator[Item], source: Source, report: Report) -> Iterator[str]:
    for where, index, thing in items:
        report.count_read()
        try:
            paths = (image_key(thing),) if isinstance(thing, str) else _images_of(thing)
        except RefusedError as refused:
            report.drop(refused, source=where, index=index, name=thing.get("id") if isinstance(thing, dict) else thing)
        else:
            yield from map(source.key, paths)


def _images_of(record: Any) -> tuple[str, ...]:
    images = parse_images(record)
    if not images:
        raise RefusedError(NO_IMAGE, "a text-only record")
    return images


def _default_sources(root: Path, report: Report) -> list[Source]:
    sources = []
    for stem in (LAION, MIX):
        candidates = [root / f"{PUBLISHED_NAMES[stem]}_{TRAIN}.txt", root / f"{stem}.json"]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            report.note(f"neither {candidates[0]} nor {candidates[1]} is there; left out")
        else:
            sources.append(Source(found))
    if not sources:
        raise FileNotFoundError(f"neither LLaVA's annotation files nor lists of their images in {root}; name files with --anno")
    return sources


def _find_list(name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no {name} in {' or '.join(map(str, folders))}; make it with --func concat_vae_with_mix")


def _write_lists(report: Report, name: str, train: list[str], val: list[str], out: Path, *, dry_run: bool) -> Report:
    if out.suffix in (".txt", ".json"):
        raise ValueError(f"--out {out} is a file; two lists are written, name their folder")
    if not train:
        raise ValueError(f"{report.func}: no image for the train list ({report.reasons()})")
    if not val:
        report.note("no image for the val list; raise val_share")
    report.outputs = {str(out / f"{name}_{split}.txt"): len(keys) for split, keys in ((TRAIN, train), (VAL, val))}
    if dry_run:
        report.note(f"dry run: {report.outputs} not written")
        return report
    for split, keys in ((TRAIN, train), (VAL, val)):
        write_list(out / f"{name}_{split}.txt", keys)
    report.finish(out / f"{name}.report.json")
    return report
