"""Make one HTML page of what runs left on disk: images, curves, answers, scores, time."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unicode.common.files import atomic_write
from unicode.common.logging import get_logger
from unicode.ids.layout import Layout
from unicode.ids.store import Store
from unicode.images.lookup import ImageLookup, is_world
from unicode.llm.vocabulary import find_model, read_vocabulary, spells_bytes
from unicode.report.answers import answers_section
from unicode.report.curves import training_section
from unicode.report.drawings import decompression_section, generation_section
from unicode.report.machine import commands_section, steps_section
from unicode.report.page import Figure, Section, build_page
from unicode.report.reconstruction import reconstruction_section
from unicode.report.runs import read_object, spread
from unicode.report.scores import benchmarks_section
from unicode.report.vocabulary import Coded, Words, count_ids, vocabulary_section
from unicode.run.command import command
from unicode.tokenizer.load import load_tokenizer

MAX_COUNTED = 5000
NUM_EXAMPLES = 4


def find_stores(ids: Sequence[str | Path], tokenizer: str | Path | None) -> list[Store]:
    """Open the stores that are named, or those of the tokenizer's folder.

    Raises:
        FileNotFoundError, ValueError: a store that was named is not there, not finished or damaged.
    """
    if ids:
        return [Store(path) for path in ids]
    if tokenizer is None:
        return []
    return [Store(path.parent) for path in sorted(Path(tokenizer).glob("ids/**/manifest.json"))]


def count_words(stores: Sequence[Store]) -> tuple[np.ndarray | None, int]:
    """Return the uses of each id per level, (L, V) int64, over at most `MAX_COUNTED` pictures, evenly taken, and their number."""
    total: np.ndarray | None = None
    number = 0
    for store in stores:
        keys = spread(list(store), max(1, MAX_COUNTED // len(stores)))
        if not keys:
            continue
        levels = _levels(np.stack([store[key] for key in keys]), store.layout)
        counts = count_ids(levels, store.spec.vocab_size)
        if total is None or total.shape == counts.shape:
            total = counts if total is None else total + counts
            number += len(keys)
    return total, number


def find_examples(stores: Sequence[Store], finder: ImageLookup, about: str) -> list[Coded]:
    """Return pictures to spell out: those whose caption says `about`, the shortest captions first; any where none does."""
    found: list[tuple[bool, int, str, Store]] = []
    for store in stores:
        for key in spread(list(store), MAX_COUNTED):
            caption = finder.caption(key)
            found.append((about.casefold() not in caption.casefold(), len(caption), key, store))
    examples = []
    for _, _, key, store in sorted(found, key=lambda one: one[:3]):
        picture = finder.find(key)
        if picture is not None:
            ids = [_as_grid(level, store.layout) for level in _levels(store[key], store.layout)]
            examples.append(Coded(np.asarray(picture), finder.caption(key) or key, tuple(ids)))
        if len(examples) == NUM_EXAMPLES:
            break
    return examples


def read_words(base: str | Path) -> Words:
    """Return a function from vocabulary id to the token's text.

    Args:
        base: a language model: a Hugging Face folder, the folder around it that `make_base_model` writes, or a GGUF file.
    """
    inner = Path(base) / "model"
    tokens = read_vocabulary(find_model(inner if (inner / "config.json").is_file() else base)).tokens
    blank = "Ġ" if spells_bytes(tokens.values()) else "▁"
    return lambda index: tokens.get(index, str(index)).replace(blank, " ").replace("Ċ", "\n")


def eligible_ids(tokenizer: str | Path, size: int) -> np.ndarray:
    """Return which ids of a vocabulary of `size` are rows of a tokenizer's codebook, (size,) bool."""
    eligible = np.zeros(size, dtype=bool)
    rows = load_tokenizer(tokenizer).row_ids.numpy()
    eligible[rows[rows < size]] = True
    return eligible


def _levels(ids: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """Ids (..., N) in id order -> (..., cells) per level."""
    return list(layout.split(layout.restore(ids)))


def _as_grid(level: np.ndarray, layout: Layout) -> np.ndarray:
    """Ids (cells,) of one level in raster order -> (h, w)."""
    grid = next(grid for grid in layout.grids if grid[0] * grid[1] == len(level))
    return level.reshape(grid)


log = get_logger(__name__)
NAMED = "[NAME=]PATH"
LEAD = "One codebook for text and images: pictures become runs of a language model's own tokens, and back."


def build_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m unicode.run.report", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="FILE", help="the page, a .html file")
    add("--title", default="UniCode", help="(default: %(default)s)")
    add("--tokenizer", type=Path, metavar="RUN", help="run folder of train_tokenizer; its ids/ are counted")
    add("--reconstruction", type=Path, metavar="DIR", help="folder of eval_tokenizer's metrics.json and grid.png")
    add("--base", type=Path, metavar="DIR", help="language model whose words the ids are")
    add("--ids", nargs="+", default=[], metavar="STORE", help="stores of ids (default: those in ids/ of the tokenizer)")
    add("--images", nargs="+", default=[], metavar="PLACE", help="where pictures are found by name: folders, shapes:SPLIT")
    add("--world", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the shapes world that differ from the default one")
    add("--about", default="red circle", metavar="WORDS", help="spell out pictures whose caption says this (default: %(default)s)")
    add("--llm", nargs="+", default=[], metavar=NAMED, help="run folders of train_llm")
    add("--questions", type=Path, metavar="FILE", help="questions in LLaVA's form, JSON Lines, with the right answers")
    add("--answers", nargs="+", default=[], metavar=NAMED, help="answers of the model, then of baselines, as blind=FILE")
    add("--generation", nargs="+", default=[], metavar=NAMED, help="folders of generate_images: the model's, then baselines'")
    add("--decompression", type=Path, metavar="DIR", help="folder of generate_images --decompress")
    add("--benchmarks", nargs="+", default=[], metavar=NAMED, help="--out of benchmark: the model's, then baselines'")
    add("--steps", type=Path, metavar="FILE", help="steps.jsonl of a pipeline: step, command, seconds, peak_mib, skipped")
    add("--dry-run", action="store_true", help="read everything, write nothing")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    if args.out.suffix not in (".html", ".htm"):
        raise ValueError(f"--out {args.out} is no .html file")
    sections = page_sections(args)
    if args.dry_run:
        log.info("%s", "; ".join(part.title for part in sections[1]))
        return 0
    page = build_page(args.title, LEAD, *sections)
    with atomic_write(args.out) as file:
        file.write(page)
    log.info("wrote %s, %.1f MiB", args.out, len(page) / 2**20)
    return 0


def page_sections(args: argparse.Namespace) -> tuple[list[Figure], list[Section]]:
    """Return the figures for the top of the page and its sections, from whatever is there."""
    llm, answers, benchmarks = named(args.llm, "language model"), named(args.answers), named(args.benchmarks)
    drawings = named(args.generation)
    finder = ImageLookup(picture_places(args), world=args.world)
    reconstruction, psnr = reconstruction_section(args.reconstruction)
    questions, accuracy = answers_section(args.questions, answers, finder.find)
    own = next(iter(drawings.values()), None)
    generation, drawn = generation_section(own, baselines=dict(list(drawings.items())[1:]))
    decompression, exact = decompression_section(args.decompression, finder.find)
    steps, time = steps_section(args.steps)
    runs = ({"tokenizer": args.tokenizer} if args.tokenizer else {}) | llm
    own_command = shlex.join(["python", "-m", "unicode.run.report", *args.words])
    sections = [
        reconstruction,
        words_section(args, finder),
        training_section(runs),
        questions,
        generation,
        decompression,
        benchmarks_section(benchmarks),
        steps,
        commands_section(args.steps, [f"# this page\n{own_command}"]),
    ]
    return [*psnr, *accuracy, *drawn, *exact, *time], sections


def words_section(args: argparse.Namespace, finder: ImageLookup) -> Section:
    """Return the section on the words that pictures use."""

    stores = find_stores(args.ids, args.tokenizer)
    counts, number = count_words(stores)
    word = read_words(args.base) if args.base else None
    if counts is None:
        return vocabulary_section(None, [], word)
    eligible = eligible_ids(args.tokenizer, counts.shape[1]) if args.tokenizer else None
    return vocabulary_section(counts, find_examples(stores, finder, args.about), word, eligible=eligible, num_images=number)


def picture_places(args: argparse.Namespace) -> list[str]:
    """Return where pictures are looked for: what was named, else the world if the reconstructions are of it, else nowhere."""
    if args.images or args.reconstruction is None:
        return list(args.images)
    measured = read_object(args.reconstruction / "metrics.json").get("protocol", {}).get("image_set", "")
    return [measured] if is_world(measured) else []


def named(arguments: list[str], default: str = "this model") -> dict[str, str]:
    """["DIR", "blind=DIR"] -> name -> path; without a name the first is `default`, the others are called like their folders."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or "/" in name:
            name, path = (default if not found else Path(argument).stem), argument
        if name in found:
            raise ValueError(f"two things are called {name}; give them names, as {name}2={path}")
        found[name] = path
    return found


if __name__ == "__main__":
    raise SystemExit(main())
