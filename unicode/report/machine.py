"""Where the time went and with what: steps of a pipeline with seconds and memory, versions of the libraries, the exact commands."""

import os
import platform
from collections.abc import Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from unicode.report.page import NONE, Figure, Section, code, missing, paragraph, table
from unicode.report.runs import Step, read_steps

PACKAGES = (
    "unicode-mllm",
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "torchmetrics",
    "tokenizers",
    "numpy",
    "pillow",
)


def library_versions() -> dict[str, str]:
    """Return name -> version of Python and of the installed libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def steps_section(path: str | Path | None) -> tuple[Section, list[Figure]]:
    """Return the section of steps, and the whole time for the top of the page."""
    steps = read_steps(path) if path else []
    title, short = "Time and memory of each step", "Time"
    if not steps:
        return Section(title, missing("The steps were not timed. The quickstart writes them:", "bash scripts/quickstart.sh"), short), []
    longest = max((step.seconds for step in steps), default=0) or 1
    lines = []
    for step in steps:
        bar = f'<span class="bar" style="width:{100 * step.seconds / longest:.1f}%"></span>'
        peak = f"{step.peak_mib:,.0f}" if step.peak_mib else NONE
        time = f"{clock(step.seconds)}{', skipped' if step.skipped else ''}"
        cells = f'<td>{escape(step.name)}</td><td class="number">{time}</td><td class="bars">{bar}</td><td class="number">{peak}</td>'
        lines.append(f"<tr>{cells}</tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("step", "time", "", "peak memory, MiB"))
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    wrapped = f'<div class="scroll" tabindex="0" role="region" aria-label="time and memory of each step">{body}</div>'
    total = sum(step.seconds for step in steps)
    text = paragraph(f"{clock(total)} in {len(steps)} steps on {describe_machine()}.")
    return Section(title, text + wrapped, short), [Figure("from nothing to this page", clock(total), f"{len(steps)} steps")]


def commands_section(path: str | Path | None, commands: Sequence[str] = ()) -> Section:
    """Return the section of versions and commands; `commands` are further ones, as this page's own."""
    steps: list[Step] = read_steps(path) if path else []
    told = [f"# {step.name}\n{step.command}" for step in steps if step.command] + list(commands)
    parts = [code("\n\n".join(told))] if told else []
    parts.append(table(["library", "version"], list(library_versions().items())))
    parts.append(paragraph(f"Made on {describe_machine()}.", "note"))
    return Section("Versions and the exact commands", "\n".join(parts), "Commands")


def describe_machine() -> str:
    """Return GPUs, where the driver tells, number of cores, processor and system in words."""
    graphics = [_line(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    processor = _line(Path("/proc/cpuinfo"), "model name") or platform.machine()
    parts = [f"{len(graphics)} x {name}" for name in graphics[:1]]
    return ", ".join([*parts, f"{os.cpu_count()} CPU cores ({processor}, {platform.system()})"])


def _line(path: Path, name: str) -> str:
    """The value of the first "name: value" line of a file of the system, "" where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")


def clock(seconds: float) -> str:
    """Return a time in words: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
