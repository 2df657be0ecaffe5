"""The codebook over the language model's vocabulary: which words pictures use, as a map of all ids and word by word for a few pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from unicode.report.page import Section, gallery, missing, paragraph, table
from unicode.report.picture import figure, image_tag

MAX_WORDS = 24
MAX_COLUMNS = 8  # finer maps of words are listed by frequency: they would not fit a screen
COLOURS = ((222, 106, 40), (56, 130, 224), (160, 92, 205))  # coarse level, finer levels, both
UNUSED, TRANSPARENT = (128, 128, 128, 46), (0, 0, 0, 0)

Words = Callable[[int], str]
"""Vocabulary id -> the token's text."""


@dataclass(frozen=True)
class Coded:
    """A picture and the ids it is made of."""

    pixels: np.ndarray  # (H, W, 3) uint8
    caption: str
    levels: tuple[np.ndarray, ...]  # (h, w) ids per level, coarse to fine


def count_ids(levels: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Count ids per level: L arrays of ids below `size` -> (L, size) int64."""
    return np.stack([np.bincount(np.asarray(ids, dtype=np.int64).ravel(), minlength=size) for ids in levels])


def draw_map(counts: np.ndarray, eligible: np.ndarray | None = None) -> np.ndarray:
    """Draw every id of a vocabulary as one pixel, in raster order of ids.

    Args:
        counts: (L, V) uses per level, coarse to fine.
        eligible: (V,) bool, ids that may stand for a piece of a picture; None: all.

    Returns:
        (h, w, 4) uint8: coloured by the levels that use an id, the stronger the more often; grey: unused, nothing: not eligible.
    """
    size = counts.shape[1]
    width = 2 ** int(np.ceil(np.log2(np.sqrt(2 * size))))
    pixels = np.zeros((-(-size // width) * width, 4), dtype=np.uint8)
    pixels[:size] = UNUSED
    if eligible is not None:
        pixels[:size][~eligible] = TRANSPARENT
    total = counts.sum(axis=0)
    strength = np.log1p(total) / max(float(np.log1p(total.max())), 1e-9)
    coarse, fine = counts[0] > 0, counts[1:].sum(axis=0) > 0
    for chosen, colour in ((coarse & ~fine, COLOURS[0]), (fine & ~coarse, COLOURS[1]), (coarse & fine, COLOURS[2])):
        pixels[:size][chosen, :3] = colour
        pixels[:size][chosen, 3] = (110 + 145 * strength[chosen]).astype(np.uint8)
    return pixels.reshape(-1, width, 4)


def vocabulary_section(
    counts: np.ndarray | None, examples: Sequence[Coded], word: Words | None, *, eligible: np.ndarray | None = None, num_images: int = 0
) -> Section:
    """Return the section.

    Args:
        counts: (L, V) uses of each id per level; None when no ids were found.
        examples: pictures to spell out.
        word: text of an id; None: the text tokenizer is not known, ids stand for themselves.
        eligible: (V,) bool; None: not known.
        num_images: how many pictures were counted.
    """
    title, short = "Pictures as words", "Words"
    if counts is None:
        remedy = "python -m unicode.run.encode_images --ckpt RUN --images IMAGES --out RUN/ids/NAME"
        return Section(title, missing("No ids of pictures were found below the tokenizer. They come from", remedy), short)
    name = word or str
    parts = [paragraph("Each code is a row of the language model's own embedding table, so a picture is a run of its words.")]
    if word is None:
        parts.append(missing("The words are not known, ids stand in their place; name the language model with", "--base DIR"))
    parts.append(gallery([_spelled(one, name) for one in examples], kind="words"))
    parts.append("<h3>The vocabulary, one dot a token</h3>")
    total = counts.sum(axis=0)
    used, free = int((total > 0).sum()), int(eligible.sum()) if eligible is not None else counts.shape[1]
    common = ", ".join(_show(name(int(index))) for index in np.argsort(-total, kind="stable")[:5] if total[index])
    alt = f"Map of {counts.shape[1]} ids: {used} of {free} eligible ones are used by {num_images} pictures, most of all {common}"
    picture = image_tag(draw_map(counts, eligible), alt, kind="map pixels", max_side=1024)
    kinds = ((0, "coarse level"), (1, "finer levels"), (3, "both"))
    key = " ".join(f'<span class="keyed"><span class="key k{colour}"></span>{meaning}</span>' for colour, meaning in kinds)
    legend = f"{used} of {free} eligible tokens are used by {num_images} pictures; the stronger, the more often. {key} Grey: unused."
    parts.append(figure(picture, legend))
    parts.append(_commonest(counts, name))
    return Section(title, "\n".join(parts), short)


def _spelled(one: Coded, name: Words) -> str:
    """A picture, the words of its coarse level in their places and those of the finer levels by frequency."""
    coarse = one.levels[0]
    body = ""
    if coarse.shape[1] <= MAX_COLUMNS:
        rows = "".join(f"<tr>{''.join(f'<td>{escape(_show(name(int(index))))}</td>' for index in row)}</tr>" for row in coarse)
        label = escape(f"coarse words of {one.caption}", quote=True)
        grid = f'<table class="wordgrid"><tbody>{rows}</tbody></table>'
        body = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{grid}</div>'
    lists = one.levels[1:] if body else one.levels
    said = "".join(f"<br>{'finer' if body or level else 'coarse'}: {_frequent(ids, name)}" for level, ids in enumerate(lists))
    picture = f'<div>{image_tag(one.pixels, one.caption)}</div><div style="flex:2">{body}</div>'
    return figure(f'<div class="side">{picture}</div>', f"<b>{escape(one.caption)}</b>{said}")


def _frequent(ids: np.ndarray, name: Words) -> str:
    values, counts = np.unique(ids, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_WORDS]
    said = [(escape(_show(name(int(values[at])))), int(counts[at])) for at in order]
    return ", ".join(word if count == 1 else f"{word} ({count} times)" for word, count in said)


def _commonest(counts: np.ndarray, name: Words, top: int = 10) -> str:
    """A table of the commonest tokens of each level."""
    head, columns = ["rank"], []
    for level, row in enumerate(counts):
        order = np.argsort(-row, kind="stable")[:top]
        head += [f"level {level}", "share, %"]
        columns.append([(_show(name(int(index))), 100 * row[index] / max(int(row.sum()), 1)) for index in order if row[index]])
    rows: list[list[str | float]] = []
    for rank in range(max((len(column) for column in columns), default=0)):
        cells = [column[rank] if rank < len(column) else ("", "") for column in columns]
        rows.append([str(rank + 1), *(round(value, 1) if isinstance(value, float) else value for cell in cells for value in cell)])
    return table(head, rows, caption="the commonest tokens")


def _show(token: str) -> str:
    """A token that can be seen: a space before a word is left out, other blanks are named."""
    return token.strip() or {"": "empty", " ": "space", "\n": "newline", "\t": "tab"}.get(token, "blanks")
