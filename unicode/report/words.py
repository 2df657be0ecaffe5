"""Stores of ids -> the section on the words that images are made of: examples, the map of the vocabulary, the commonest tokens."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from unicode.ids.store import Store
from unicode.images.lookup import ImageLookup
from unicode.llm.vocabulary import find_model, read_vocabulary, spells_bytes
from unicode.report.page import Block, Card, Section, gallery, heading, missing, paragraph, picture, spread, table
from unicode.tokenizer.load import load_tokenizer

MAX_COUNTED = 5000
NUM_EXAMPLES = 4
MAX_WORDS = 24
MAX_COLUMNS = 8  # wider grids of words do not fit a screen: they are listed by frequency
COLOURS = ((222, 106, 40), (56, 130, 224), (160, 92, 205))  # coarse level, finer levels, both
UNUSED, TRANSPARENT = (128, 128, 128, 46), (0, 0, 0, 0)

Words = Callable[[int], str]
"""Vocabulary id -> the token's text."""


def words_section(
    ids: Sequence[str | Path], images: ImageLookup, *, tokenizer: Path | None = None, base: Path | None = None, about: str = ""
) -> Section:
    """Return the section.

    Args:
        ids: stores of ids; without them, those below `tokenizer`.
        images: finds the pictures of the stores' keys.
        tokenizer: run folder of the tokenizer, whose codebook tells which ids images may use; None: not known.
        base: the language model whose tokens the ids are; None: ids are shown as numbers.
        about: the examples are pictures whose caption contains this.

    Raises:
        FileNotFoundError, ValueError: a store that was named is not there, not finished or damaged.
    """
    title, short = "Images as words", "Words"
    found = [Path(one) for one in ids] or [path.parent for path in sorted(tokenizer.glob("ids/**/manifest.json") if tokenizer else ())]
    stores = [Store(path) for path in found]
    counts, num_images = count_words(stores)
    if counts is None:
        remedy = "python -m unicode.run.encode_images --ckpt RUN --images IMAGES --out RUN/ids/NAME"
        return Section(title, short, [missing("No ids of images were found below the tokenizer. They come from", remedy)])
    blocks = [paragraph("Each code is a row of the language model's own embedding table, so an image is a run of its tokens.")]
    if base is None:
        blocks.append(missing("The words are not known, ids stand in their place; name the language model with", "--base DIR"))
    word = read_words(base) if base else str
    blocks.append(gallery(find_examples(stores, images, word, about=about), "words"))
    eligible = np.isin(np.arange(counts.shape[1]), load_tokenizer(tokenizer).row_ids.numpy()) if tokenizer else None
    blocks += [heading("The vocabulary, one dot a token"), map_block(counts, word, eligible=eligible, num_images=num_images)]
    return Section(title, short, [*blocks, commonest(counts, word)])


def count_words(stores: Sequence[Store]) -> tuple[np.ndarray | None, int]:
    """Return the uses of each id per level, (L, V) int64, over at most `MAX_COUNTED` images, evenly taken, and their number."""
    total: np.ndarray | None = None
    number = 0
    for store in stores:
        keys = spread(list(store), max(1, MAX_COUNTED // len(stores)))
        if not keys:
            continue
        counts = count_ids(_levels(np.stack([store[key] for key in keys]), store), store.spec.vocab_size)
        if total is None or total.shape == counts.shape:
            total = counts if total is None else total + counts
            number += len(keys)
    return total, number


def count_ids(levels: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Count ids per level: L arrays of ids below `size` -> (L, size) int64."""
    return np.stack([np.bincount(np.asarray(ids, dtype=np.int64).ravel(), minlength=size) for ids in levels])


def draw_map(counts: np.ndarray, eligible: np.ndarray | None = None) -> np.ndarray:
    """Draw every id of a vocabulary as one pixel, in raster order of ids.

    Args:
        counts: (L, V) uses per level, coarse to fine.
        eligible: (V,) bool, ids that the codebook may use; None: all.

    Returns:
        (h, w, 4) uint8: coloured by the levels that use an id, the more opaque the more often; grey: unused; transparent: not eligible.
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


def find_examples(stores: Sequence[Store], images: ImageLookup, word: Words, *, about: str) -> list[Card]:
    """Return cards of pictures whose caption contains `about`, the shortest captions first; of any pictures where none does."""
    found: list[tuple[bool, int, str, Store]] = []
    for store in stores:
        for key in spread(list(store), MAX_COUNTED):
            caption = images.caption(key)
            found.append((about.casefold() not in caption.casefold(), len(caption), key, store))
    cards = []
    for _, _, key, store in sorted(found, key=lambda one: one[:3]):
        pixels = images.find(key)
        if pixels is not None:
            grids = [_as_grid(level, store) for level in _levels(store[key], store)]
            cards.append(word_card(np.asarray(pixels), images.caption(key) or key, grids, word))
        if len(cards) == NUM_EXAMPLES:
            break
    return cards


def word_card(pixels: np.ndarray, caption: str, levels: Sequence[np.ndarray], word: Words) -> Card:
    """Return a picture, (H, W, 3) uint8, the words of its coarse level in their places and those of finer levels by frequency."""
    fits = levels[0].shape[1] <= MAX_COLUMNS
    grid = [[_visible(word(int(index))) for index in row] for row in levels[0]] if fits else []
    lines = [f"{'finer' if level else 'coarse'}: {_frequent(ids, word)}" for level, ids in enumerate(levels) if level or not fits]
    return Card([(picture(pixels, caption), "")], caption, lines, words=grid)


def map_block(counts: np.ndarray, word: Words, *, eligible: np.ndarray | None, num_images: int) -> Block:
    """Return the map of all ids for their uses, (L, V), with its legend."""
    total = counts.sum(axis=0)
    used, size = int((total > 0).sum()), counts.shape[1]
    free = int(eligible.sum()) if eligible is not None else size
    common = ", ".join(_visible(word(int(index))) for index in np.argsort(-total, kind="stable")[:5] if total[index])
    alt = f"Map of {size} ids: {used} of {free} eligible ones are used by {num_images} images, most of all {common}"
    text = f"{used} of {free} eligible tokens are used by {num_images} images; the more opaque, the more often."
    return {"kind": "map", "picture": picture(draw_map(counts, eligible), alt, style="map pixels", max_side=1024), "text": text}


def commonest(counts: np.ndarray, word: Words, *, top: int = 10) -> Block:
    """Return a table of the commonest tokens of each level, for their uses (L, V)."""
    head, columns = ["rank"], []
    for level, row in enumerate(counts):
        order = np.argsort(-row, kind="stable")[:top]
        head += [f"level {level}", "share, %"]
        columns.append([(_visible(word(int(index))), round(100 * row[index] / max(int(row.sum()), 1), 1)) for index in order if row[index]])
    rows: list[list[str | float]] = []
    for rank in range(max((len(column) for column in columns), default=0)):
        cells = [column[rank] if rank < len(column) else ("", "") for column in columns]
        rows.append([str(rank + 1), *(float(value) if not isinstance(value, str) else value for cell in cells for value in cell)])
    return table(head, rows, caption="the commonest tokens")


def read_words(base: str | Path) -> Words:
    """Return a function from vocabulary id to the token's text.

    Args:
        base: a language model: a Hugging Face folder, the folder around it that `make_base_model` writes, or a GGUF file.
    """
    inner = Path(base) / "model"
    tokens = read_vocabulary(find_model(inner if (inner / "config.json").is_file() else base)).tokens
    blank = "Ġ" if spells_bytes(tokens.values()) else "▁"
    return lambda index: tokens.get(index, str(index)).replace(blank, " ").replace("Ċ", "\n")


def _levels(ids: np.ndarray, store: Store) -> list[np.ndarray]:
    """Ids (..., N) in id order -> (..., cells) per level."""
    return list(store.layout.split(store.layout.restore(ids)))


def _as_grid(level: np.ndarray, store: Store) -> np.ndarray:
    """Ids (cells,) of one level in raster order -> (h, w)."""
    return level.reshape(next(grid for grid in store.layout.grids if grid[0] * grid[1] == len(level)))


def _frequent(ids: np.ndarray, word: Words) -> str:
    values, counts = np.unique(ids, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_WORDS]
    found = [(_visible(word(int(values[at]))), int(counts[at])) for at in order]
    return ", ".join(text if count == 1 else f"{text} ({count} times)" for text, count in found)


def _visible(token: str) -> str:
    """A token without the space before it; other blanks by name."""
    return token.strip() or {"": "empty", " ": "space", "\n": "newline", "\t": "tab"}.get(token, "blanks")
