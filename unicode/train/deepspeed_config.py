"""DeepSpeed's JSON file: read, and checked against the run before anything is built."""

from pathlib import Path
from typing import Any

from unicode.common.records import read_json

REMEDY = 'write "auto" there, or change the setting'
EXAMPLES = "configs/deepspeed/zero2.json, zero3.json, zero2_offload.json or zero3_offload.json"


def read_deepspeed(path: str | Path, *, expected: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return the content of a DeepSpeed config.

    Args:
        path: the JSON file.
        expected: dotted key of DeepSpeed -> the run's setting that says the same, and its value.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, no ZeRO section, a value that contradicts the run, or an optimizer or schedule of its own.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no DeepSpeed config {path}; run.deepspeed takes {EXAMPLES}")
    content = read_json(path)
    stage = lookup(content, "zero_optimization.stage") if isinstance(content, dict) else None
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{path}: zero_optimization.stage is {stage!r}, expected 0, 1, 2 or 3; take {EXAMPLES}")
    for section in ("optimizer", "scheduler"):
        if section in content:
            raise ValueError(f"{path}: remove the section '{section}'; optimizer.* of the run's config says how weights are changed")
    for key, (setting, value) in expected.items():
        found = lookup(content, key)
        if found not in (None, "auto") and found != value:
            raise ValueError(f"{path}: {key} is {found!r}, but {setting} makes it {value!r}; {REMEDY}")
    return content  # type: ignore[no-any-return]


def zero_stage(content: dict[str, Any] | None) -> int:
    """The ZeRO stage of a config, 0 without one."""
    return int(lookup(content, "zero_optimization.stage") or 0) if content else 0


def lookup(content: dict[str, Any], key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
