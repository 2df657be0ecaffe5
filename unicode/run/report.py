"""Make one HTML page of what runs left on disk: images, curves, answers, scores, time."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from unicode.common.files import atomic_write
from unicode.run.command import command, log, new_parser

if TYPE_CHECKING:
    from unicode.report.page import Section

NAMED = "[NAME=]PATH"
INPUTS = ("tokenizer", "reconstruction", "ids", "llm", "answers", "generation", "decompression", "benchmarks", "steps")
LEAD = "One codebook for text and images: an image becomes a run of a language model's own tokens, and a run becomes an image."


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("report", __doc__, dry_run="read everything, write nothing")
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="FILE", help="the page, a .html file")
    add("--title", default="UniCode", help="(default: %(default)s)")
    add("--tokenizer", type=Path, metavar="RUN", help="run folder of train_tokenizer; its ids/ are counted")
    measured = "folders of eval_tokenizer's metrics.json and grid.png; of later ones, as before=DIR, the nearest words are shown beside"
    add("--reconstruction", nargs="+", default=[], metavar=NAMED, help=measured)
    add("--base", type=Path, metavar="DIR", help="language model whose words the ids are")
    add("--ids", nargs="+", default=[], metavar="STORE", help="stores of ids (default: those in ids/ of the tokenizer)")
    add("--images", nargs="+", default=[], metavar="PLACE", help="where pictures are found by name: folders, shapes:SPLIT")
    add("--world", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the shapes world that differ from the default one")
    add("--about", default="red circle", metavar="WORDS", help="spell out pictures whose caption contains this (default: %(default)s)")
    add("--llm", nargs="+", default=[], metavar=NAMED, help="run folders of train_llm")
    add("--questions", type=Path, metavar="FILE", help="questions in LLaVA's form, JSON Lines, with the right answers")
    add("--answers", nargs="+", default=[], metavar=NAMED, help="answers of the model, then of baselines, as blind=FILE")
    add("--generation", nargs="+", default=[], metavar=NAMED, help="folders of generate_images: the model's, then baselines'")
    add("--note", nargs="+", default=[], metavar="WORD", help="what the prompts of the first --generation are about, for the reader")
    add("--one-by-one", type=Path, metavar="DIR", help="folder of generate_images whose pictures are all shown, beside the nearest ones")
    add("--decompression", type=Path, metavar="DIR", help="folder of generate_images --decompress")
    add("--benchmarks", nargs="+", default=[], metavar=NAMED, help="--out of benchmark: the model's, then baselines'")
    add("--steps", type=Path, metavar="FILE", help="steps.jsonl of a pipeline: step, command, seconds, peak_mib, skipped")
    args = parser.parse_args(argv)
    from unicode.report import sections
    from unicode.report.page import build_page

    if args.out.suffix not in (".html", ".htm"):
        raise ValueError(f"--out {args.out} is no .html file")
    if not any(getattr(args, name) for name in INPUTS):
        raise ValueError(f"nothing to report on; name at least one of --{', --'.join(INPUTS)}")
    parts = page_sections(args, shlex.join(["python", "-m", "unicode.run.report", *(sys.argv[1:] if argv is None else argv)]))
    if args.dry_run:
        log.info("%s", "; ".join(part.title for part in parts))
        return 0
    opening = sections.opening(next(iter(named(args.generation).values()), None), args.images, note=" ".join(args.note))
    page = build_page(args.title, LEAD, parts, opening=opening)
    with atomic_write(args.out) as file:
        file.write(page)
    log.info("wrote %s, %.1f MiB", args.out, len(page) / 2**20)
    return 0


def page_sections(args: argparse.Namespace, own_command: str) -> list[Section]:
    """Return the sections of the page; `own_command` made it. Without --images, the pictures of a generated world are still found."""
    from unicode.images.lookup import ImageLookup, is_world
    from unicode.report import sections
    from unicode.report.words import words_section

    answers, drawings, rebuilt = named(args.answers), named(args.generation), named(args.reconstruction, "after")
    places = args.images
    if rebuilt and not places:
        measured = sections.read_object(Path(next(iter(rebuilt.values()))) / "metrics.json").get("protocol", {}).get("image_set", "")
        places = [measured] if is_world(measured) else []
    images = ImageLookup(places, world=args.world)
    runs = ({"tokenizer": args.tokenizer} if args.tokenizer else {}) | named(args.llm, "language model")
    first = drawings.pop(next(iter(drawings), ""), None)
    steps = sections.read_steps(args.steps)
    return [
        sections.reconstruction_section(rebuilt),
        words_section(args.ids, images, tokenizer=args.tokenizer, base=args.base, about=args.about),
        sections.answers_section(args.questions, answers, images),
        sections.generation_section(first, baselines=drawings, each=sections.nearest_cards(args.one_by_one, images)),
        sections.decompression_section(args.decompression, images),
        sections.training_section(runs),
        sections.benchmarks_section(named(args.benchmarks)),
        sections.steps_section(steps),
        sections.commands_section(steps, own_command),
    ]


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
