"""Train an image tokenizer: `python -m unicode.run.train_tokenizer CONFIG.yaml [a.b=c ...]`; the same command resumes."""

import argparse
import os
from pathlib import Path
from typing import Any, TypeVar

from unicode.common.config import load_config
from unicode.run.command import command, log, new_parser

T = TypeVar("T")


def build_parser(name: str, description: str | None, config: str) -> argparse.ArgumentParser:
    """Return the parser of a training command; `config` is the class of its config."""
    parser = new_parser(name, description, dry_run="read config and data, build the model, then stop")
    parser.add_argument("config", help=f"YAML file; every key is a field of unicode.train.config.{config}")
    overrides = "values that replace those of the file, as train.steps=100; the pages of docs/configs list all fields"
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help=overrides)
    return parser


def read_config(schema: type[T], args: argparse.Namespace) -> T:
    """Return the config that a training command was given; ValueError if its run.dir cannot become, or stay, a folder to write to."""
    config: Any = load_config(schema, args.config, args.overrides)
    path = Path(config.run.dir)
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        fault, default = "cannot be written" if place.is_dir() else "is a file", vars(schema())["run"].dir
        raise ValueError(f"run.dir {path}: {place} {fault}; choose a folder of your own, for example run.dir={default}")
    return config  # type: ignore[no-any-return]


@command
def main(argv: list[str] | None = None) -> int:
    args = build_parser("train_tokenizer", __doc__, "TrainTokenizerConfig").parse_intermixed_args(argv)

    from unicode.train.config import TrainTokenizerConfig

    config = read_config(TrainTokenizerConfig, args)

    from unicode.train.tokenizer import TokenizerTrainer

    trainer = TokenizerTrainer(config)
    log.info("%s", trainer.describe())
    if not args.dry_run:
        log.info("done: %s", trainer.run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
