"""Tune a language model on conversations: `python -m unicode.run.train_llm CONFIG.yaml [a.b=c ...]`; the same command resumes."""

from unicode.run.command import command, log
from unicode.run.train_tokenizer import build_parser, read_config


@command
def main(argv: list[str] | None = None) -> int:
    parser = build_parser("train_llm", __doc__, "TrainLlmConfig")
    parser.add_argument("--preview", type=int, default=0, metavar="N", help="print N training samples, learned tokens marked, then stop")
    args = parser.parse_intermixed_args(argv)

    from unicode.train.config import TrainLlmConfig

    config = read_config(TrainLlmConfig, args)

    from unicode.train.llm import LlmTraining

    training = LlmTraining(config)
    if args.preview:
        training.preview(args.preview)
        return 0
    log.info("%s", training.describe())
    if not args.dry_run:
        log.info("done: %s", training.run())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
