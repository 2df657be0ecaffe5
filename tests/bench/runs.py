"""What comparisons share: jobs of one thread whose results are kept, tuning, drawing and answering, pictures through tokenizers, tables."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[2]


def start_missing(jobs: Mapping[Path, Sequence[object]], processes: int) -> None:
    """Start this script with `--one WORDS` for each result that is not there, on one core each; what it prints goes to a .log beside it.

    Raises RuntimeError: a job failed, or made no result.
    """

    def start(job: tuple[Path, Sequence[object]]) -> None:
        result, words = job
        if result.exists():
            return
        result.parent.mkdir(parents=True, exist_ok=True)
        with (log := result.with_suffix(".log")).open("w") as file:
            command = [sys.executable, *sys.argv, "--one", *map(str, words)]
            done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=file, stderr=file)
        if done.returncode or not result.exists():
            raise RuntimeError(f"{' '.join(map(str, words))} failed with exit code {done.returncode}; see {log}")
        print(*words, " ".join(result.read_text().split()), flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(start, jobs.items()))


def read_results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the results of finished jobs."""
    return [json.loads(path.read_text()) for path in paths]


def call(name: str, *words: object) -> None:
    """Run a command of the project in this process. Raises RuntimeError: it failed."""
    if code := import_module(f"unicode.run.{name}").main([*map(str, words)]):
        raise RuntimeError(f"unicode.run.{name} ended with exit code {code}")


def codebook_modes(rows: int) -> dict[str, list[str]]:
    """Overrides of a tokenizer's config for each codebook mode, of so many rows; those of `language` suit small data."""
    settings = {
        "free": ["model.codebook.width=16"],
        "frozen": ["model.codebook.width=0"],
        "language": ["model.codebook.width=0", "model.codebook.restart_threshold=0"],
        "projected": [],
    }
    return {mode: [f"model.codebook.mode={mode}", f"model.codebook.num_rows={rows}", *own] for mode, own in settings.items()}


def one_core(folder: Path, *, seed: int, steps: int, device: str = "cpu") -> list[str]:
    """Overrides of both trainings: one thread, measured and saved at the end alone."""
    made = [f"run.dir={folder.resolve()}", f"run.seed={seed}", "run.threads=1", f"run.device={device}"]
    return [*made, f"train.steps={steps}", "train.eval_every=0", "train.save_every=0", f"train.log_every={max(1, steps // 20)}"]


def train_tokenizer(config: str, settings: Sequence[str]) -> tuple[Any, Any]:
    """Train a tokenizer with a config of configs/tokenizer; return it as it encodes, and the config."""
    from unicode.common.config import load_config
    from unicode.train.config import TrainTokenizerConfig
    from unicode.train.tokenizer import TokenizerTrainer

    loaded = load_config(TrainTokenizerConfig, ROOT / f"configs/tokenizer/{config}.yaml", settings)
    trainer = TokenizerTrainer(loaded)
    trainer.run()
    return trainer.tokenizer.eval(), loaded


def coded(tokenizer: Any, config: Any, split: str, *, limit: int = 0) -> Iterator[tuple[Any, Any, Any]]:
    """Yield batches of a split of the data of a TrainTokenizerConfig, each with its codes (B, N) and its PSNR (B,) in dB."""
    from unicode.images.dataset import build_dataset
    from unicode.images.loader import build_loader
    from unicode.tokenizer.losses import image_psnr

    dataset = build_dataset(replace(config.data, split=split, limit=limit), image_size=config.model.image_size, train=False)
    order = [list(range(first, min(first + 64, len(dataset)))) for first in range(0, len(dataset), 64)]
    for batch in build_loader(dataset, order, num_workers=0):
        codes = tokenizer.encode(batch.images)
        yield batch, codes, image_psnr(tokenizer.decode(codes), batch.images)


def tune(config: str, *settings: str, base: Path, tokenizer: Path, files: Iterable[object], stores: Iterable[Path]) -> None:
    """Tune a base model with a config of configs/llm; `settings` come last."""
    made = [f"model.path={base}", f"model.image_tokenizer={tokenizer}", "data.val_files=[]"]
    made += [f"data.{name}=[{','.join(map(str, values))}]" for name, values in (("files", files), ("stores", stores))]
    call("train_llm", ROOT / f"configs/llm/{config}.yaml", *made, *settings)


def draw(model: Path, prompts: Path, out: Path, *settings: str, gallery: Path | None = None, score: bool = True) -> dict[str, Any]:
    """Draw prompts with a tuned model; return the metrics of `eval_generation`."""
    call("generate_images", "--model", model, "--merge", "batch_size=50", *settings, "--prompts", prompts, "--out", out)
    if score:
        call("eval_generation", "--pictures", out, "--out", out / "metrics.json", *(("--gallery", gallery) if gallery else ()))
    return json.loads((out / "metrics.json").read_text())["metrics"] if score else {}


def answer(model: Path, questions: Path, answers: Path, stores: Iterable[Path], *options: str) -> list[tuple[dict[str, Any], bool]]:
    """Answer a question file; return its records, each with whether the answer is right but for case and a full stop."""

    def plain(text: str) -> str:
        return text.strip().strip(".").lower()

    places = [word for store in stores for word in ("--store", store)]
    asked = ["--questions", questions, "--answers", answers, "--batch-size", 64, "--max-new-tokens", 16]
    call("answer", "--model", model, "--merge", *places, *options, *asked)
    given = {one["question_id"]: one["text"] for one in map(json.loads, answers.read_text().splitlines())}
    records = map(json.loads, questions.read_text().splitlines())
    return [(one, plain(given[one["question_id"]]) == plain(one["answer"])) for one in records]


def shown(values: Sequence[float], form: str = ".1f") -> str:
    """Return mean and standard deviation as text."""
    return f"{mean(values):{form}} ± {stdev(values) if len(values) > 1 else 0:{form.lstrip('+')}}"


def differences(name: str, runs: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]) -> list[float]:
    """Return a column of runs minus that of other runs, paired by their order."""
    return [one[name] - other[name] for one, other in zip(runs, others, strict=True)]


def print_table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Print a table in Markdown."""
    head = [*head]
    print("|", " | ".join(map(str, head)), "|\n|" + "---|" * len(head))
    for row in rows:
        print("|", " | ".join(map(str, row)), "|")


def print_means(
    head: Iterable[str],
    results: Mapping[tuple[Any, ...], list[dict[str, float]]],
    columns: Sequence[str],
    *,
    form: str = ".1f",
    default: tuple[Any, ...] = (),
) -> None:
    """Print a table of the means of runs; with a default, in brackets those of their differences to its runs."""
    rows = []
    for key, runs in results.items():
        cells = [shown([run[name] for run in runs], form) for name in columns]
        if default:
            paired = (shown(differences(name, runs, results[default]), f"+{form}") for name in columns)
            cells = [f"{cell} ({one})" for cell, one in zip(cells, paired, strict=True)]
        rows.append([*key, *cells])
    print_table([*head, *columns], rows)


def print_claims(
    claims: Mapping[str, tuple[int, str, str]],
    results: Mapping[tuple[Any, ...], list[dict[str, float]]],
    columns: Sequence[str],
    *,
    lower: Iterable[str] = (),
) -> None:
    """Print for each claim (factor, what is better, than what) the differences of runs that differ in it alone, and how many agree.

    `lower`: columns that are better low.
    """
    rows = []
    for claim, (place, better, worse) in claims.items():
        pairs = [(key, (*key[:place], worse, *key[place + 1 :])) for key in results if key[place] == better]
        row = [claim]
        for name in columns:
            found = [one for key, other in pairs if other in results for one in differences(name, results[key], results[other])]
            agree = sum(one < 0 if name in lower else one > 0 for one in found)
            row.append(f"{shown(found, '+.2f')} ({agree} of {len(found)})")
        rows.append(row)
    print_table(["claim", *columns], rows)
