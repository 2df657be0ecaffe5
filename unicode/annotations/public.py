"""Public data sets (torchvision's by name, Parquet files) -> annotation files of LLaVA's form; any data set -> captions by key."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from unicode.annotations.build import Report, check_share
from unicode.annotations.captioned import NUM_CHOICES, Words, build_words
from unicode.annotations.records import BAD_LABEL, DAMAGED_GROUP, NO_CAPTION, RefusedError, read_record
from unicode.annotations.templates import HELD, LABEL_CAPTION, LABEL_CHOICE, LABEL_CLAIM, LABEL_WHAT, TEMPLATES
from unicode.common.files import write_list
from unicode.common.json_lists import read_json_list
from unicode.images.listing import Files, is_held_out
from unicode.images.parquet import ParquetImages
from unicode.images.shapes import find_scene
from unicode.images.shapes_text import SceneQuestion, scene_caption, with_article
from unicode.images.torchvision_sets import FASHION, PARTS, TorchvisionSet

if TYPE_CHECKING:
    from unicode.images.dataset import DataConfig, ImageDataset

TEXT_LINES = 10_000


def get_label_anno(
    root: str | Path,
    out: str | Path,
    *,
    dataset: str = FASHION,
    seed: int = 0,
    val_share: float = 0.0,
    questions: int = 5,
    dry_run: bool = False,
) -> Report:
    """Captions and questions of a torchvision data set from its labels: "a photo of a sneaker"; what is it, which of four, yes or no.

    Writes <set>_captions_{train,val,test}.json and <set>_questions_{train,val,test}.json, shuffled; <set> is its name in small letters.
    Training files use three quarters of the phrasings; val and test files ask "what" in one of them, "what_held" in one of the others,
    then the rest. <set>_text.txt has the words of training alone, for make_base_model --text.

    Args:
        root: the folder that holds the set, or Debian's folder of Fashion-MNIST.
        dataset: name of the class in torchvision.datasets, as CIFAR10.
        val_share: share of the train part for the val files, the same pictures as those of data.holdout; 0: the set's own val part.
    """
    check_share(val_share)
    report = Report("get_label_anno", seed, inputs=[f"torchvision:{dataset}@{root}"])
    opened = {"train": TorchvisionSet(dataset, "train", str(root))}
    for part in ("test",) if val_share else ("val", "test"):
        try:
            found = TorchvisionSet(dataset, part, str(root))
        except ValueError as error:
            report.note(str(error))
        else:
            opened |= {part: found} if found.part == part else {}
    names = label_words(opened["train"].classes)

    def things() -> Iterator[dict[str, Any]]:
        for part, pictures in opened.items():
            for key, label in zip(pictures.keys, pictures.labels, strict=True):
                held = part == "train" and is_held_out(key, val_share)
                yield {"id": key, "label": int(label), "part": PARTS.index("val" if held else part)}

    def describe(thing: dict[str, Any], rng: Random) -> Words:
        return thing["part"], *label_text(thing["label"], names, rng, held_out=thing["part"] > 0)

    build_words(report, dataset.lower(), things(), describe, Path(out), splits=PARTS, questions=questions, dry_run=dry_run)
    if not dry_run:
        rng, lines = Random(seed), []
        for number in range(TEXT_LINES):
            caption, asked = label_text(number % len(names), names, rng, held_out=False)
            lines.append(" ".join([caption, *(f"Question: {question.text} Answer: {question.answer}." for question in asked)]))
        write_list(Path(out) / f"{dataset.lower()}_text.txt", lines)
    return report


def get_parquet_anno(
    root: str | Path,
    out: str | Path,
    *,
    path: str = "*.parquet",
    text_column: str = "text",
    seed: int = 0,
    val_share: float = 0.0,
    questions: int = 5,
    dry_run: bool = False,
) -> Report:
    """Captions, questions or conversations of Parquet files, as Hugging Face publishes data sets, from one column.

    A column of text gives captions; of lists of text, captions by the first of each; of labels with names, captions and questions as
    get_label_anno; of LLaVA's conversations ({"from", "value"}), the conversations. Writes parquet_captions_{train,val}.json and
    parquet_questions_{train,val}.json, shuffled. The files are read one row group at a time; rows of damaged ones are counted and left out.

    Args:
        root: the folder that `path` and the keys start from.
        path: Parquet files, with braces {000..127} and globs.
        text_column: the column to read.
    """
    check_share(val_share)
    report = Report("get_parquet_anno", seed, inputs=[str(Path(root) / path)])
    source = ParquetImages(path, str(root), column="")
    names = label_words(source.class_names(text_column))

    def describe(thing: dict[str, Any], rng: Random) -> Words:
        if thing["row"] is None:
            raise RefusedError(DAMAGED_GROUP, "its row group cannot be read")
        value, split = thing["row"][text_column], int(is_held_out(thing["id"], val_share))
        if isinstance(value, int):
            return split, *label_text(value, names, rng, held_out=split > 0)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return split, "", value
        text = next(iter(value), None) if isinstance(value, list) else value
        if not isinstance(text, str) or not text.strip():
            raise RefusedError(NO_CAPTION, f"the column '{text_column}' has {text!r:.60}")
        return split, " ".join(text.split()), []

    things = ({"id": key, "row": row} for key, row in source.rows([text_column]))
    return build_words(report, "parquet", things, describe, Path(out), questions=questions, dry_run=dry_run)


def open_captions(dataset: ImageDataset, config: DataConfig) -> Callable[[str], Sequence[str]]:
    """Return a function from the key of a picture to its captions, none where the picture has none.

    They come from the annotation files of `config.captions` (of each record the longest answer), of name=llava from its own files; else
    from `config.caption_column` of Parquet files, from the labels of a torchvision set, from the scenes of the generated world, or from the
    first line of the .txt file beside a picture. Raises FileNotFoundError: no such annotation file. Raises ValueError: a damaged one, or no
    such column.
    """
    from unicode.images.dataset import ShapesImages, resolve_path
    from unicode.images.lookup import ImageLookup

    source: Any = getattr(dataset, "source", None)
    files, column = config.captions or (config.path if config.name == "llava" else ""), config.caption_column
    found: dict[str, list[str]] = defaultdict(list)
    for part in filter(None, (part.strip() for part in files.split(","))):
        name, _, folder = part.partition("@")
        for record in read_json_list(resolve_path(config, name)):
            with suppress(RefusedError):
                read = read_record(record, form="llava")
                for key in read.keys:
                    found[f"{folder.strip('/')}/{key}" if folder else key].append(max(read.turns[1::2], key=len))
    if isinstance(dataset, ShapesImages) and not files:
        return lambda key: [scene_caption(find_scene(dataset.config, key))]
    if isinstance(source, Files) and not files:
        beside = ImageLookup([source.root])
        return lambda key: [text for text in [beside.caption(key)] if text]
    if isinstance(source, TorchvisionSet) and not files:
        names = label_words(source.classes)
        found |= {key: names[label : label + 1] for key, label in zip(source.keys, source.labels.tolist(), strict=True)}
    elif isinstance(source, ParquetImages) and column and not files:
        names = label_words(source.class_names(column))
        for key, row in source.rows([column]):
            value = row and row[column]
            texts = names[value : value + 1] if isinstance(value, int) else value if isinstance(value, list) else [value]
            found[key] = [text for text in texts if isinstance(text, str) and text.strip()]
    return lambda key: found.get(key, ())


def label_words(classes: Sequence[str]) -> list[str]:
    """Names of classes as words: "T-shirt/top" is "t-shirt", "0 - zero" is "zero", "AnnualCrop" is "annual crop".

    The part behind a slash stays where two classes would be called alike without it.
    """
    plain = [" ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name.rpartition(" - ")[2]).lower().split()) for name in classes]
    short = [name.strip("/").partition("/")[0] for name in plain]
    return [brief if short.count(brief) == 1 else name for brief, name in zip(short, plain, strict=True)]


def label_text(label: int, names: Sequence[str], rng: Random, *, held_out: bool) -> tuple[str, list[SceneQuestion]]:
    """Caption of a picture of class `label` and questions about it.

    `held_out`: ask "what" in a phrasing of training and in one that training never uses, in this order and before all else; otherwise all
    questions are in phrasings of training, and shuffled. Raises RefusedError: there is no such class.
    """
    if not 0 <= label < len(names):
        raise RefusedError(BAD_LABEL, f"label {label} of {len(names)} classes")
    name, others = names[label], [other for other in names if other != names[label]]

    def phrase(task: str, **slots: str) -> str:
        return rng.choice(TEMPLATES[task][:-HELD]).format(**slots)

    asked = [SceneQuestion(phrase(LABEL_WHAT), name, "what")]
    if held_out:
        asked.append(SceneQuestion(rng.choice(TEMPLATES[LABEL_WHAT][-HELD:]), name, "what_held"))
    if others:
        options = [name, *rng.sample(others, min(NUM_CHOICES - 1, len(others)))]
        *first, last = rng.sample(options, len(options))
        asked.append(SceneQuestion(phrase(LABEL_CHOICE, choice=f"{', '.join(first)} or {last}"), name, "choice"))
        asked.append(SceneQuestion(phrase(LABEL_CLAIM, noun=with_article(name)), "yes", "yesno"))
        asked.append(SceneQuestion(phrase(LABEL_CLAIM, noun=with_article(rng.choice(others))), "no", "yesno"))
    return phrase(LABEL_CAPTION, noun=with_article(name)), asked if held_out else rng.sample(asked, len(asked))
