"""Benchmarks: scores.json of `unicode.run.benchmark`, of the model and of what it is compared with -> one table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicode.report.page import Cell, Section, hidden, missing, paragraph, table
from unicode.report.runs import read_object

FILE = "scores.json"
BLIND = "blank_*"
"""Folders of baselines that saw no pictures, beside the benchmarks of the model itself."""


def read_scores(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return benchmark -> content of its scores.json, for the folders of benchmarks in `folder`."""
    found = {}
    for path in sorted(Path(folder).glob(f"*/{FILE}")):
        content = read_object(path)
        found[str(content.get("title") or content.get("benchmark") or path.parent.name)] = content
    return found


def with_baselines(folders: Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Return the folders by name, with the blind baselines of the same runs after them."""
    found: dict[str, str | Path] = {}
    for name, folder in folders.items():
        found[name] = folder
        for path in sorted(Path(folder).glob(BLIND)):
            kind = path.name.removeprefix("blank_")
            found[f"blind, {kind}" if len(folders) == 1 else f"{name} blind, {kind}"] = path
    return found


def benchmarks_section(folders: Mapping[str, str | Path]) -> Section:
    """Return the section; `folders` is name -> --out of `unicode.run.benchmark`, the model itself first."""
    title, short = "Benchmarks", "Benchmarks"
    scores = {name: read_scores(folder) for name, folder in with_baselines(folders).items()}
    names = list(dict.fromkeys(benchmark for found in scores.values() for benchmark in found))
    if not names:
        command = "python -m unicode.run.benchmark NAME --model DIR --data DIR --out DIR"
        return Section(title, missing("No benchmark was scored. Scores come from", command), short)
    rows: list[list[Cell]] = []
    details = []
    for name in names:
        own = [found.get(name, {}) for found in scores.values()]
        known = next(content for content in own if content)
        counts = " of ".join(str(known[key]) for key in ("n_answered", "n_expected") if known.get(key) is not None)
        rows.append([name, *(_headline(content) for content in own), str(known.get("unit", "")), counts])
        lines = list(flatten(known.get("values", {})).items())
        said = [known.get("protocol"), *(known.get("notes") or [])]
        note = "".join(paragraph(str(one), "note") for one in said if one)
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
