"""Tune a language model on conversations: `python -m unicode.run.train_llm CONFIG.yaml [a.b=c ...]`; the same command resumes."""

import argparse
from pathlib import Path

from unicode.common.config import load_config
from unicode.common.logging import get_logger
from unicode.run.command import command
from unicode.run.train_tokenizer import check_run_dir

logger = get_logger(__name__)


@command
def main(argv: list[str] | None = None) -> int:
    """Read the config, build everything, train."""
    parser = argparse.ArgumentParser(prog="unicode.run.train_llm", description=__doc__)
    parser.add_argument("config", help="YAML file; every key is a field of unicode.train.config.TrainLlmConfig")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="values that replace those of the file, for example train.steps=100")
    parser.add_argument("--preview", type=int, default=0, metavar="N", help="print N training samples, learned tokens marked, then stop")
    parser.add_argument("--dry-run", action="store_true", help="read config and data, build the model, then stop")
    args = parser.parse_intermixed_args(argv)

    from unicode.train.config import TrainLlmConfig

    config = load_config(TrainLlmConfig, args.config, args.overrides)
    check_run_dir(Path(config.run.dir), example="outputs/llm")

    from unicode.train.llm import LlmTraining

    training = LlmTraining(config)
    if args.preview:
        training.preview(args.preview)
        return 0
    logger.info("%s", training.describe())
    if args.dry_run:
        return 0
    logger.info("done: %s", training.run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
