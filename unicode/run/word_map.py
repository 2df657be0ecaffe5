"""What a report shows of a codebook: stores of ids and a language model's vocabulary -> counts of ids, examples, the text of an id."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unicode.ids.layout import Layout
from unicode.ids.store import Store
from unicode.llm.embedding import find_model
from unicode.llm.vocabulary import read_vocabulary, spells_bytes
from unicode.report.runs import spread
from unicode.report.vocabulary import Coded, Words, count_ids
from unicode.run.picture_finder import PictureFinder
from unicode.tokenizer.load import load_tokenizer

MAX_COUNTED = 5000
NUM_EXAMPLES = 4


def find_stores(ids: Sequence[str | Path], tokenizer: str | Path | None) -> list[Store]:
    """Open the stores that are named, or those of the tokenizer's folder.

    Raises:
        FileNotFoundError, ValueError: a store that was named is not there, not finished or damaged.
    """
    if ids:
        return [Store(path) for path in ids]
    if tokenizer is None:
        return []
    return [Store(path.parent) for path in sorted(Path(tokenizer).glob("ids/**/manifest.json"))]


def count_words(stores: Sequence[Store]) -> tuple[np.ndarray | None, int]:
    """Return the uses of each id per level, (L, V) int64, over at most `MAX_COUNTED` pictures, evenly taken, and their number."""
    total: np.ndarray | None = None
    number = 0
    for store in stores:
        keys = spread(list(store), max(1, MAX_COUNTED // len(stores)))
        if not keys:
            continue
        levels = _levels(np.stack([store[key] for key in keys]), store.layout)
        counts = count_ids(levels, store.origin.vocab_size)
        if total is None or total.shape == counts.shape:
            total = counts if total is None else total + counts
            number += len(keys)
    return total, number


def find_examples(stores: Sequence[Store], finder: PictureFinder, about: str) -> list[Coded]:
    """Return pictures to spell out: those whose caption says `about`, the shortest captions first; any where none does."""
    found: list[tuple[bool, int, str, Store]] = []
    for store in stores:
        for key in spread(list(store), MAX_COUNTED):
            caption = finder.caption(key)
            found.append((about.casefold() not in caption.casefold(), len(caption), key, store))
    examples = []
    for _, _, key, store in sorted(found, key=lambda one: one[:3]):
        picture = finder(key)
        if picture is not None:
            ids = [_as_grid(level, store.layout) for level in _levels(store[key], store.layout)]
            examples.append(Coded(np.asarray(picture.convert("RGB")), finder.caption(key) or key, tuple(ids)))
        if len(examples) == NUM_EXAMPLES:
            break
    return examples


def read_words(base: str | Path) -> Words:
    """Return a function from vocabulary id to the token's text.

    Args:
        base: a language model: a Hugging Face folder, the folder around it that `make_base_model` writes, or a GGUF file.
    """
    inner = Path(base) / "model"
    tokens = read_vocabulary(find_model(inner if (inner / "config.json").is_file() else base)).tokens
    blank = "Ġ" if spells_bytes(tokens.values()) else "▁"
    return lambda index: tokens.get(index, str(index)).replace(blank, " ").replace("Ċ", "\n")


def eligible_ids(tokenizer: str | Path, size: int) -> np.ndarray:
    """Return which ids of a vocabulary of `size` are rows of a tokenizer's codebook, (size,) bool."""
    eligible = np.zeros(size, dtype=bool)
    rows = load_tokenizer(tokenizer).row_ids.numpy()
    eligible[rows[rows < size]] = True
    return eligible


def _levels(ids: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """Ids (..., N) in id order -> (..., cells) per level."""
    return list(layout.split(layout.restore(ids)))


def _as_grid(level: np.ndarray, layout: Layout) -> np.ndarray:
    """Ids (cells,) of one level in raster order -> (h, w)."""
    grid = next(grid for grid in layout.grids if grid[0] * grid[1] == len(level))
    return level.reshape(grid)
