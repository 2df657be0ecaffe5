"""From nothing to a report: a language model, its codebook, an image tokenizer, ids, tuning, answers, drawings, benchmarks, one HTML page.

    python -m unicode.run.quickstart                        on the generated world, CPU or GPU
    python -m unicode.run.quickstart --data stamps          on real captioned pictures (Debian's tuxpaint-stamps-default)
    python -m unicode.run.quickstart --only drawings report

Each step is one plain command, printed before it runs. The same command again skips what is done and goes on where it stopped.
"""

import argparse
import os
import socket
from pathlib import Path

from unicode.run.command import command
from unicode.run.pipeline import choose_steps, run_steps
from unicode.run.recipes import RECIPES, plan, smollm2


def build_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m unicode.run.quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default="outputs/quickstart", help="folder of everything (default: %(default)s)")
    parser.add_argument("--data", choices=sorted(RECIPES), default="shapes", help="pictures (default: %(default)s, the generated world)")
    parser.add_argument("--llm", default="", metavar="MODEL", help="smollm2, a Hugging Face folder or a .gguf file (default: made, small)")
    parser.add_argument("--from", dest="first", default="", metavar="STEP", help="begin with this step")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="run these steps, done before or not")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    return parser


def machine_settings() -> dict[str, str]:
    """Return the variables that the scripts should find: two processes on a CPU with two cores or more, and a free port for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = os.environ.get("NUM_RANKS") or str(min(2, os.cpu_count() or 1))
    return {"NUM_RANKS": ranks, "MASTER_PORT": os.environ.get("MASTER_PORT") or str(port)}


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    out = Path(args.out)
    llm = smollm2() if args.llm == "smollm2" else args.llm
    steps = choose_steps(plan(RECIPES[args.data](out, llm)), first=args.first, only=args.only)
    if args.dry_run:
        for step in steps:
            print(f"{step.name}: {step.line()}")
        return 0
    code = run_steps(steps, out, environment=machine_settings(), again=bool(args.only))
    if not code:
        print(f"\nreport: {out / 'report.html'}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
