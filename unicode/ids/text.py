"""Ids in text: `<vistok>12-7-...</vistok>` inside the turns of an annotation, written and strictly parsed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

OPEN, CLOSE = "<vistok>", "</vistok>"
_TAG = re.compile(r"</?vistok>")
_RUN = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:-(?:0|[1-9][0-9]{0,8}))*")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
RUN = re.compile(f"{OPEN}(?:{_RUN.pattern})?{CLOSE}")  # A run that `read_run` reads, or the empty one


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of a turn: plain text (`ids` is None) or one run of ids."""

    text: str  # The characters as they stand in the turn, tags of a run included, so that the texts of all pieces join to the turn
    ids: np.ndarray | None = None  # int64 (n,), read-only, the ids of a run in id order


def write_run(ids: Iterable[int] | np.ndarray) -> str:
    """Ids (n,) of one image or of some of its rows -> "<vistok>12-7-...</vistok>". ValueError for anything but integers from 0 up."""
    values = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"a run holds whole numbers in one row; got an array of shape {values.shape} and type {values.dtype}")
    if values.size and values.min() < 0:
        raise ValueError(f"a run holds ids from 0 up; got {values.min()}")
    return f"{OPEN}{'-'.join(map(str, values.tolist()))}{CLOSE}"


def read_run(text: str, *, allow_empty: bool = False) -> np.ndarray:
    """The inverse of `write_run`: a text that is one run and nothing else -> int64 (n,). ValueError as `split_runs`, or for more text."""
    pieces = split_runs(text, allow_empty=allow_empty)
    if len(pieces) != 1 or pieces[0].ids is None:
        raise ValueError(f"text: expected {OPEN}...{CLOSE} and nothing else; found '{_shorten(text)}'")
    return pieces[0].ids


def split_runs(text: str, *, where: str = "text", allow_empty: bool = False) -> list[Piece]:
    """Cut a turn into plain text and runs of ids, in order. The texts of the pieces join to the turn; faulty runs are errors.

    Args:
        text: the turn; a turn without runs gives one plain piece, an empty one none.
        where: names the record in errors, as "record 17 (id 'abc'), turn 2".
        allow_empty: whether "<vistok></vistok>" is a run of no ids (UniCode-ECCV24 wrote it for an image without rows so far).

    Raises ValueError: a tag without its partner, a run inside a run, or anything but whole numbers joined by single hyphens; the message
    names `where`, the character and what stands there.
    """
    pieces: list[Piece] = []
    done, opened = 0, -1
    for tag in _TAG.finditer(text):
        if tag.group() == OPEN:
            if opened >= 0:
                raise ValueError(f"{where}, character {tag.start()}: {OPEN} inside the run opened at character {opened}")
            if tag.start() > done:
                pieces.append(Piece(text[done : tag.start()]))
            opened = tag.start()
            continue
        if opened < 0:
            raise ValueError(f"{where}, character {tag.start()}: {CLOSE} without {OPEN} before it")
        ids = _read_ids(text, opened + len(OPEN), tag.start(), where=where, allow_empty=allow_empty)
        pieces.append(Piece(text[opened : tag.end()], ids))
        done, opened = tag.end(), -1
    if opened >= 0:
        raise ValueError(f"{where}, character {opened}: {OPEN} is never closed by {CLOSE}")
    if done < len(text):
        pieces.append(Piece(text[done:]))
    return pieces


def _read_ids(text: str, start: int, end: int, *, where: str, allow_empty: bool) -> np.ndarray:
    """The ids between two tags, int64 (n,), read-only."""
    if start == end and not allow_empty:
        raise ValueError(f"{where}, character {start}: an empty run of ids")
    if start < end and not _RUN.fullmatch(text, start, end):
        parts = text[start:end].split("-")
        number = next(number for number, part in enumerate(parts) if not _NUMBER.fullmatch(part))
        fault = f"character {start + sum(len(part) + 1 for part in parts[:number])}: '{_shorten(parts[number])}' is not an id"
        raise ValueError(f"{where}, {fault}: ids are whole numbers joined by single hyphens")
    ids = np.array(text[start:end].split("-") if start < end else [], dtype=np.int64)
    ids.setflags(write=False)
    return ids


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."
