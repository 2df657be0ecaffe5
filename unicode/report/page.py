"""Sections of text, tables, pictures and charts -> one HTML page without scripts that needs no network.

A section holds blocks: dictionaries whose "kind" is a macro's name in template.html, with the values that it shows.
"""

import base64
import io
import math
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

SMALL = 96  # up to this side a picture is shown with hard pixels
MAX_SIDE = 512
SHOWN_SIDE = 160  # of enlarged pictures in the page, about: a whole number of times their own
JPEG_QUALITY = 86
MAX_POINTS = 400
LOG_FROM = 20.0  # values that differ by this factor are drawn on a logarithmic axis
BOX = {"width": 340, "height": 190, "left": 46, "right": 8, "top": 10, "bottom": 22}  # of a chart, in pixels


@dataclass(frozen=True)
class Section:
    """One part of the page; `short`, one word, is its title in the table of contents.

    `figures`: name, value and note of the numbers that it has at the top of the page.
    """

    title: str
    short: str
    blocks: Sequence[Block]
    figures: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True)
class Card:
    """Pictures (of `picture`) side by side with their labels, and text below them."""

    pictures: Sequence[tuple[Block, str]] = ()
    title: str = ""
    lines: Sequence[str] = ()
    answer: str = ""
    expected: str = ""
    right: bool | None = None  # whether `answer` is an expected one; None: not known
    words: Sequence[Sequence[str]] | None = None  # words in the places of the picture's codes; None: a card without words


def build_page(title: str, lead: str, sections: Sequence[Section], *, opening: Sequence[Block] = ()) -> str:
    """Return the HTML document; `lead` is the sentence under the title, `opening` is what stands between it and the figures."""
    loader, undefined = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=undefined)
    environment.filters |= {"number": number, "clock": clock}
    return environment.get_template("template.html").render(title=title, lead=lead, sections=sections, opening=opening)


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
    """Cards side by side, as many in a row as fit; `style` is "words" for wide ones, "wall" or "pairs" for one or two enlarged pictures."""
    side = max([max(shown["width"], shown["height"]) for card in cards for shown, _ in card.pictures] or [1])
    return {"kind": "gallery", "cards": cards, "style": style, "side": side * max(1, SHOWN_SIDE // side) if side <= SMALL else SHOWN_SIDE}


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str = "") -> Block:
    """A table: columns of numbers align right, None is shown as a dash."""
    numeric = [any(isinstance(row[at], int | float) for row in rows) for at in range(len(head))]
    return {"kind": "table", "head": head, "rows": rows, "caption": caption, "numeric": numeric}


def number(value: float) -> str:
    """Return a number with four significant digits and thousands separators."""
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def clock(seconds: float) -> str:
    """Return a duration as text: 0.4 s, 12 s, 3.3 min, 2.1 h."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def picture(source: Image.Image | np.ndarray, alt: str, *, style: str = "", max_side: int = MAX_SIDE) -> Block:
    """Return a picture with its bytes: PNG where that is smaller or the picture is transparent or small, otherwise JPEG.

    `source`: a PIL image, or (H, W, 3 or 4) uint8. `alt`: what the picture shows; must not be empty. `style`: further CSS classes.
    `max_side`: the longer side in the page, in pixels; larger pictures are shrunk.
    """
    assert alt.strip(), "a picture of the report has no alternative text"
    image = Image.fromarray(source) if isinstance(source, np.ndarray) else source
    size = {"width": image.width, "height": image.height}
    is_small = max(image.size) <= SMALL
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    content, kind = _encode(image, "PNG", optimize=True), "png"
    if image.mode != "RGBA" and not is_small:
        content, kind = min((content, kind), (_encode(image, "JPEG", quality=JPEG_QUALITY), "jpeg"), key=lambda one: len(one[0]))
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return {"uri": uri, "alt": alt, "style": f"{style} pixels".strip() if is_small else style, **size}


def _encode(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def line_chart(title: str, series: Mapping[str, Points]) -> Block | None:
    """Return a chart over steps, logarithmic upwards where the values span a wide range; None when no series has two points.

    `series`: name -> points (step, value); points that are not finite are left out.
    """
    kept = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if len(points) > 1}
    if not kept:
        return None
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    first, last, low, high = min(xs), max(xs), min(ys), max(ys)
    logarithmic = low > 0 and high / low >= LOG_FROM
    ticks = np.geomspace(low, high, 4) if logarithmic else np.linspace(low, high, 4 if high > low else 1)
    box, scale = BOX, math.log if logarithmic else float

    def across(x: float) -> float:
        return box["left"] + (x - first) / ((last - first) or 1) * (box["width"] - box["left"] - box["right"])

    def down(y: float) -> float:
        share = (scale(y) - scale(low)) / ((scale(high) - scale(low)) or 1)
        return box["height"] - box["bottom"] - share * (box["height"] - box["top"] - box["bottom"])

    def polyline(points: Points) -> str:
        return " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in [*points[: -1 : -(-len(points) // MAX_POINTS)], points[-1]])

    changes = "; ".join(f"{name} from {_short(points[0][1])} to {_short(points[-1][1])}" for name, points in kept.items())
    return {
        "title": title,
        "label": f"{title} over step {first:g} to {last:g}: {changes}",
        "logarithmic": logarithmic,
        "rows": [(down(tick), _short(tick)) for tick in ticks],  # y and text of the grid lines
        "ends": [(across(first), "start", f"step {first:g}"), (across(last), "end", f"step {last:g}")],
        "series": [(name, _short(points[-1][1]), polyline(points)) for name, points in kept.items()],
        "box": box,
    }


def _short(value: float) -> str:
    return f"{value / 1000:.3g}k" if abs(value) >= 1000 else f"{value:.3g}"
