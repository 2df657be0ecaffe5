"""Turn conversations about pictures into a question file with the right answers, which `unicode.run.answer` and the report read.

python -m unicode.run.export_questions --anno outputs/shapes/shapes_questions_val.json --out outputs/shapes/questions_val.jsonl
"""

from pathlib import Path

from unicode.annotations.exports import write_question_file
from unicode.run.command import command, log, new_parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("export_questions", __doc__, dry_run="find the first question, write nothing")
    parser.add_argument("--anno", required=True, type=Path, metavar="FILE", help="conversations of LLaVA's form, about one picture each")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="question file to write, .jsonl")
    parser.add_argument("--limit", type=int, default=0, help="the first so many questions (default: all)")
    parser.add_argument("--kinds", nargs="+", default=[], metavar="KIND", help="only these kinds, as colour shape place count")
    parser.add_argument("--no-instruction", action="store_true", help="ask without 'Answer the question using a single word or phrase.'")
    args = parser.parse_args(argv)
    if args.out.suffix != ".jsonl" or args.limit < 0:
        raise ValueError(f"--out {args.out} has to be a .jsonl file, --limit ({args.limit}) not negative")
    settings = {"limit": args.limit, "kinds": tuple(args.kinds), "instruct": not args.no_instruction}
    count = write_question_file(args.anno, args.out, **settings, dry_run=args.dry_run)
    if not args.dry_run:
        log.info("%s: %d questions", args.out, count)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
