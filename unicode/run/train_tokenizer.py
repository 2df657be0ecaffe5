"""Train an image tokenizer: `python -m unicode.run.train_tokenizer CONFIG.yaml [a.b=c ...]`; the same command resumes."""

import argparse
import os
from pathlib import Path

from unicode.common.config import load_config
from unicode.common.logging import get_logger
from unicode.run.command import command

logger = get_logger(__name__)


def check_run_dir(path: Path, *, example: str = "outputs/tokenizer") -> None:
    """Raise ValueError when `path` cannot become, or stay, a folder that is written to."""
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        fault = "cannot be written" if place.is_dir() else "is a file"
        raise ValueError(f"run.dir {path}: {place} {fault}; choose a folder of your own, for example run.dir={example}")


def build_parser(name: str, description: str | None, config: str) -> argparse.ArgumentParser:
    """Return the parser of a training command; `config` is the class of its config."""
    parser = argparse.ArgumentParser(prog=f"unicode.run.{name}", description=description)
    parser.add_argument("config", help=f"YAML file; every key is a field of unicode.train.config.{config}")
    overrides = "values that replace those of the file, as train.steps=100; the pages of docs/configs list all fields"
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help=overrides)
    parser.add_argument("--dry-run", action="store_true", help="read config and data, build the model, then stop")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Read the config, build everything, train."""
    args = build_parser("train_tokenizer", __doc__, "TrainTokenizerConfig").parse_intermixed_args(argv)

    from unicode.train.config import TrainTokenizerConfig

    config = load_config(TrainTokenizerConfig, args.config, args.overrides)
    check_run_dir(Path(config.run.dir))

    from unicode.train.tokenizer import TokenizerTrainer

    trainer = TokenizerTrainer(config)
    logger.info("%s", trainer.describe())
    if not args.dry_run:
        logger.info("done: %s", trainer.run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
