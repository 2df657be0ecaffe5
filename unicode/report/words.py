"""Stores of ids -> the section on the words that images are made of: examples, the map of the vocabulary, shared tokens."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from unicode.ids.store import Store
from unicode.images.listing import spread
from unicode.images.lookup import ImageLookup
from unicode.llm.vocabulary import find_model, read_vocabulary, spells_bytes
from unicode.report.page import Block, Card, Cell, Section, gallery, heading, missing, paragraph, picture, table
from unicode.tokenizer.load import load_tokenizer

MAX_COUNTED = 5000
NUM_EXAMPLES, NUM_SHARED = 4, 10
MAX_WORDS = 24
MAX_COLUMNS = 8  # wider grids of words do not fit a screen: they are listed by frequency
COLOURS = ((222, 106, 40), (56, 130, 224), (160, 92, 205))  # coarse level, finer levels, both
UNUSED, TRANSPARENT = (128, 128, 128, 46), (0, 0, 0, 0)

Words = Callable[[int], str]  # Vocabulary id -> the token's text


def words_section(
    ids: Sequence[str | Path], images: ImageLookup, *, tokenizer: Path | None = None, base: Path | None = None, about: str = ""
) -> Section:
    """Return the section on the stores `ids`, by default those below `tokenizer`, whose pictures `images` finds.

    `tokenizer`: run folder whose codebook tells which ids images may use. `base`: the language model whose tokens the ids are; without it
    ids are shown as numbers. `about`: part of the captions of the examples. Raises FileNotFoundError, ValueError: a store is not there,
    not finished or damaged.
    """
    found = [Path(one) for one in ids] or [path.parent for path in sorted(tokenizer.glob("ids/**/manifest.json") if tokenizer else ())]
    stores = [Store(path) for path in found]
    counts, num_images = count_words(stores)
    if counts is None:
        remedy = "python -m unicode.run.encode_images --ckpt RUN --images IMAGES --out RUN/ids/NAME"
        return Section("Images as words", "Words", [missing("No ids of images were found below the tokenizer. They come from", remedy)])
    blocks = [paragraph("Each code is a row of the language model's own embedding table, so an image is a run of its tokens.")]
    if base is None:
        blocks.append(missing("The words are not known, ids stand in their place; name the language model with", "--base DIR"))
    word = read_words(base) if base else str
    eligible = np.isin(np.arange(counts.shape[1]), load_tokenizer(tokenizer).row_ids.numpy()) if tokenizer else None
    blocks += [
        gallery(find_examples(stores, images, word, about=about), "words"),
        heading("The vocabulary, one dot a token"),
        map_block(counts, word, eligible=eligible, num_images=num_images),
        *shared_words(stores, images, word, about=about),
    ]
    return Section("Images as words", "Words", blocks)


def count_words(stores: Sequence[Store]) -> tuple[np.ndarray | None, int]:
    """Return the uses of each id per level, (L, V) int64, over at most `MAX_COUNTED` images, evenly taken, and their number."""
    total: np.ndarray | None = None
    number = 0
    for store in stores:
        keys = spread(list(store), max(1, MAX_COUNTED // len(stores)))
        if keys:
            levels = store.layout.split(store.layout.restore(np.stack([store[key] for key in keys])))
            counts = np.stack([np.bincount(ids.ravel().astype(np.int64), minlength=store.spec.vocab_size) for ids in levels])
            if total is None or total.shape == counts.shape:
                total = counts if total is None else total + counts
                number += len(keys)
    return total, number


def draw_map(counts: np.ndarray, eligible: np.ndarray | None = None) -> np.ndarray:
    """Draw every id of a vocabulary as one pixel, in raster order of ids.

    `counts`: (L, V) uses per level, coarse to fine. `eligible`: (V,) bool, ids that the codebook may use; None: all. Returns (h, w, 4)
    uint8: coloured by the levels that use an id, the more opaque the more often; grey: unused; transparent: not eligible.
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
    for chosen, colour in zip((coarse & ~fine, fine & ~coarse, coarse & fine), COLOURS, strict=True):
        pixels[:size][chosen, :3] = colour
        pixels[:size][chosen, 3] = (110 + 145 * strength[chosen]).astype(np.uint8)
    return pixels.reshape(-1, width, 4)


def map_block(counts: np.ndarray, word: Words, *, eligible: np.ndarray | None, num_images: int) -> Block:
    """Return the map of all ids for their uses, (L, V), with its legend."""
    total = counts.sum(axis=0)
    free = counts.shape[1] if eligible is None else int(eligible.sum())
    use = f"{int((total > 0).sum())} of {free} eligible tokens are used by {num_images} images"
    common = ", ".join(_visible(word(int(index))) for index in np.argsort(-total, kind="stable")[:5] if total[index])
    alt = f"Map of {counts.shape[1]} ids: {use}, most of all {common}"
    shown = picture(draw_map(counts, eligible), alt, style="map pixels", max_side=1024)
    return {"kind": "map", "picture": shown, "text": f"{use}; the more opaque, the more often."}


def shared_words(stores: Sequence[Store], images: ImageLookup, word: Words, *, about: str) -> list[Block]:
    """Return a table of the tokens that set pictures whose caption contains `about` apart from all others; nothing without both kinds."""
    counts = np.zeros((2, max(store.spec.vocab_size for store in stores)))
    number = np.zeros((2, 1))
    for store in stores:
        for key in spread(list(store), MAX_COUNTED):
            kind = int(about.casefold() in images.caption(key).casefold())
            counts[kind, np.unique(store[key])] += 1
            number[kind] += 1
    if not number.all():
        return []
    others, own = 100 * counts / number
    order = np.argsort(others - own, kind="stable")[:NUM_SHARED]
    head = ["token", f'of {int(number[1, 0]):,} pictures about "{about}", %', f"of {int(number[0, 0]):,} others, %"]
    rows: list[list[Cell]] = [[_visible(word(int(at))), round(float(own[at]), 1), round(float(others[at]), 1)] for at in order]
    return [heading(f'What pictures about "{about}" share'), table(head, rows, caption="pictures in which a token occurs")]


def find_examples(stores: Sequence[Store], images: ImageLookup, word: Words, *, about: str) -> list[Card]:
    """Return cards of pictures whose caption contains `about`, the shortest captions first; of any pictures where none does."""
    captions = [(images.caption(key), key, store) for store in stores for key in spread(list(store), MAX_COUNTED)]
    captions.sort(key=lambda one: (about.casefold() not in one[0].casefold(), len(one[0]), one[1]))
    found = ((pixels, *one) for one in captions if (pixels := images.find(one[1])) is not None)
    cards = []
    for pixels, caption, key, store in islice(found, NUM_EXAMPLES):
        levels = store.layout.split(store.layout.restore(store[key]))
        coarse = levels[0].reshape(store.layout.grids[0])
        cards.append(word_card(np.asarray(pixels), caption or key, [coarse, *levels[1:]], word))
    return cards


def word_card(pixels: np.ndarray, caption: str, levels: Sequence[np.ndarray], word: Words) -> Card:
    """Return a picture, (H, W, 3) uint8, the words of its coarse level in their places and those of finer levels by frequency."""
    fits = levels[0].shape[1] <= MAX_COLUMNS
    grid = [[_visible(word(int(index))) for index in row] for row in levels[0]] if fits else []
    lines = [f"{'finer' if level else 'coarse'}: {_frequent(ids, word)}" for level, ids in enumerate(levels) if level or not fits]
    return Card([(picture(pixels, caption), "")], caption, lines, words=grid)


def read_words(base: str | Path) -> Words:
    """Return a function from vocabulary id to text; `base`: a Hugging Face folder, the folder of `make_base_model`, or a GGUF file."""
    inner = Path(base) / "model"
    tokens = read_vocabulary(find_model(inner if (inner / "config.json").is_file() else base)).tokens
    blank = "Ġ" if spells_bytes(tokens.values()) else "▁"
    return lambda index: tokens.get(index, str(index)).replace(blank, " ").replace("Ċ", "\n")


def _frequent(ids: np.ndarray, word: Words) -> str:
    values, counts = np.unique(ids, return_counts=True)
    found = [(_visible(word(int(values[at]))), int(counts[at])) for at in np.argsort(-counts, kind="stable")[:MAX_WORDS]]
    return ", ".join(text if count == 1 else f"{text} ({count} times)" for text, count in found)


def _visible(token: str) -> str:
    return token.strip() or {"": "empty", " ": "space", "\n": "newline", "\t": "tab"}.get(token, "blanks")
