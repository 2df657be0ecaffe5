"""Line charts as SVG: series of points in, a figure out that follows the page's colours."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 22
NUM_COLOURS = 6
LOG_FROM = 20.0
"""Values that differ by this factor are drawn on a logarithmic axis."""


def line_chart(title: str, series: Mapping[str, Points], *, across: str = "step") -> str:
    """Return a chart of several series over one axis as a `<figure>`, logarithmic upwards where the values span a wide range.

    Args:
        title: of the figure.
        series: name -> points (x, y); points that are not finite are left out.
        across: name of the x axis.

    Returns:
        HTML, "" when not one series has two points.
    """
    kept = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if len(points) > 1}
    if not kept:
        return ""
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) >= LOG_FROM
    ticks = _log_ticks(min(ys), max(ys)) if logarithmic else _ticks(min(ys), max(ys))
    low, high = min(ys + ticks), max(ys + ticks)

    def place(x: float, y: float) -> tuple[float, float]:
        along = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        bottom, top = (math.log(low), math.log(high)) if logarithmic else (low, high)
        up = ((math.log(y) if logarithmic else y) - bottom) / ((top - bottom) or 1)
        return LEFT + along * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        _, y = place(min(xs), tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for x, anchor in ((min(xs), "start"), (max(xs), "end")):
        parts.append(f'<text x="{place(x, ys[0])[0]:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{across} {_short(x)}</text>')
    for index, points in enumerate(kept.values()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in _thin(points)))
        parts.append(f'<polyline class="series c{index % NUM_COLOURS}" points="{path}"/>')
    said = "; ".join(f"{name} from {_short(points[0][1])} to {_short(points[-1][1])}" for name, points in kept.items())
    label = f"{title} over {across} {_short(min(xs))} to {_short(max(xs))}: {said}"
    scale = ", logarithmic" if logarithmic else ""
    keys = "".join(
        f'<span class="keyed"><span class="key k{index % NUM_COLOURS}"></span>{escape(name)} <b>{_short(points[-1][1])}</b></span> '
        for index, (name, points) in enumerate(kept.items())
    )
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'
    return f"<figure>{drawing}<figcaption><b>{escape(title)}</b>{scale}<br>{keys}</figcaption></figure>"


def _thin(points: Points, limit: int = 400) -> Points:
    """At most `limit` points, evenly taken, the last one among them."""
    step = -(-len(points) // limit)
    return [*points[:-1:step], points[-1]]


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that enclose low to high."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose low to high, at most five."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, -(-(last - first) // 4))
    return [10.0**power for power in range(first, last + step, step)]


def _short(value: float) -> str:
    """A number in few characters: 12k, 0.031, 4e-05."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 10_000:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
