"""Answer a file of questions about images. The same command resumes a stopped one.

python -m unicode.run.answer --model outputs/unicode_lora --questions questions.jsonl --images photos/ --answers answers.jsonl
"""

from functools import partial
from pathlib import Path
from typing import Any

from unicode.common.distributed import is_main
from unicode.run.command import add_model_options, command, log, new_parser, open_named_engine

SHOWN_ERRORS = 10


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("answer", __doc__, dry_run="open everything, look for the images, answer nothing")
    add_model_options(parser, "run folder of train_llm, folder of merge_lora, LLaVA folder or plain model", engine=True)
    parser.add_argument("--questions", required=True, help="LLaVA's question file: JSON lines with question_id, text and image")
    parser.add_argument("--answers", required=True, help="file of answers to write or to resume")
    places = "folder that image paths start from, LMDB folder, tar shards or shapes; may be repeated (default: the working folder)"
    parser.add_argument("--images", action="append", default=[], metavar="PLACE", help=places)
    parser.add_argument("--store", action="append", default=[], help="store of ids in which images are looked up first; may be repeated")
    parser.add_argument("--batch-size", type=int, default=16, help="questions per batch, or at each engine (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer in tokens (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample among the likeliest with this probability together")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--blank-images", default="", help="blind baseline: grey, black (a picture of it) or none (no image at all)")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many questions")
    args = parser.parse_args(argv)
    from unicode.generate.answers import AnswerConfig, answer_questions
    from unicode.generate.jobs import ResultFile, answer_line
    from unicode.generate.questions import ImageReader, open_lookup, read_questions
    from unicode.ids.store import Store
    from unicode.serve.engines import answer_with

    config = AnswerConfig(args.batch_size, args.max_new_tokens, args.temperature, args.top_p, args.seed)
    asked = read_questions(args.questions)
    asked = asked[: args.limit or len(asked)]
    model, engine = open_named_engine(args)
    ask = partial(answer_with, engine, config) if engine is not None else None
    stores = [Store(path) for path in args.store]
    pictures = None if args.blank_images else open_lookup(args.images, model)
    with ImageReader(model, stores=stores, pictures=pictures, blank=args.blank_images) as images:
        if args.dry_run:
            lost = images.missing(str(name) for question in asked for name in question.images)
            log.info("%d questions, %d images not found%s", len(asked), len(lost), f", the first is '{lost[0]}'" if lost else "")
            return 0
        model_id = Path(args.model).resolve().name
        made_by = {
            "model": model.fingerprint,
            "dtype": " ".join(engine.kinds) if engine else str(model.lm.dtype),
            "blank_images": args.blank_images,
            **config.made_by(),
        }
        with ResultFile(args.answers, [one.key for one in asked], made_by=made_by) as file:
            share = [asked[place] for place in file.share()]
            if len(file.missing) < len(asked):
                log.info("%s: %d of %d questions are answered already", file.path, len(asked) - len(file.missing), len(asked))
            for index, answer in answer_questions(model, share, config=config, images=images, ask=ask, progress=True):
                head = {"question_id": share[index].id, "prompt": share[index].text}
                head |= {name: value for name, value in share[index].fields.items() if name == "round_id"}
                metadata = {"num_tokens": answer.num_tokens, "finished": answer.finished}
                file.put(answer_line(file, head, answer.text, model_id=model_id, metadata=metadata, error=answer.error))
            summary = file.finish()
    if is_main():
        report(summary, args.answers)
    return 0


def report(summary: Any, path: str) -> None:
    """Log how many questions are answered, and which are not and why."""
    for key, reason in list(summary.errors.items())[:SHOWN_ERRORS]:
        log.warning("question %s has no answer: %s", key[0], reason)
    if len(summary.errors) > SHOWN_ERRORS:
        log.warning("... and %d more; their lines in %s have the reasons", len(summary.errors) - SHOWN_ERRORS, path)
    damaged = f", {summary.damaged} damaged lines of an earlier run were asked again" if summary.damaged else ""
    errors = f", {len(summary.errors)} without answer (the same command asks them again)" if summary.errors else ""
    log.info("%s: %d of %d questions answered%s%s", path, summary.done, summary.total, errors, damaged)


if __name__ == "__main__":
    raise SystemExit(main())
