"""Benchmarks: scores.json of `unicode.run.benchmark`, of the model and of what it is compared with -> one table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicode.report.page import Cell, Section, hidden, missing, paragraph, table
from unicode.report.runs import read_object

FILE = "scores.json"
COUNTS = ("num_expected", "num_answered", "num_unparsed")


def read_scores(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return benchmark -> content of its scores.json, for the folders of benchmarks in `folder`."""
    found = {}
    for path in sorted(Path(folder).glob(f"*/{FILE}")):
        content = read_object(path)
        found[str(content.get("name") or path.parent.name)] = content
    return found


def benchmarks_section(folders: Mapping[str, str | Path]) -> Section:
    """Return the section; `folders` is name -> --out of `unicode.run.benchmark`, the model itself first."""
    title, short = "Benchmarks", "Benchmarks"
    scores = {name: read_scores(folder) for name, folder in folders.items()}
    names = list(dict.fromkeys(benchmark for found in scores.values() for benchmark in found))
    if not names:
        command = "python -m unicode.run.benchmark NAME --model DIR --data DIR --out DIR"
        return Section(title, missing("No benchmark was scored. Scores come from", command), short)
    rows: list[list[Cell]] = []
    details = []
    for name in names:
        own = [found.get(name, {}) for found in scores.values()]
        known = next(content for content in own if content)
        counts = "/".join(str(known[key]) for key in ("num_answered", "num_expected") if key in known)
        rows.append([name, *(_headline(content) for content in own), str(known.get("unit", "")), counts])
        lines = list(flatten(known.get("values", {})).items())
        note = paragraph(str(known["protocol"]), "note") if known.get("protocol") else ""
        if lines:
            details.append(hidden(f"{name}: all numbers", note + table(["", "value"], lines)))
    head = ["benchmark", *scores, "unit", "answered"]
    return Section(title, table(head, rows) + "\n".join(details), short)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Cell]:
    """Nested numbers -> dotted name -> number or text."""
    flat: dict[str, Cell] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, bool | list) or value is None:
            flat[name] = None if value is None else str(value)
        else:
            flat[name] = value
    return flat


def _headline(content: Mapping[str, Any]) -> Cell:
    value = content.get("headline")
    return float(value) if isinstance(value, int | float) else None
