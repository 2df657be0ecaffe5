"""LLaVA's twelve benchmarks: ask a model the questions, score the answers or write the submission file. The same command goes on.

    python -m unicode.run.benchmark pope --model outputs/unicode --data datasets/llava/eval --out outputs/unicode/eval
    python -m unicode.run.benchmark all --model outputs/unicode --data datasets/llava/eval --out outputs/unicode/eval
    python -m unicode.run.benchmark pope --answers answers.jsonl --data datasets/llava/eval --out outputs/scores
"""

import argparse
from pathlib import Path

from unicode.common.ranks import is_main
from unicode.metrics.benchmarks.table import BENCHMARKS
from unicode.run.benchmark_report import write_table
from unicode.run.benchmark_runner import Runner
from unicode.run.command import command

ALL = "all"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(prog="python -m unicode.run.benchmark", description="Ask a model the questions of a benchmark.")
    parser.add_argument("name", choices=(*BENCHMARKS, ALL), metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all: those that are there")
    parser.add_argument("--model", default="", help="folder of a trained model; not needed with --answers")
    parser.add_argument("--base", default="", help="the language model below it, if it is no longer where the training had it")
    parser.add_argument("--image-tokenizer", default="", help="the same for the image tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmarks, LLaVA's playground/data/eval (EVALUATION.md)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results: NAME/scores.json and more, table.md over all")
    parser.add_argument("--answers", type=Path, help="score this file of answers (with all: a folder of NAME.jsonl), ask nothing")
    parser.add_argument("--store", action="append", default=[], help="store of ids in which images are looked up first; may be repeated")
    parser.add_argument("--split", choices=("", "val"), default="", help="vqav2, vizwiz: val, which has answers (default: the test split)")
    parser.add_argument("--circular", action="store_true", help="mmbench: ask every question once for each rotation of its options")
    parser.add_argument("--blank-images", choices=("grey", "black", "none"), default="", help="blind baseline: what stands for every image")
    parser.add_argument("--limit", type=int, default=0, help="only so many questions, evenly spread (default: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="questions per batch (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=0, help="longest answer (default: LLaVA's, 128 or 1024 by benchmark)")
    parser.add_argument("--skip-missing-images", action="store_true", help="leave questions unanswered whose pictures are not there")
    judge_help = "llavabench: the judge behind OPENAI_BASE_URL, with OPENAI_API_KEY (default: JUDGE_MODEL of the environment)"
    parser.add_argument("--judge", default="", metavar="MODEL", help=judge_help)
    parser.add_argument("--judge-estimate", action="store_true", help="say what the judge would cost, do not ask it")
    parser.add_argument("--judge-workers", type=int, default=4, help="questions put to the judge at a time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="check files, questions, pictures and model; ask nothing")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """ValueError for arguments that do not go together, FileNotFoundError for folders that are not there."""
    if not args.model and args.answers is None:
        raise ValueError("nothing to score: give --model DIR to ask it, or --answers FILE with answers that are there")
    if args.model and args.answers is not None:
        raise ValueError("--answers scores answers that are there, without a model: leave out --model or --answers")
    if min(args.batch_size, args.judge_workers) < 1 or min(args.limit, args.max_new_tokens) < 0:
        numbers = f"--batch-size {args.batch_size}, --judge-workers {args.judge_workers}, --limit {args.limit}"
        raise ValueError(f"{numbers}, --max-new-tokens {args.max_new_tokens}: the first two are at least 1, the others not negative")
    if not args.data.is_dir():
        raise FileNotFoundError(f"no folder {args.data}; --data is the folder of the benchmarks, EVALUATION.md says what lies in it")
    if args.answers is not None and not args.answers.exists():
        raise FileNotFoundError(f"no file of answers {args.answers}; --answers is a file, or with all a folder of NAME.jsonl")


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args(argv)
    check_arguments(args)
    if args.model and not args.dry_run:
        from unicode.run.job import open_job

        open_job(args.device)
    runner = Runner(args)
    failed = runner.run_all() if args.name == ALL else []
    if args.name != ALL:
        runner.run(BENCHMARKS[args.name])
    if is_main() and not args.dry_run:
        print(write_table(args.out))
    if failed:
        raise ValueError(f"{len(failed)} of the benchmarks failed: {'; '.join(failed)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
