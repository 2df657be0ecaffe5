"""One metric in a report: a value with the protocol behind it, or the reason why there is none and the remedy."""

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
