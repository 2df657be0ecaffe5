"""Sections of text, tables, pictures and charts -> one HTML page without scripts that needs no network.

A section holds blocks: dictionaries whose "kind" is a macro's name in template.html, with the values that it shows.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

Block = dict[str, Any]
Cell = str | int | float | None
Points = Sequence[tuple[float, float]]
Metrics = list[dict[str, float]]
"""Lines of a metrics.jsonl: "step" and numbers by name."""

SMALL = 96  # up to this side a picture is shown with hard pixels
MAX_SIDE = 512
JPEG_QUALITY = 86

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 22
MAX_POINTS = 400
LOG_FROM = 20.0  # values that differ by this factor are drawn on a logarithmic axis

FIRST_GROUPS = ("loss", "psnr", "accuracy", "usage", "perplexity")


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: its bytes as a data URI, its description, its original size and its CSS classes."""

    uri: str
    alt: str
    width: int
    height: int
    style: str


def picture(source: Image.Image | np.ndarray, alt: str, *, style: str = "", max_side: int = MAX_SIDE) -> Picture:
    """Return a picture with its bytes: PNG where that is smaller or the picture is transparent or small, otherwise JPEG.

    Args:
        source: a PIL image, or (H, W, 3 or 4) uint8.
        alt: what the picture shows.
        style: further CSS classes.
        max_side: the longer side in the page, in pixels; larger pictures are shrunk.

    Raises:
        ValueError: `alt` is empty.
    """
    if not alt.strip():
        raise ValueError("a picture of the report has no alternative text")
    image = Image.fromarray(source) if isinstance(source, np.ndarray) else source
    width, height = image.size
    pixels = "pixels" if max(image.size) <= SMALL else ""
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
    if image.mode not in ("RGB", "RGBA", "L"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    content, kind = _encode(image, "PNG", optimize=True), "png"
    if image.mode != "RGBA" and max(image.size) > SMALL:
        jpeg = _encode(image, "JPEG", quality=JPEG_QUALITY)
        content, kind = min((content, kind), (jpeg, "jpeg"), key=lambda one: len(one[0]))
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return Picture(uri, alt, width, height, f"{style} {pixels}".strip())


def _encode(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class Chart:
    """Several series over one axis, in pixels of an image of WIDTH x HEIGHT."""

    title: str
    label: str  # all of it in words
    logarithmic: bool
    rows: list[tuple[float, str]]  # y and text of each grid line
    ends: list[tuple[float, str, str]]  # x, anchor and text of both ends of the axis
    series: list[tuple[str, str, str]]  # name, last value, points of the polyline


def line_chart(title: str, series: Mapping[str, Points], *, axis: str = "step") -> Chart | None:
    """Return a chart, logarithmic upwards where the values span a wide range; None when no series has two points.

    Args:
        series: name -> points (x, y); points that are not finite are left out.
        axis: name of the x axis.
    """
    kept = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if len(points) > 1}
    if not kept:
        return None
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) >= LOG_FROM
    ticks = _log_ticks(min(ys), max(ys)) if logarithmic else _ticks(min(ys), max(ys))
    scale = math.log if logarithmic else float
    bottom, top = scale(min(ys + ticks)), scale(max(ys + ticks))

    def across(x: float) -> float:
        return LEFT + (x - min(xs)) / ((max(xs) - min(xs)) or 1) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (scale(y) - bottom) / ((top - bottom) or 1) * (HEIGHT - TOP - BOTTOM)

    changes = "; ".join(f"{name} from {short(points[0][1])} to {short(points[-1][1])}" for name, points in kept.items())
    return Chart(
        title=title,
        label=f"{title} over {axis} {short(min(xs))} to {short(max(xs))}: {changes}",
        logarithmic=logarithmic,
        rows=[(down(tick), short(tick)) for tick in ticks],
        ends=[(across(x), anchor, f"{axis} {short(x)}") for x, anchor in ((min(xs), "start"), (max(xs), "end"))],
        series=[
            (name, short(points[-1][1]), " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in _thin(points)))
            for name, points in kept.items()
        ],
    )


def _thin(points: Points) -> Points:
    """At most `MAX_POINTS` points, evenly taken, the last one among them."""
    step = -(-len(points) // MAX_POINTS)
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


def short(value: float) -> str:
    """Return a number in few characters: 12k, 0.031, 4e-05."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 10_000:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def group_name(name: str) -> str:
    """Return the group of a metric: "usage" for usage_0 and usage_1, "loss" for loss, val_loss and train/loss_vqa."""
    stem = re.sub(r"_\d+$", "", re.sub(r"^(?:train|eval|val)[/_]", "", name))
    return "loss" if "loss" in re.split(r"[/_]", stem) else stem


def group_series(metrics: Metrics) -> dict[str, dict[str, Points]]:
    """Return group -> name -> points (step, value), the most important groups first."""
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name != "step":
                groups.setdefault(group_name(name), {}).setdefault(name, []).append((line["step"], value))
    order = sorted(groups, key=lambda group: (FIRST_GROUPS.index(group) if group in FIRST_GROUPS else len(FIRST_GROUPS), group))
    return {group: dict(groups[group]) for group in order}


@dataclass(frozen=True)
class Figure:
    """One number at the top of the page."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the page; `short` is its title in the table of contents, `figures` stand at the top of the page."""

    title: str
    short: str
    blocks: Sequence[Block]
    figures: Sequence[Figure] = ()

    @property
    def anchor(self) -> str:
        """The fragment of the address that leads here."""
        return re.sub(r"[^a-z0-9]+", "-", self.short.lower()).strip("-")


@dataclass(frozen=True)
class Card:
    """Pictures side by side with their labels, and the text below them.

    Attributes:
        right: whether `answer` is one of the expected ones; None when that is not known.
        words: rows of words that stand in the places of a picture's codes; None for a card without words.
    """

    pictures: Sequence[tuple[Picture, str]] = ()
    title: str = ""
    lines: Sequence[str] = ()
    answer: str = ""
    expected: str = ""
    right: bool | None = None
    words: Sequence[Sequence[str]] | None = None


def build_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the HTML document; `lead` is the sentence under the title."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "clock": clock}
    environment.globals["box"] = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    return environment.get_template("template.html").render(title=title, lead=lead, sections=sections)


def paragraph(text: str, style: str = "") -> Block:
    """Text of a CSS class."""
    return {"kind": "paragraph", "text": text, "style": style}


def missing(text: str, remedy: str = "") -> Block:
    """What is not there, and the command that makes it."""
    return {"kind": "missing", "text": text, "remedy": remedy}


def heading(text: str) -> Block:
    """A heading inside a section."""
    return {"kind": "heading", "text": text}


def details(summary: str, *blocks: Block) -> Block:
    """Blocks that a reader opens."""
    return {"kind": "details", "summary": summary, "blocks": blocks}


def gallery(cards: Sequence[Card], style: str = "") -> Block:
    """Cards side by side, as many in a row as fit; `style` is "pairs" or "words" for wider ones."""
    return {"kind": "gallery", "cards": cards, "style": style}


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str = "") -> Block:
    """A table: columns of numbers align right, None is shown as a dash."""
    numeric = [any(isinstance(row[at], int | float) for row in rows if at < len(row)) for at in range(len(head))]
    return {"kind": "table", "head": head, "rows": rows, "caption": caption, "numeric": numeric}


def number(value: float) -> str:
    """Return a number with four significant digits and thousands separators."""
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}"
    if value != value or abs(value) in (0.0, float("inf")):
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def clock(seconds: float) -> str:
    """Return a duration as text: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the items, evenly taken, in their order; all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
