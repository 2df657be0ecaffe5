"""Training curves: the metrics of runs -> charts, one for each group of names that belong together."""

import re
from collections.abc import Mapping
from pathlib import Path

from unicode.report.chart import Points, line_chart
from unicode.report.page import Section, gallery, hidden, missing, table
from unicode.report.runs import Metrics, read_metrics, read_object

TITLES = {
    "loss": "loss",
    "usage": "share of the codebook's rows in use",
    "perplexity": "perplexity of the codes",
    "psnr": "PSNR of validation images, dB",
    "commitment": "commitment loss",
    "images_per_second": "images per second",
    "tokens_per_second": "tokens per second",
}
FIRST = ("loss", "psnr", "accuracy", "usage", "perplexity")
"""Groups that are shown at once; the rest opens on demand."""
DETAIL = re.compile(
    r"lr$|learning_rate|gradient|grad_norm|epoch|seconds|_per_|weight|memory|images$|tokens$|samples|commitment|l1|l2|steps|flos|runtime"
)


def group_name(name: str) -> str:
    """Return what a metric belongs to: "usage" for usage_0 and usage_1, "loss" for loss, val_loss and train/loss_vqa."""
    stem = re.sub(r"^(?:train|eval|val)[/_]", "", name)
    stem = re.sub(r"_\d+$", "", stem)
    parts = re.split(r"[/_]", stem)
    return "loss" if "loss" in parts else stem


def group_series(metrics: Metrics) -> dict[str, dict[str, Points]]:
    """Return group -> name -> points (step, value), groups to be shown at once first."""
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name != "step":
                groups.setdefault(group_name(name), {}).setdefault(name, []).append((line["step"], value))
    order = sorted(groups, key=lambda group: (FIRST.index(group) if group in FIRST else len(FIRST), group))
    return {group: dict(groups[group]) for group in order}


def run_charts(metrics: Metrics) -> str:
    """Return the charts of one run as HTML, the less telling ones hidden; "" when there is nothing to draw."""
    shown: list[str] = []
    others: list[str] = []
    for group, series in group_series(metrics).items():
        drawn = line_chart(TITLES.get(group, group.replace("_", " ")), series)
        if drawn:
            (others if DETAIL.search(group) else shown).append(drawn)
    body = gallery(shown, kind="charts") if shown else ""
    return body + (hidden("more curves", gallery(others, kind="charts")) if others else "")


def training_section(runs: Mapping[str, str | Path]) -> Section:
    """Return the section of curves, for runs by name."""
    parts = []
    for name, folder in runs.items():
        parts.append(f"<h3>{name}</h3>")
        metrics = read_metrics(folder)
        parts.append(run_charts(metrics) or missing(f"no curves: {Path(folder) / 'metrics.jsonl'} holds no steps of a run.", ""))
        summary = [(key.replace("_", " "), value) for key, value in _flat(read_object(Path(folder) / "summary.json"))]
        if summary:
            parts.append(hidden("summary of the run", table(["", "value"], summary)))
    if not parts:
        parts.append(missing("No training run was named; give --tokenizer and --llm.", ""))
    return Section("Training curves", "\n".join(parts), "Training")


def _flat(content: Mapping[str, object], prefix: str = "") -> list[tuple[str, str | float]]:
    """Nested objects as lines of dotted names."""
    lines: list[tuple[str, str | float]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            lines.append((prefix + key, value))
        elif value is not None:
            lines.append((prefix + key, str(value)))
    return lines
