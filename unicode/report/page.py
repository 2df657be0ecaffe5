"""The page itself: sections and key figures in, one HTML text out that needs no network, no script and no other file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from unicode.report.style import STYLE

Cell = str | int | float | None
NONE = "\N{EN DASH}"
"""What stands where there is no value."""


@dataclass(frozen=True)
class Figure:
    """One number at the top of the page."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the page; `body` is HTML."""

    title: str
    body: str
    short: str = ""  # the title in the list of contents

    @property
    def anchor(self) -> str:
        """The part of the address that leads here."""
        return re.sub(r"[^a-z0-9]+", "-", (self.short or self.title).lower()).strip("-")


def build_page(title: str, lead: str, figures: Sequence[Figure], sections: Sequence[Section]) -> str:
    """Return the whole HTML document; `lead` is the sentence under the title."""
    links = "".join(f'<a href="#{part.anchor}">{escape(part.short or part.title)}</a>' for part in sections)
    cards = "".join(
        f'<div class="figure"><b>{escape(one.value)}</b><span>{escape(one.name)}</span><small>{escape(one.note)}</small></div>'
        for one in figures
    )
    bodies = "\n".join(
        f'<section id="{part.anchor}" aria-labelledby="{part.anchor}-title">\n<h2 id="{part.anchor}-title">{escape(part.title)}</h2>\n'
        f"{part.body}\n</section>"
        for part in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
<div class="figures">{cards}</div>
<nav aria-label="Contents">{links}</nav>
</header>
<main>
{bodies}
</main>
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    """Return plain text as a paragraph of class `kind`."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def missing(what: str, remedy: str) -> str:
    """Say that a part is not there, and which command makes it."""
    return f'<p class="missing">{escape(what)} <code>{escape(remedy)}</code></p>'


def code(text: str) -> str:
    """Return a block of commands or settings; long lines wrap."""
    return f"<pre>{escape(text)}</pre>"


def hidden(summary: str, body: str) -> str:
    """Return HTML that shows when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str = "") -> str:
    """Return a table of plain cells: numbers to the right, None as a dash; scrolls by itself where the screen is narrow."""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    numeric = [any(isinstance(row[at], int | float) for row in rows if at < len(row)) for at in range(len(head))]
    columns = "".join(
        f'<th scope="col"{" class=number" if right else ""}>{escape(name)}</th>' for name, right in zip(head, numeric, strict=True)
    )
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    label = escape(caption or ", ".join(head), quote=True)
    inside = f"<table>{title}<thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{inside}</div>'


def gallery(items: Sequence[str], *, kind: str = "") -> str:
    """Return pieces of HTML side by side, as many in a row as fit."""
    return f'<div class="gallery {kind}">{"".join(items)}</div>'


def number(value: float) -> str:
    """Return a number as a person writes it: four digits that count, thousands apart."""
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}"
    if value != value or abs(value) in (0.0, float("inf")):
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _cell(value: Cell) -> str:
    if value is None:
        return f'<td class="number">{NONE}</td>'
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{number(value)}</td>'
