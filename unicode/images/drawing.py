"""Things -> pixels and back: every object is a stencil in its place, so reading a picture is finding the nearest stencils."""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from unicode.images.scene import BACKGROUND, COLOURS, ShapesConfig, Thing

SUPERSAMPLING = 8  # samples per pixel and axis; even, so that masks are symmetric
LEAST_DISTANCE = 1.5  # squared distance between two stencils below which a noisy picture could not be read


class Stencils(NamedTuple):
    """Masks of every shape, size and shift in a place of `cell` pixels."""

    masks: np.ndarray  # (T, cell, cell) float32, the share of each pixel that the object covers
    shapes: list[int]  # (T,) index of the shape
    sizes: list[int]  # (T,) index of the size
    find: dict[tuple[int, int, int, int], int]  # (shape, size, dy, dx) -> row


def draw(things: Iterable[Thing], config: ShapesConfig, *, seed: int = 0) -> np.ndarray:
    """Return the picture of some things, (3, H, W) uint8. `seed` decides jitter and noise, where the config has them."""
    canvas = np.empty((3, config.image_size, config.image_size), np.float32)
    canvas[:] = _background()
    random = np.random.default_rng(seed) if config.jitter or config.noise else None
    if random is not None and config.noise:
        canvas += random.standard_normal(canvas.shape, np.float32) * np.float32(config.noise * 255)
    stencils = _stencils_of(config)
    for thing in things:
        y, x = config.corner(thing.place)
        dy, dx = (int(shift) for shift in random.integers(-config.jitter, config.jitter + 1, 2)) if random is not None else (0, 0)
        kind = (config.shape_names.index(thing.shape), config.size_names.index(thing.size), dy, dx)
        mask = stencils.masks[stencils.find[kind]]
        patch = canvas[:, y : y + config.cell, x : x + config.cell]
        patch += mask * (np.array(COLOURS[thing.colour], np.float32)[:, None, None] - patch)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def read(pixels: np.ndarray, config: ShapesConfig) -> list[Thing]:
    """Return the things in a picture (3, H, W) float32 in [-1, 1], in reading order of their places.

    In each place the nearest of all stencils in all colours, or nothing if the bare background is nearer (least squares).
    """
    stencils = _stencils_of(config)
    cell = config.cell
    corners = [config.corner(place) for place in config.place_names]
    scaled = (np.asarray(pixels, np.float32) + 1) * 127.5 - _background()
    patches = np.stack([scaled[:, y : y + cell, x : x + cell] for y, x in corners]).reshape(len(corners), 3, -1)
    masks = stencils.masks.reshape(len(stencils.masks), -1)  # (T, cell * cell)
    paints = np.array([COLOURS[name] for name in config.colour_names], np.float32) - _background()[:, 0, 0]  # (K, 3)
    # |d - m v|^2 = |d|^2 - (2 <d, m v> - |m|^2 |v|^2): the stencil with the largest bracket is the nearest
    overlap = np.einsum("pct,kc->ptk", patches @ masks.T, paints)
    gain = 2 * overlap - (masks**2).sum(1)[:, None] * (paints**2).sum(1)
    things = []
    for place, scores in zip(config.place_names, gain, strict=True):
        stencil, colour = np.unravel_index(int(scores.argmax()), scores.shape)
        if scores[stencil, colour] > 0:
            shape, size = config.shape_names[stencils.shapes[stencil]], config.size_names[stencils.sizes[stencil]]
            things.append(Thing(config.colour_names[colour], shape, size, place))
    return things


@lru_cache(maxsize=1)
def _background() -> np.ndarray:
    return np.array(BACKGROUND, np.float32)[:, None, None]


def _stencils_of(config: ShapesConfig) -> Stencils:
    return _stencils(config.cell, config.shape_names, config.sizes, config.jitter)


@lru_cache(maxsize=16)
def _stencils(cell: int, shapes: tuple[str, ...], sizes: int, jitter: int) -> Stencils:
    """Make the stencils of a world; ValueError if two of them are so alike that a picture could not be read."""
    widest = cell - 2 * max(1, cell // 8, jitter)  # a shifted object still lies in its place
    widths = [2 * round(widest / 2 * share) for share in {1: (1.0,), 2: (0.5, 1.0), 3: (0.4, 0.7, 1.0)}[sizes]]
    masks: list[np.ndarray] = []
    shape_rows: list[int] = []
    size_rows: list[int] = []
    find: dict[tuple[int, int, int, int], int] = {}
    for shape, name in enumerate(shapes):
        for size, width in enumerate(widths):
            for dy in range(-jitter, jitter + 1):
                for dx in range(-jitter, jitter + 1):
                    find[shape, size, dy, dx] = len(masks)
                    masks.append(_mask(name, cell, width, dy, dx))
                    shape_rows.append(shape)
                    size_rows.append(size)
    stacked = np.stack(masks)
    _check_distances(stacked, shape_rows, size_rows, cell)
    return Stencils(stacked, shape_rows, size_rows, find)


def _check_distances(masks: np.ndarray, shapes: list[int], sizes: list[int], cell: int) -> None:
    flat = masks.reshape(len(masks), -1)
    norms = (flat**2).sum(1)
    distances = norms[:, None] + norms - 2 * flat @ flat.T
    kinds = np.array(shapes) * 8 + np.array(sizes)
    nearest = distances[kinds[:, None] != kinds].min()
    if nearest < LEAST_DISTANCE:
        advice = "use a larger image_size, or fewer shapes, sizes or places"
        raise ValueError(f"places of {cell} px are too small to tell these shapes and sizes apart; {advice}")


def _mask(shape: str, cell: int, width: int, dy: int, dx: int) -> np.ndarray:
    """Return the share of each pixel (cell, cell) that a shape covers, in eighths of a pixel along each axis."""
    samples = (np.arange(cell * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - cell / 2
    u = ((samples - dx) / (width / 2))[None, :]  # -1 to 1 over the object, left to right
    v = ((samples - dy) / (width / 2))[:, None]  # -1 to 1, top to bottom
    box = np.maximum(abs(u), abs(v)) <= 1
    inside = {
        "circle": u**2 + v**2 <= 1,
        "square": box,
        "triangle": box & (abs(u) <= (v + 1) / 2),
        "cross": box & (np.minimum(abs(u), abs(v)) <= 1 / 3),
        "diamond": abs(u) + abs(v) <= 1,
        "ring": (u**2 + v**2 <= 1) & (u**2 + v**2 >= 0.3),
    }[shape]
    return inside.reshape(cell, SUPERSAMPLING, cell, SUPERSAMPLING).mean((1, 3)).astype(np.float32)
