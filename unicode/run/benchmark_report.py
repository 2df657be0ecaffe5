"""What is written of a scored benchmark: scores.json with everything a reader must know, and one table over all benchmarks of a folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicode.common.records import atomic_write, read_json, write_json
from unicode.metrics.benchmarks.entry import Options, Score
from unicode.metrics.benchmarks.table import BENCHMARKS

SCORES, TABLE = "scores.json", "table.md"
QUOTED = (
    "Models marked (quoted) stand as others quote them; look the numbers up in their papers before you rely on them. A published number is "
    "comparable when all questions are answered and the protocol in scores.json is the same."
)


def run_name(name: str, options: Options, *, blank: str = "") -> str:
    """Folder of one benchmark's results below the folder of all: its name, what is special about the run, blind baselines apart."""
    parts = [name, *([options.split] if options.split else []), *(["circular"] if options.circular else [])]
    return ("blank_" + blank + "/" if blank else "") + "-".join(parts)


def write_report(folder: Path, score: Score, answered: Mapping[str, Any]) -> dict[str, Any]:
    """Write the score's files and scores.json, and return the content of the latter.

    Args:
        answered: what is known about the answers: who gave them, with which settings, how long it took.
    """
    score.write_files(folder)
    report = {re.sub("^num_", "n_", name): value for name, value in score.to_dict().items()}
    report = {"benchmark": report.pop("name"), "title": BENCHMARKS[score.name].title, **report, **answered}
    write_json(folder / SCORES, report)
    return report


def describe(report: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines for the console: the score, what a reader must know about it, the files."""
    asked = report["n_expected"] if report["n_expected"] is not None else "an unknown number of"
    counts = f"{report['n_answered']} of {asked} questions answered, {report['n_unparsed']} answers not understood"
    lines = [f"{report['title']}: {format_score(report['headline'])} {report['unit']} ({counts})"]
    errors = report.get("errors") or {}
    if errors:
        name, reason = next(iter(errors.items()))
        lines.append(f"  {len(errors)} questions could not be asked, the first is {name}: {reason}")
    lines += [f"  {note}" for note in report["notes"]]
    return [*lines, f"  {', '.join([SCORES, *report['files']])} in {folder}"]


def format_score(value: float | None) -> str:
    """A headline for people; a dash where there is none."""
    return "-" if value is None else f"{value:.1f}"


def write_table(out: Path) -> str:
    """Write OUT/table.md over all scores below `out`, published numbers beside ours, and return its text; empty without scores."""
    rows = _find_rows(out)
    if not rows:
        return ""
    models = list(dict.fromkeys(model for name, _, _ in rows for model in BENCHMARKS[name].published))
    head = ["benchmark", "ours", "blank images", "unit", "answered", "not understood", "seconds", *models]
    lines = [head, ["---", *["---:"] * 2, "---", *["---:"] * (len(head) - 4)]]
    for name, report, blind in rows:
        published = BENCHMARKS[name].published
        special = "" if report["run"] == name else f" ({report['run'].partition('-')[2]})"
        expected = "?" if report["n_expected"] is None else report["n_expected"]
        lines.append([
            f"{report['title']}{special}", format_score(report["headline"]), format_score(blind), report["unit"],
            f"{report['n_answered']}/{expected}", str(report["n_unparsed"]), f"{report.get('seconds', 0):.0f}",
            *(format_score(published.get(model)) for model in models),
        ])  # fmt: skip
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{QUOTED}\n"
    with atomic_write(out / TABLE) as file:
        file.write(text)
    return text


def _find_rows(out: Path) -> list[tuple[str, dict[str, Any], float | None]]:
    """(benchmark, content of its scores.json with "run", headline of the blind baseline) in the order of the benchmarks."""
    rows = []
    for name in BENCHMARKS:
        for file in sorted([*out.glob(f"{name}/{SCORES}"), *out.glob(f"{name}-*/{SCORES}")]):
            run = file.parent.name
            blind = next((read_json(path)["headline"] for path in sorted(out.glob(f"blank_*/{run}/{SCORES}"))), None)
            rows.append((name, {**read_json(file), "run": run}, blind))
    return rows
