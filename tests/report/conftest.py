"""Made-up folders in the forms that runs leave behind, and the page that is made of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

SIDE, NUM_EXAMPLES, NUM_QUESTIONS = 32, 6, 24
COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 200)}


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def square(colour: str, side: int = SIDE) -> Image.Image:
    picture = Image.new("RGB", (side, side), (235, 235, 230))
    picture.paste(COLOURS[colour], (side // 4, side // 4, side * 3 // 4, side * 3 // 4))
    return picture


def make_reconstruction(folder: Path) -> Path:
    folder.mkdir(parents=True)
    cell = SIDE + 2
    grid = Image.new("RGB", (2 + NUM_EXAMPLES * cell, 2 + 3 * cell))
    for row in range(3):
        for example in range(NUM_EXAMPLES):
            grid.paste(square(list(COLOURS)[example % 3]), (2 + example * cell, 2 + row * cell))
    grid.save(folder / "grid.png")
    level = {"rows": 512, "used": 100, "usage_percent": 19.5, "perplexity": 40.5, "entropy_bits": 5.3, "top1_share": 0.2}
    report = {
        "metrics": {
            "psnr": {"value": 35.51, "unit": "dB", "protocol": "per image"},
            "rfid": {"value": None, "reason": "no weights", "remedy": "give --inception FILE"},
        },
        "codes": {"levels": [{"level": 0, "codes": 4000, **level}, {"level": 1, "codes": 16000, **level}]},
        "protocol": {"num_images": 1000, "image_set": "shapes:val", "image_size": SIDE},
    }
    report["words"] = [{"key": "a.png", "caption": "a red square", "nearest": ["red", "crimson"]}]
    (folder / "metrics.json").write_text(json.dumps(report))
    return folder


def make_run(folder: Path, names: dict[str, float]) -> Path:
    steps = np.arange(20, 420, 20)
    lines = [{"step": int(step)} | {name: scale * float(np.exp(-step / 120)) + 0.01 for name, scale in names.items()} for step in steps]
    write_lines(folder / "metrics.jsonl", lines)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 440, "lo')
    (folder / "summary.json").write_text(json.dumps({"seconds": 61.5, "steps": 400, "losses": {"text": 0.1, "image": 0.4}}))
    return folder


def make_answers(folder: Path) -> tuple[Path, Path, Path]:
    folder.mkdir(parents=True)
    questions, answers, blind = [], [], []
    for number in range(NUM_QUESTIONS):
        colour = list(COLOURS)[number % 3]
        square(colour).save(folder / f"{number}.png")
        kind = ("colour", "count")[number % 2]
        text = "What colour is it?\nAnswer the question using a single word or phrase."
        questions.append({"question_id": number, "image": f"{number}.png", "text": text, "kind": kind, "answer": colour})
        answers.append({"question_id": number, "prompt": text, "text": f" {colour.title()}." if number % 4 else "<b>mauve</b>"})
        blind.append({"question_id": number, "prompt": text, "text": "red"})
    return tuple(
        write_lines(folder / f"{name}.jsonl", lines) for name, lines in (("questions", questions), ("answers", answers), ("blind", blind))
    )


def make_drawings(folder: Path, *, decompressed: bool) -> Path:
    folder.mkdir(parents=True)
    results = []
    for number, colour in enumerate([*COLOURS] * 3):
        square(colour).save(folder / f"{number}.png")
        line = {"id": str(number), "prompt": f"a {colour} square", "seed": number, "ids": [1, 2], "file": f"{number}.png", "seconds": 0.25}
        if decompressed:
            square(colour).save(folder / f"reference_{number}.png")
            line |= {"reference": f"reference_{number}.png", "psnr": 31.0, "exact": 0.95}
        results.append(line)
    write_lines(folder / "results.jsonl", results)
    if not decompressed:
        metrics = {"all": {"value": 83.0, "unit": "%"}, "shuffled_all": {"value": 4.5, "unit": "%"}}
        (folder / "metrics.json").write_text(json.dumps({"metrics": metrics}))
        (folder / "settings.json").write_text(json.dumps({"sampling": {"temperature": 0.5, "guidance": 2.0, "candidates": 16}}))
    return folder


def make_benchmarks(folder: Path, headline: float) -> Path:
    for name in ("pope", "gqa"):
        values = {"accuracy": headline, "adversarial": {"f1": 80.25, "yes_share": 0.5}}
        scores = {"benchmark": name, "title": name.upper(), "headline": headline, "unit": "%", "values": values, "protocol": "as LLaVA"}
        scores |= {"n_expected": 90, "n_answered": 88, "n_unparsed": 1, "notes": ["one file is missing"]}
        (folder / name).mkdir(parents=True)
        (folder / name / "scores.json").write_text(json.dumps(scores))
    return folder


def make_steps(path: Path) -> Path:
    steps = [("base", 61.2, 900.0), ("tokenizer", 128.0, 1400.5), ("lora", 700.0, 2100.0), ("vqa", 42.0, None)]
    long = "long/" * 40
    lines = [
        {"step": name, "command": f"python -m unicode.run.{name} --out {long}", "seconds": seconds, "peak_mib": peak, "skipped": False}
        for name, seconds, peak in steps
    ]
    return write_lines(path, [*lines, {"step": "base", "command": "", "seconds": 0.1, "peak_mib": None, "skipped": True}])


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> SimpleNamespace:
    """Paths of made-up runs, one attribute for each part of the report."""
    root = tmp_path_factory.mktemp("runs")
    questions, answers, blind = make_answers(root / "vqa")
    return SimpleNamespace(
        root=root,
        reconstruction=make_reconstruction(root / "reconstruction"),
        tokenizer=make_run(root / "hqvae", {"loss": 1.0, "usage_0": 0.5, "usage_1": 0.7, "val_psnr": 3.0, "lr": 0.002}),
        llm=make_run(root / "lora", {"loss": 3.0, "eval_loss": 3.1, "train/loss_vqa": 2.0, "tokens_per_second": 9000.0}),
        questions=questions,
        answers=answers,
        blind=blind,
        generation=make_drawings(root / "drawn", decompressed=False),
        decompression=make_drawings(root / "decompressed", decompressed=True),
        benchmarks=make_benchmarks(root / "benchmarks", 85.5),
        blind_benchmarks=make_benchmarks(root / "benchmarks" / "blank_grey", 50.0),
        steps=make_steps(root / "steps.jsonl"),
    )
