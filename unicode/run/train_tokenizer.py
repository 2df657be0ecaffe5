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


@command
def main(argv: list[str] | None = None) -> int:
    """Read the config, build everything, train."""
    parser = argparse.ArgumentParser(prog="unicode.run.train_tokenizer", description=__doc__)
    parser.add_argument("config", help="YAML file; every key is a field of unicode.train.config.TrainTokenizerConfig")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace those of the file, for example train.steps=100")
    parser.add_argument("--dry-run", action="store_true", help="read config, data and table, build the model, then stop")
    args = parser.parse_intermixed_args(argv)

    from unicode.train.config import TrainTokenizerConfig

    config = load_config(TrainTokenizerConfig, args.config, args.overrides)
    check_run_dir(Path(config.run.dir))

    from unicode.train.tokenizer import TokenizerTrainer

    trainer = TokenizerTrainer(config)
    size = sum(parameter.numel() for parameter in trainer.tokenizer.parameters()) / 1e6
    layout = trainer.tokenizer.layout
    model = f"{config.model.type}, {size:.1f} M parameters, {layout.num_codes} ids per image from {trainer.tokenizer.num_rows} rows"
    logger.info("%s; %d images, %d steps on %s", model, len(trainer.dataset), trainer.steps, trainer.device)
    if args.dry_run:
        return 0
    checkpoint = trainer.run()
    logger.info("done: %s", checkpoint)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
