"""Conversations with pictures in them -> a page to look at, HTML or Markdown, with the pictures as files beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from unicode.common.files import atomic_write
from unicode.generate.interleaved import picture_ids
from unicode.ids.text import split_runs
from unicode.llm.load import LanguageModel

_STYLE = """body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
section{border-top:1px solid #ccc;padding:.5em 0}b{color:#666;font-weight:600}
img{display:block;margin:.4em 0;min-width:96px;image-rendering:pixelated}
.model{background:#eef4fb;padding:.4em .8em}.reference{background:#f4f4f0;padding:.4em .8em}.error{color:#a00}"""


@dataclass(frozen=True)
class Piece:
    """Words, or the file of a picture relative to the page."""

    text: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Turn:
    """Something that was said: by the "user", the "model", as a "reference", or an "error"."""

    speaker: str
    pieces: tuple[Piece, ...]


class PictureFiles:
    """Writes the pictures of answers into a folder, numbered.

    Args:
        model: whose ids they are.
        folder: the folder of the page.
    """

    def __init__(self, model: LanguageModel, folder: str | Path, *, decode: Callable[[np.ndarray], np.ndarray]) -> None:
        self.model, self.folder, self._decode = model, Path(folder), decode

    def pieces(self, text: str, name: str) -> tuple[Piece, ...]:
        """Cut a turn into words and pictures; these are written as NAME-0.png, NAME-1.png, ... Runs that are no pictures are said to be."""
        found: list[Piece] = []
        for piece in split_runs(text, where=name, allow_empty=True):
            ids = None if piece.ids is None else picture_ids(piece.ids, self.model)
            if ids is not None:
                file = f"pictures/{name}-{sum(bool(one.picture) for one in found)}.png"
                with atomic_write(self.folder / file, "wb") as target:
                    Image.fromarray(self._decode(ids[None])[0]).save(target, "PNG")
                found.append(Piece(picture=file))
            elif piece.ids is not None:
                found.append(Piece(f"[{len(piece.ids)} ids that are no whole picture]"))
            elif piece.text.strip():
                found.append(Piece(piece.text.strip()))
        return tuple(found)


def write_pages(folder: str | Path, title: str, conversations: Sequence[tuple[str, Sequence[Turn]]]) -> None:
    """Write page.html and page.md: for each conversation its name and its turns in order."""
    with atomic_write(Path(folder) / "page.html") as file:
        file.write(_html(title, conversations))
    with atomic_write(Path(folder) / "page.md") as file:
        file.write(_markdown(title, conversations))


def _html(title: str, conversations: Sequence[tuple[str, Sequence[Turn]]]) -> str:
    parts = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>']
    parts.append(f"<h1>{escape(title)}</h1>")
    for name, turns in conversations:
        parts.append(f"<section><h2>{escape(name)}</h2>")
        for turn in turns:
            inside = "".join(_html_piece(piece, turn.speaker) for piece in turn.pieces)
            parts.append(f'<div class="{turn.speaker}"><b>{turn.speaker}</b>{inside}</div>')
        parts.append("</section>")
    return "\n".join([*parts, "</html>\n"])


def _html_piece(piece: Piece, speaker: str) -> str:
    if piece.picture:
        return f'<img src="{escape(piece.picture)}" alt="picture of the {speaker}">'
    return f"<p>{escape(piece.text)}</p>"


def _markdown(title: str, conversations: Sequence[tuple[str, Sequence[Turn]]]) -> str:
    lines = [f"# {title}"]
    for name, turns in conversations:
        lines.append(f"## {name}")
        for turn in turns:
            lines.append(f"**{turn.speaker}**")
            lines += [f"![picture of the {turn.speaker}]({piece.picture})" if piece.picture else piece.text for piece in turn.pieces]
    return "\n\n".join(lines) + "\n"
