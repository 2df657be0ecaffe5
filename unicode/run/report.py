"""Make one HTML page of what runs left on disk: pictures, curves, answers, scores, time. Each part is optional.

    python -m unicode.run.report --out outputs/quickstart/report.html --tokenizer outputs/quickstart/hqvae \\
        --reconstruction outputs/quickstart/reconstruction --base outputs/quickstart/base
"""

import argparse
import shlex
import sys
from pathlib import Path

from unicode.common.log import get_logger
from unicode.common.records import atomic_write
from unicode.report.answers import answers_section
from unicode.report.curves import training_section
from unicode.report.drawings import decompression_section, generation_section
from unicode.report.machine import commands_section, steps_section
from unicode.report.page import Figure, Section, build_page
from unicode.report.reconstruction import reconstruction_section
from unicode.report.runs import read_object
from unicode.report.scores import benchmarks_section
from unicode.report.vocabulary import vocabulary_section
from unicode.run.command import command
from unicode.run.picture_finder import SHAPES, PictureFinder

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
    finder = PictureFinder(picture_places(args), world=args.world)
    reconstruction, psnr = reconstruction_section(args.reconstruction)
    questions, accuracy = answers_section(args.questions, answers, finder)
    own = next(iter(drawings.values()), None)
    generation, drawn = generation_section(own, baselines=dict(list(drawings.items())[1:]))
    decompression, exact = decompression_section(args.decompression, finder)
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


def words_section(args: argparse.Namespace, finder: PictureFinder) -> Section:
    """Return the section on the words that pictures use."""
    from unicode.run.word_map import count_words, eligible_ids, find_examples, find_stores, read_words

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
    return [measured] if measured.partition(":")[0] == SHAPES else []


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
