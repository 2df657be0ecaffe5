"""Compare `output_mode` ids and cells, with hard and soft targets, on the generated world: same base, tokenizer and seconds -> a table.

    bash scripts/quickstart.sh outputs/quickstart --data shapes
    python tests/bench/cells.py --quickstart outputs/quickstart --out outputs/cells --seconds 240 --processes 2

Every run tunes one model that reads and draws. A probe of each mode, both side by side, measures the seconds of a step; a run then gets
as many steps as fit into `--seconds`. Finished runs are kept; the same command goes on with the others and prints the table.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean

from runs import answer, draw, one_core, print_means, read_results, start_missing, tune

from unicode.images.shapes import ShapesConfig, find_scene

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


def train(args: argparse.Namespace, folder: Path, *, mode: str, smoothing: float, seed: int, steps: int) -> None:
    """Tune a model; a finished run is left as it is."""
    made = Path(args.quickstart).resolve()
    settings = ["model.input_mode=sum", f"model.output_mode={mode}", f"optimizer.code_smoothing={smoothing}"]
    settings += one_core(folder, seed=seed, steps=steps)
    stores, files = [made / "ids/train", made / "ids/val"], [made / f"anno/shapes_{name}" for name in FILES]
    tune("unicode_visual_text_shapes", *settings, base=made / "base", tokenizer=made / "hqvae", files=files, stores=stores)


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
        settings = ["temperature=0", "limit=200", f"guidance={guidance}"]
        metrics = draw(folder, prompts, folder / f"drawings_{guidance}", *settings)
        found[guidance] = {name: metrics[name]["value"] for name in ("all", "all_1", "all_2")}
    stores = [made / "ids/train", made / "ids/val"]
    right = answer(folder, made / "anno/questions.jsonl", folder / "answers.jsonl", stores, "--images", "shapes")
    share = 100 * mean(fits for _, fits in right)
    return dict(zip(COLUMNS[1:], [*found[1].values(), found[2]["all"], share], strict=True))


def main() -> None:
    """Probe, run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", default="outputs/quickstart", help="folder of a finished quickstart of the shapes world")
    parser.add_argument("--out", default="outputs/cells", help="folder of runs and results")
    parser.add_argument("--seconds", type=float, default=240, help="training time of each run on one core")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="runs side by side")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = Path(args.out)
    if args.one:
        folder, mode, smoothing, seed, steps = args.one
        train(args, out / folder, mode=mode, smoothing=float(smoothing), seed=int(seed), steps=int(steps))
        if not folder.startswith("probe"):
            (out / folder / "result.json").write_text(json.dumps({"steps": int(steps), **measure(args, out / folder)}))
        return
    probes = {mode: out / f"probe_{mode}" / "summary.json" for mode in MODES}
    start_missing({path: (path.parent.name, mode, 0.0, 0, PROBE_STEPS) for mode, path in probes.items()}, len(MODES))
    seconds = {mode: probe["seconds"] for mode, probe in zip(MODES, read_results(probes.values()), strict=True)}
    steps = {mode: round(args.seconds / each * PROBE_STEPS) for mode, each in seconds.items()}
    print({mode: f"{args.seconds / count * 1000:.0f} ms a step" for mode, count in steps.items()}, flush=True)
    names = {job: f"{job[1]}_{job[2]}_{job[0]}" for job in product(range(args.seeds), MODES, SMOOTHING)}
    jobs = {out / name / "result.json": (name, *job[1:], job[0], steps[job[1]]) for job, name in names.items()}
    start_missing(jobs, args.processes)
    results = {
        one: read_results(out / names[seed, *one] / "result.json" for seed in range(args.seeds)) for one in product(MODES, SMOOTHING)
    }
    print_means(["mode", "soft targets"], results, COLUMNS)


if __name__ == "__main__":
    main()
