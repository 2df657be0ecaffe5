"""One metric in a report: a value with the protocol behind it, or the reason why there is none and the remedy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NotComputed:
    """Stands for a metric that needs something which is not there."""

    reason: str  # what is missing
    remedy: str  # which file to put where, or which setting to change

    def to_dict(self) -> dict[str, Any]:
        """The form of a report: a null value, never a number that could be mistaken for one."""
        return {"value": None, "reason": self.reason, "remedy": self.remedy}


def entry(value: float, *, unit: str, protocol: str) -> dict[str, Any]:
    """The form of a computed metric in a report; `protocol` says in one line how it was computed."""
    return {"value": value, "unit": unit, "protocol": protocol}


def format_report(report: Mapping[str, Any]) -> str:
    """Lay a report out as a table for the console: a line per metric, a line per level of codes.

    Args:
        report: {"metrics": {name: entry}, "codes": {"levels": [usage report with "level"]}}; other keys are not shown.
    """
    lines = []
    for name, metric in report["metrics"].items():
        if metric["value"] is None:
            lines.append(f"{name:<12} not computed: {metric['reason']}; {metric['remedy']}")
        else:
            lines.append(f"{name:<12} {metric['value']:10.4f} {metric['unit']}".rstrip())
    for level in report["codes"]["levels"]:
        lines.append(
            f"codes level {level['level']}: {level['used']} of {level['rows']} rows used ({level['usage_percent']:.1f} %), perplexity "
            f"{level['perplexity']:.1f}, entropy {level['entropy_bits']:.2f} bits, commonest row {100 * level['top1_share']:.1f} %"
        )
    return "\n".join(lines)
