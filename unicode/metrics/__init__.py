"""Images, codes and answers -> numbers, each with its protocol or the reason why there is none. Imports only common/."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NotComputed:
    """Stands for a metric that needs something which is missing."""

    reason: str  # what is missing
    remedy: str  # which file to put where, or which setting to change

    def to_dict(self) -> dict[str, Any]:
        """The form of a report: a null value, never a number that could be mistaken for one."""
        return {"value": None, "reason": self.reason, "remedy": self.remedy}


def entry(value: float, *, unit: str, protocol: str) -> dict[str, Any]:
    """The form of a computed metric in a report; `protocol` describes in one line how it was computed."""
    return {"value": value, "unit": unit, "protocol": protocol}


def format_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for the console, a line per metric, of {name: entry}."""
    width = max((len(name) for name in metrics), default=0)
    lines = []
    for name, metric in metrics.items():
        if metric["value"] is None:
            lines.append(f"{name:<{width}} not computed: {metric['reason']}; {metric['remedy']}")
        else:
            lines.append(f"{name:<{width}} {metric['value']:10.4f} {metric['unit']}".rstrip())
    return "\n".join(lines)
