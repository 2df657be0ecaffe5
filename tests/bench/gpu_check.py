"""Everything that needs a card, in ten minutes: tests, training step, search, encoding, language model -> one JSON file and one table.

    sh scripts/gpu_check.sh [--out outputs/gpu_check] [--only PART ...]
    sh scripts/gpu_check.sh --device cpu --small          the same code at tiny sizes, for machines without a card

Each part is a bench script or a choice of tests in a process of its own, so that one that fails leaves its last line and the others run.
The card's own rate of bf16 matrix products is measured first; the share of the training step is of that rate. Exit code 1 if a part
failed; a bench that misses its target is not a failure.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
LIMIT = 600.0  # seconds for everything
PACKAGES = ("torch", "torchvision", "transformers", "peft", "accelerate", "deepspeed", "vector-quantize-pytorch")
NUMBER = r"\s+([\d.]+)"


@dataclass
class Part:
    """A command, its arguments on a card and at small size on a CPU, and patterns of the figures in what it prints."""

    command: str
    large: str
    small: str
    figures: dict[str, str] = field(default_factory=dict)
    seconds: float = 120.0


STEP = {"images/s": "images/s" + NUMBER, "peak memory, MiB": "peak memory" + NUMBER, "T operations/s": "operations per second" + NUMBER}
STEP |= {"share of the matrix rate, %": r"share of the matrix peak" + NUMBER}
LLM = {"ids, tokens/s": r"ids: .*\n\s+tokens/s" + NUMBER, "tower, tokens/s": r"tower: .*\n\s+tokens/s" + NUMBER}
LLM |= {"ids / tower, conversations/s": r"ids / tower, conversations/s:" + NUMBER}
DRAWN = {f"guided {way}, pictures/s": rf"{way}, guided.*picture{NUMBER}" for way in ("ids", "cells")}
DRAWN |= {"ids, times transformers": r"ids:" + NUMBER}
ENCODED = {"images/s": "encode_images" + NUMBER, "in memory, images/s": "in memory" + NUMBER}
MODEL = "--width 2048 --layers 16 --dtype bfloat16 --batch-size 16 --repeats 2"
TINY = "--width 64 --layers 2 --vocab 2000 --rows 500 --batch-size 2 --repeats 1 --ids 20"
PASSED = {"passed": r"(\d+) passed", "skipped": r"(\d+) skipped"}
PARTS = {
    "tests": Part("-m pytest -q -m gpu", "tests", "tests/codebook tests/generate", PASSED),
    "compile, adaptive weight, resume": Part("-m pytest -q tests/train/test_tokenizer.py -k", "compiled", "compiled", PASSED, 150),
    "HQ-VAE step, bf16, compiled, channels last": Part(
        "tests/bench/train_step.py --precision bf16 --channels-last",
        "--config configs/tokenizer/hqvae_llava_concat.yaml --batch 64 --rows 32000 --table-width 4096 --steps 10 --compile",
        "--batch 2 --image-size 32 --rows 200 --table-width 16 --steps 1",
        STEP,
        150,
    ),
    "codebook search": Part(
        "tests/bench/codebook_search.py",
        "--vectors 65536",
        "--vectors 256 --rows 300 --width 16 --repeats 1",
        {"ours, s": "ours" + NUMBER, "vector-quantize-pytorch, s": "VectorQuantize" + NUMBER},
        60,
    ),
    "encoding, float32": Part(
        "tests/bench/encode_images.py",
        "--images 2048 --channels 128 --rows 8192 --repeats 1",
        "--images 4 --size 32 --channels 32 --rows 100 --repeats 1 --workers 0",
        ENCODED,
        90,
    ),
    "encoding, bf16": Part(
        "tests/bench/encode_images.py --precision bf16",
        "--images 2048 --channels 128 --rows 8192 --repeats 1",
        "--images 4 --size 32 --channels 32 --rows 100 --repeats 1 --workers 0",
        ENCODED,
        90,
    ),
    "LLM step, ids and tower": Part(
        "tests/bench/llm_step.py --precision bf16",
        "--width 2048 --layers 22 --hidden 5632 --heads 16 --vocab 32000 --image-size 256",
        "--width 32 --layers 1 --hidden 48 --heads 2 --batch 2 --steps 1",
        LLM,
    ),
    "drawing, dynamic cache": Part("tests/bench/text_to_image.py", MODEL, TINY, DRAWN),
    "drawing, static cache, compiled": Part("tests/bench/text_to_image.py --cache static", f"{MODEL} --compiled", TINY, DRAWN),
    "batched answers": Part(
        "tests/bench/batched_answers.py --dtype bfloat16",
        "--shapes smol --batch-size 64 --questions 256 --repeats 1",
        "--shapes tiny --batch-size 2 --questions 4 --new-tokens 2 --repeats 1",
        {"one at a time, questions/s": r"batch 1 " + NUMBER, "batched, questions/s": r"batch (?!1 )\d+" + NUMBER},
        90,
    ),
}


def matrix_rate(device: torch.device, size: int) -> float:
    """Return bf16 operations/s of a product of two square matrices, the best of several."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def describe(device: str) -> dict[str, str]:
    """Return the card, its driver, and the versions of what computes."""
    found = {"machine": platform.machine(), "python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if device == "cuda":
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found["driver"] = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split("\n")[0]
        except (OSError, subprocess.SubprocessError) as error:
            found["driver"] = f"unknown ({type(error).__name__})"
        found["machine"] = torch.cuda.get_device_name()
    return found


def run_part(part: Part, args: argparse.Namespace, *, rate: float, seconds: float) -> dict[str, object]:
    """Run a command; return its figures, seconds, and its last line if it failed."""
    words = [sys.executable, *part.command.split(), *(part.small if args.small else part.large).split()]
    words += [] if "pytest" in part.command else ["--device", args.device]
    words += ["--peak", str(rate)] if "train_step" in part.command and rate else []
    start, printed, code = time.perf_counter(), "", 1
    try:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, timeout=seconds, check=False, **output)
        printed, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        so_far = error.stdout or b""
        printed = (so_far.decode(errors="replace") if isinstance(so_far, bytes) else so_far) + f"\nnot finished after {seconds:.0f} s"
    except OSError as error:
        printed = str(error)
    matches = {name: re.search(pattern, printed) for name, pattern in part.figures.items()}
    figures = {name: float(match[1]) for name, match in matches.items() if match}
    tests = "pytest" in part.command
    failed = code not in (0, 5) if tests else not figures  # 5: no test was chosen; a bench has code 1 where it misses its target
    lines = [line for line in printed.splitlines() if line.strip()] or ["printed nothing"]
    result = {"command": " ".join(words[1:]), "seconds": round(time.perf_counter() - start, 1), "figures": figures}
    return result | ({"error": lines[-1][:300]} if failed else {})


def table(report: dict[str, object]) -> str:
    """Return the report as Markdown."""
    machine: dict[str, str] = report["machine"]  # type: ignore[assignment]
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    lines += [f"Matrix products in bf16: {report['matrix_rate'] / 1e12:.1f} T operations/s.", ""]  # type: ignore[operator]
    lines += ["| part | figures | s |", "|---|---|---|"]
    for name, part in report["parts"].items():  # type: ignore[attr-defined]
        figures = "; ".join(f"{what} {value:g}" for what, value in part["figures"].items())
        found = f"failed: {part['error']}".replace("|", "/") if "error" in part else figures or "none"
        lines.append(f"| {name} | {found} | {part['seconds']} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the parts one after another; write both files after each."""
    parser = argparse.ArgumentParser(description="Check and measure everything that needs a card.")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/gpu_check", help="folder of gpu_check.json and gpu_check.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; run it on a machine with one, or try the code with --device cpu --small", file=sys.stderr)
        return 2
    start, rate = time.perf_counter(), 0.0
    report: dict[str, object] = {"machine": describe(args.device), "small": args.small, "matrix_rate": rate}
    parts: dict[str, dict[str, object]] = {}
    try:
        rate = report["matrix_rate"] = matrix_rate(torch.device(args.device), 256 if args.small else 8192)
    except RuntimeError as error:
        parts["matrix products"] = {"figures": {}, "seconds": 0, "error": str(error).splitlines()[0]}
    report["parts"] = parts
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        left = LIMIT - (time.perf_counter() - start)
        parts[name] = run_part(PARTS[name], args, rate=rate, seconds=max(1.0, min(PARTS[name].seconds, left)))
        print(f"{name}: {parts[name].get('error') or parts[name]['figures']}", flush=True)
        (args.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "gpu_check.md").write_text(table(report))
    print(f"{args.out / 'gpu_check.md'}, {time.perf_counter() - start:.0f} s")
    return int(any("error" in part for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
