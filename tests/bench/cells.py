"""Compare `output_mode` ids and cells, with hard and soft targets, on the generated world: same base, tokenizer and seconds -> a table.

    bash scripts/quickstart.sh outputs/quickstart --data shapes
    python tests/bench/cells.py --quickstart outputs/quickstart --out outputs/cells --seconds 240 --processes 2

Every run tunes one model that reads and draws. A probe of each mode, both side by side, measures the seconds of a step; a run then gets
as many steps as fit into `--seconds`. Finished runs are kept; the same command goes on with the others and prints the table.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from unicode.images.shapes import ShapesConfig, find_scene

ROOT = Path(__file__).parents[2]
MODES, SMOOTHING = ("ids", "cells"), (0.0, 0.4)
PROBE_STEPS = 150
FILES = (
    "questions_train.json*0.6",
    "captions_train_t2v_full.json",
    "captions_train_t2v_part.json*0.1",
    "captions_train_decompression.json*0.4",
    "captions_train_uncond.json*0.4",
    "captions_train.json*0.05",
)
COLUMNS = ("steps", "drawn %", "one object %", "two objects %", "drawn, guidance 2 %", "questions %")


def run(*command: str) -> None:
    """Run a command of the project on one core."""
    subprocess.run(
        [sys.executable, "-m", *command],
        check=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def train(args: argparse.Namespace, folder: Path, *, mode: str, smoothing: float, seed: int, steps: int) -> dict[str, float]:
    """Tune a model and return its summary; a finished run is read."""
    made = Path(args.quickstart).resolve()
    files = ",".join(f"{made}/anno/shapes_{name}" for name in FILES)
    settings = [f"model.path={made}/base", f"model.image_tokenizer={made}/hqvae", "model.input_mode=sum", f"model.output_mode={mode}"]
    settings += [f"data.files=[{files}]", f"data.stores=[{made}/ids/train,{made}/ids/val]", "data.val_files=[]"]
    settings += [
        f"optimizer.code_smoothing={smoothing}",
        f"run.seed={seed}",
        f"run.dir={folder.resolve()}",
        "run.threads=1",
        "run.device=cpu",
    ]
    settings += [f"train.steps={steps}", "train.eval_every=0", "train.save_every=0", f"train.log_every={max(1, steps // 20)}"]
    run("unicode.run.train_llm", str(ROOT / "configs/llm/unicode_visual_text_shapes.yaml"), *settings)
    return json.loads((folder / "summary.json").read_text())


def held_out_captions(made: Path) -> Iterator[tuple[str, str]]:
    """Yield held-out captions, each with its scene as `eval_generation` reads it."""
    for record in json.loads((made / "anno/shapes_captions_val.json").read_text()):
        things = find_scene(ShapesConfig(), record["image"]).things
        yield record["conversations"][1]["value"], "; ".join(f"{one.colour} {one.shape} {one.place}" for one in things)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Draw held-out scenes with and without guidance and answer held-out questions with a tuned model."""
    made, found = Path(args.quickstart).resolve(), {}
    prompts = folder / "prompts.txt"  # in the words of the training captions
    prompts.write_text("".join(f"{caption}\t{scene}\n" for caption, scene in held_out_captions(made)))
    for guidance in (1, 2):
        out = folder / f"drawings_{guidance}"
        options = ["batch_size=50", "temperature=0", "limit=200", f"guidance={guidance}"]
        run("unicode.run.generate_images", "--model", str(folder), "--merge", *options, "--prompts", str(prompts), "--out", str(out))
        run("unicode.run.eval_generation", "--pictures", str(out), "--out", str(out / "metrics.json"))
        metrics = json.loads((out / "metrics.json").read_text())["metrics"]
        found[guidance] = {name: metrics[name]["value"] for name in ("all", "all_1", "all_2")}
    questions, answers = made / "anno/questions.jsonl", folder / "answers.jsonl"
    places = ["--images", "shapes", "--store", str(made / "ids/train"), "--store", str(made / "ids/val")]
    options = ["--model", str(folder), "--merge", *places, "--batch-size", "64", "--max-new-tokens", "16"]
    run("unicode.run.answer", *options, "--questions", str(questions), "--answers", str(answers))
    right = [json.loads(line)["answer"].lower() for line in questions.read_text().splitlines()]
    given = [json.loads(line)["text"].strip().lower() for line in answers.read_text().splitlines()]
    share = 100 * mean(a == b for a, b in zip(right, given, strict=True))
    return dict(zip(COLUMNS[1:], [*found[1].values(), found[2]["all"], share], strict=True))


def main() -> None:
    """Probe, run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", default="outputs/quickstart", help="folder of a finished quickstart of the shapes world")
    parser.add_argument("--out", default="outputs/cells", help="folder of runs and results")
    parser.add_argument("--seconds", type=float, default=240, help="training time of each run on one core")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="runs side by side")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(MODES)) as pool:
        probes = pool.map(lambda mode: train(args, out / f"probe_{mode}", mode=mode, smoothing=0.0, seed=0, steps=PROBE_STEPS), MODES)
        steps = {mode: round(args.seconds / probe["seconds"] * PROBE_STEPS) for mode, probe in zip(MODES, probes, strict=True)}
    print({mode: f"{args.seconds / count * 1000:.0f} ms a step" for mode, count in steps.items()}, flush=True)

    def work(job: tuple[int, str, float]) -> None:
        seed, mode, smoothing = job
        folder = out / f"{mode}_{smoothing}_{seed}"
        result = folder / "result.json"
        if not result.exists():
            train(args, folder, mode=mode, smoothing=smoothing, seed=seed, steps=steps[mode])
            result.write_text(json.dumps({"steps": steps[mode], **measure(args, folder)}))
            print(folder.name, result.read_text(), flush=True)

    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(work, product(range(args.seeds), MODES, SMOOTHING)))
    print("| mode | soft targets |", " | ".join(COLUMNS), "|\n|---|---|" + "---|" * len(COLUMNS))
    for mode, smoothing in product(MODES, SMOOTHING):
        runs = [json.loads((out / f"{mode}_{smoothing}_{seed}" / "result.json").read_text()) for seed in range(args.seeds)]
        columns = [[one[name] for one in runs] for name in COLUMNS]
        shown = [f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f}" for values in columns]
        print(f"| {mode} | {smoothing} |", " | ".join(shown), "|")


if __name__ == "__main__":
    main()
