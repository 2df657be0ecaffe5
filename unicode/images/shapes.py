"""The shapes world: settings, objects, held-out combinations; objects -> pixels and back."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 45, 40), "green": (45, 165, 65), "blue": (45, 85, 225), "yellow": (245, 215, 50),
    "purple": (150, 55, 175), "white": (245, 245, 245), "orange": (245, 130, 25), "cyan": (60, 205, 215),
}  # fmt: skip
BACKGROUND = (44, 46, 52)
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
SIZES = {1: ("large",), 2: ("small", "large"), 3: ("small", "medium", "large")}
PLACES = {
    2: ("top left", "top right", "bottom left", "bottom right"),
    3: ("top left", "top center", "top right", "center left", "center", "center right", "bottom left", "bottom center", "bottom right"),
}


@dataclass
class ShapesConfig:
    """Settings of the generated world. The defaults are the embedded default of the project: few, predictable pictures."""

    image_size: int = 32  # side in pixels; a data set's own image_size replaces it
    colours: int = 6  # how many colours there are, 2 to 8
    shapes: int = 3  # how many shapes there are, 2 to 6
    places: int = 2  # places along a side: 2 (four places) or 3 (nine)
    sizes: int = 1  # 1 (never mentioned), 2 (small, large) or 3 (small, medium, large)
    min_objects: int = 1  # fewest objects of a scene
    max_objects: int = 2  # most objects of a scene; each has a place of its own
    jitter: int = 0  # an object is moved up to so many pixels from the middle of its place, in x and in y
    noise: float = 0.0  # standard deviation of the background's pixels, 0 to 0.1 of the range from black to white
    grid: int = 8  # places start at multiples of so many pixels: the side of a tokenizer's finest patch
    holdout: float = 0.15  # share of the combinations (colour, shape, place) that only validation scenes contain
    num_train: int = 20000  # scenes of the split "train"
    num_val: int = 1000  # scenes of the split "val"
    seed: int = 0  # scene i of a split is a function of this seed, the split and i

    def __post_init__(self) -> None:
        for name, low, high in (("colours", 2, len(COLOURS)), ("shapes", 2, len(SHAPES)), ("places", 2, 3), ("sizes", 1, 3)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"shapes.{name} is {getattr(self, name)}; it must be {low} to {high}")
        if not 1 <= self.min_objects <= self.max_objects <= self.places**2:
            limits = f"shapes.min_objects {self.min_objects} and shapes.max_objects {self.max_objects}"
            raise ValueError(f"{limits} must satisfy 1 <= min <= max <= {self.places**2} places")
        if not 0 <= self.noise <= 0.1:
            raise ValueError(f"shapes.noise is {self.noise}; it must be 0 to 0.1 so that every object can still be told")
        if not 0 < self.holdout < 0.5:
            raise ValueError(f"shapes.holdout is {self.holdout}; it must lie between 0 and 0.5")
        if min(self.num_train, self.num_val) < 1:
            raise ValueError(f"shapes.num_train {self.num_train} and shapes.num_val {self.num_val} must be at least 1")
        if self.grid < 1 or self.cell < 8:
            what = f"shapes.image_size {self.image_size} leaves {self.cell} px for each of {self.places} places in a row"
            raise ValueError(f"{what}; 8 px is the least, set a larger image_size")
        if not 0 <= self.jitter <= self.cell // 4:
            raise ValueError(f"shapes.jitter is {self.jitter}; places of {self.cell} px allow 0 to {self.cell // 4}")

    @property
    def cell(self) -> int:
        """Side of a place in pixels: the largest multiple of `grid` that fits."""
        return self.image_size // self.places // self.grid * self.grid

    @property
    def colour_names(self) -> tuple[str, ...]:
        """Names of the colours of this world."""
        return tuple(COLOURS)[: self.colours]

    @property
    def shape_names(self) -> tuple[str, ...]:
        """Names of the shapes of this world."""
        return SHAPES[: self.shapes]

    @property
    def size_names(self) -> tuple[str, ...]:
        """Names of the sizes of this world, smallest first."""
        return SIZES[self.sizes]

    @property
    def place_names(self) -> tuple[str, ...]:
        """Names of the places of this world, in reading order."""
        return PLACES[self.places]

    def corner(self, place: str) -> tuple[int, int]:
        """Top left pixel (y, x) of a place; the places are spread over the whole picture, each on a multiple of `grid`."""
        row, column = divmod(self.place_names.index(place), self.places)
        step = (self.image_size - self.cell) / (self.places - 1)
        return round(row * step / self.grid) * self.grid, round(column * step / self.grid) * self.grid


class Thing(NamedTuple):
    """One object of a scene, in words."""

    colour: str
    shape: str
    size: str
    place: str


class Combinations(NamedTuple):
    """(colour, shape) pairs by place, for training and for validation."""

    seen: dict[str, list[tuple[str, str]]]  # what training scenes are made of
    held: list[tuple[str, str, str]]  # (colour, shape, place) that no training scene contains


def combinations(config: ShapesConfig) -> Combinations:
    """Divide the combinations (colour, shape, place) of a world into seen ones and held-out ones.

    The choice depends on the names alone, not on a seed: in the order of a hash, a combination is held out if training keeps
    each of its pairs (colour, shape), (colour, place) and (shape, place) in at least half of the combinations that have it. With
    fewer, training scenes would teach a rule instead: if of all white things only triangles lay at the bottom right, a white square
    there would contradict what was seen rather than be new.
    """
    return _combinations(config.colour_names, config.shape_names, config.place_names, config.holdout)


@lru_cache(maxsize=16)
def _combinations(colours: tuple[str, ...], shapes: tuple[str, ...], places: tuple[str, ...], share: float) -> Combinations:
    every = list(product(colours, shapes, places))
    count: dict[tuple[int, str, str], int] = {}
    for combination in every:
        for pair in _pairs(combination):
            count[pair] = count.get(pair, 0) + 1
    total = dict(count)
    held: set[tuple[str, str, str]] = set()
    for combination in sorted(every, key=lambda names: hashlib.sha1("/".join(names).encode()).digest()):
        if len(held) < max(1, round(share * len(every))) and all(2 * (count[pair] - 1) >= total[pair] for pair in _pairs(combination)):
            held.add(combination)
            for pair in _pairs(combination):
                count[pair] -= 1
    if not held:
        size = f"{len(colours)} colours and {len(shapes)} shapes"
        raise ValueError(f"a world of {size} is too small to hold a combination out; add colours or shapes")
    seen = {place: [(c, s) for c, s, p in every if p == place and (c, s, p) not in held] for place in places}
    return Combinations(seen, [combination for combination in every if combination in held])


def _pairs(combination: tuple[str, str, str]) -> list[tuple[int, str, str]]:
    colour, shape, place = combination
    return [(0, colour, shape), (1, colour, place), (2, shape, place)]


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
