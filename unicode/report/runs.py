"""What runs leave on disk, read for a report: lines of metrics, reports of evaluations, steps of a pipeline. Missing things are empty."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unicode.common.files import read_json

Metrics = list[dict[str, float]]
"""Lines of a metrics.jsonl: "step" and numbers by name."""


@dataclass(frozen=True)
class Step:
    """One step of a pipeline."""

    name: str
    command: str
    seconds: float
    peak_mib: float | None
    skipped: bool


def lines_of(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file; lines that are cut short or no objects are passed over, as a run may still be writing."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def read_metrics(folder: str | Path) -> Metrics:
    """Return the lines of a run's metrics.jsonl that name a step, in order of steps; only their numbers."""
    kept = []
    for line in lines_of(Path(folder) / "metrics.jsonl"):
        numbers = {name: float(value) for name, value in line.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        if "step" in numbers:
            kept.append(numbers)
    return sorted(kept, key=lambda line: line["step"])


def read_object(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where there is no such file.

    Raises:
        ValueError: the file is not JSON, or holds something else.
    """
    if not Path(path).is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def read_steps(path: str | Path) -> list[Step]:
    """Return the steps of a pipeline in the order in which they first ran.

    A step that ran several times counts as it last did its work; times of being skipped count only where there is nothing else.
    """
    steps: dict[str, Step] = {}
    for line in lines_of(path):
        if "step" not in line:
            continue
        peak = line.get("peak_mib")
        step = Step(
            name=str(line["step"]),
            command=str(line.get("command", "")),
            seconds=float(line.get("seconds") or 0),
            peak_mib=float(peak) if peak else None,
            skipped=bool(line.get("skipped")),
        )
        if step.name not in steps or not step.skipped:
            steps[step.name] = step
    return list(steps.values())


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the items, evenly taken, in their order; all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
