"""Shares without a division by zero."""

from collections.abc import Iterable


def percent(part: float, whole: float) -> float | None:
    """Return 100 * part / whole, or None for a share of nothing."""
    return part / whole * 100 if whole else None


def ratio(part: float, whole: float) -> float:
    """Return part / whole, or 0.0 for a share of nothing (precision where nothing was predicted)."""
    return part / whole if whole else 0.0


def share_true(flags: Iterable[bool]) -> float | None:
    """Return the percentage of true values, or None where there are none at all."""
    listed = list(flags)
    return percent(sum(listed), len(listed))


def rounded(value: float | None, digits: int = 2) -> float | None:
    """Round a number that may be missing, as scripts print it."""
    return None if value is None else round(value, digits)
