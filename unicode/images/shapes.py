"""The shapes world: a seed -> a scene of a few objects -> its picture, and from a picture back to the scene."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations as pairs_of
from itertools import product
from random import Random
from typing import NamedTuple

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 45, 40), "green": (45, 165, 65), "blue": (45, 85, 225), "yellow": (245, 215, 50),
    "purple": (150, 55, 175), "white": (245, 245, 245), "orange": (245, 130, 25), "cyan": (60, 205, 215),
}  # fmt: skip
BACKGROUND = np.array((44, 46, 52), np.float32)
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
SIZES = {1: ("large",), 2: ("small", "large"), 3: ("small", "medium", "large")}
SIZE_SHARES = {1: (1.0,), 2: (0.5, 1.0), 3: (0.4, 0.7, 1.0)}  # of the largest width that fits a place
PLACES = {
    2: ("top left", "top right", "bottom left", "bottom right"),
    3: ("top left", "top center", "top right", "center left", "center", "center right", "bottom left", "bottom center", "bottom right"),
}
SPLITS = ("train", "val")
SUPERSAMPLING = 8  # samples per pixel and axis; even, so that masks are symmetric
LEAST_DISTANCE = 1.5  # squared distance between two stencils below which a noisy picture could not be read


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
        return tuple(COLOURS)[: self.colours]

    @property
    def shape_names(self) -> tuple[str, ...]:
        return SHAPES[: self.shapes]

    @property
    def size_names(self) -> tuple[str, ...]:
        return SIZES[self.sizes]

    @property
    def place_names(self) -> tuple[str, ...]:
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


@dataclass(frozen=True)
class Scene:
    """A few things in their places. Two scenes are equal if their things are."""

    things: tuple[Thing, ...]  # in reading order of their places
    config: ShapesConfig = field(compare=False)
    seed: int = field(default=0, compare=False)  # of jitter and background noise

    def pixels(self) -> np.ndarray:
        """Return the picture, (3, H, W) uint8. Raises ValueError: two shapes or sizes of this world are too alike to be told apart."""
        config = self.config
        canvas = np.empty((3, config.image_size, config.image_size), np.float32)
        canvas[:] = BACKGROUND[:, None, None]
        random = np.random.default_rng(self.seed) if config.jitter or config.noise else None
        if random is not None and config.noise:
            canvas += random.standard_normal(canvas.shape, np.float32) * np.float32(config.noise * 255)
        stencils = _stencils(config.cell, config.shape_names, config.size_names, config.jitter)
        for thing in self.things:
            y, x = config.corner(thing.place)
            dy, dx = (int(shift) for shift in random.integers(-config.jitter, config.jitter + 1, 2)) if random is not None else (0, 0)
            patch = canvas[:, y : y + config.cell, x : x + config.cell]
            patch += stencils[thing.shape, thing.size, dy, dx] * (np.array(COLOURS[thing.colour], np.float32)[:, None, None] - patch)
        return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def parse_scene(pixels: np.ndarray, config: ShapesConfig) -> Scene:
    """Return the scene whose picture is nearest to a picture.

    In each place the nearest of all stencils in all colours is taken, or nothing if the bare background is nearer (least squares).
    `pixels`: (3, H, W) float32 in [-1, 1], numpy or a CPU tensor. Raises ValueError: the picture has another shape than the world's
    pictures.
    """
    expected = (3, config.image_size, config.image_size)
    if tuple(pixels.shape) != expected:
        raise ValueError(f"a picture of this world has shape {expected}, not {tuple(pixels.shape)}; set image_size of the world")
    stencils, cell = _stencils(config.cell, config.shape_names, config.size_names, config.jitter), config.cell
    corners = [config.corner(place) for place in config.place_names]
    scaled = (np.asarray(pixels, np.float32) + 1) * 127.5 - BACKGROUND[:, None, None]
    patches = np.stack([scaled[:, y : y + cell, x : x + cell] for y, x in corners]).reshape(len(corners), 3, -1)
    masks = np.stack(list(stencils.values())).reshape(len(stencils), -1)  # (T, cell * cell)
    paints = np.array([COLOURS[name] for name in config.colour_names], np.float32) - BACKGROUND  # (K, 3)
    # |d - m v|^2 = |d|^2 - (2 <d, m v> - |m|^2 |v|^2): the stencil with the largest bracket is the nearest
    overlap = np.einsum("pct,kc->ptk", patches @ masks.T, paints)
    gain = 2 * overlap - (masks**2).sum(1)[:, None] * (paints**2).sum(1)
    things, kinds = [], list(stencils)
    for place, scores in zip(config.place_names, gain, strict=True):
        stencil, colour = np.unravel_index(int(scores.argmax()), scores.shape)
        if scores[stencil, colour] > 0:
            shape, size, _, _ = kinds[stencil]
            things.append(Thing(config.colour_names[colour], shape, size, place))
    return Scene(tuple(things), config)


@lru_cache(maxsize=16)
def _stencils(cell: int, shapes: tuple[str, ...], sizes: tuple[str, ...], jitter: int) -> dict[tuple[str, str, int, int], np.ndarray]:
    """Return the mask (cell, cell) float32, the share of each pixel that is covered, of every shape, size, dy and dx in a place."""
    widest = cell - 2 * max(1, cell // 8, jitter)  # a shifted object still lies in its place
    widths = {name: 2 * round(widest / 2 * share) for name, share in zip(sizes, SIZE_SHARES[len(sizes)], strict=True)}
    shifts = range(-jitter, jitter + 1)
    kinds = list(product(shapes, sizes, shifts, shifts))
    masks = np.stack([_mask(shape, cell, widths[size], dy, dx) for shape, size, dy, dx in kinds])
    flat = masks.reshape(len(masks), -1)
    norms = (flat**2).sum(1)
    distances = norms[:, None] + norms - 2 * flat @ flat.T
    looks = np.array([shapes.index(shape) * 8 + sizes.index(size) for shape, size, _, _ in kinds])
    if distances[looks[:, None] != looks].min() < LEAST_DISTANCE:
        advice = "use a larger image_size, or fewer shapes, sizes or places"
        raise ValueError(f"places of {cell} px are too small to tell these shapes and sizes apart; {advice}")
    return dict(zip(kinds, masks, strict=True))


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


class Combinations(NamedTuple):
    """Which combinations of properties the scenes of a split are made of."""

    seen: dict[str, list[tuple[str, str]]]  # by place the (colour, shape) of training scenes
    held: list[tuple[str, str, str]]  # (colour, shape, place) that no training scene contains


def combinations(config: ShapesConfig) -> Combinations:
    """Divide the combinations (colour, shape, place) of a world into seen ones and held-out ones.

    The choice depends on the names alone, not on a seed: in the order of a hash, a combination is held out if training keeps
    each of its pairs (colour, shape), (colour, place) and (shape, place) in at least half of the combinations that have it. With
    fewer, training scenes would teach a rule instead: if all white things at the bottom right were triangles, a white square
    there would contradict that rule.
    """
    return _combinations(config.colour_names, config.shape_names, config.place_names, config.holdout)


@lru_cache(maxsize=16)
def _combinations(colours: tuple[str, ...], shapes: tuple[str, ...], places: tuple[str, ...], share: float) -> Combinations:
    every = list(product(colours, shapes, places))
    total = Counter(pair for names in every for pair in pairs_of(names, 2))
    left = total.copy()
    held: set[tuple[str, str, str]] = set()
    for names in sorted(every, key=lambda names: hashlib.sha1("/".join(names).encode()).digest()):
        pairs = list(pairs_of(names, 2))
        if len(held) < max(1, round(share * len(every))) and all(2 * (left[pair] - 1) >= total[pair] for pair in pairs):
            held.add(names)
            left.subtract(pairs)
    if not held:
        size = f"{len(colours)} colours and {len(shapes)} shapes"
        raise ValueError(f"a world of {size} is too small to hold a combination out; add colours or shapes")
    seen = {place: [(c, s) for c, s, p in every if p == place and (c, s, p) not in held] for place in places}
    return Combinations(seen, [names for names in every if names in held])


def draw_scene(config: ShapesConfig, split: str, index: int) -> Scene:
    """Return scene `index` of a split ("train" or "val"); the same settings give the same scene on every machine.

    Raises ValueError: an unknown split.
    """
    _check_split(split)
    digest = hashlib.blake2b(f"{config.seed}/{split}/{index}".encode(), digest_size=8).digest()
    rng = Random(int.from_bytes(digest, "little"))
    parts = combinations(config)
    number = rng.randint(config.min_objects, config.max_objects)
    chosen: dict[str, tuple[str, str]] = {}
    if split == "val":
        colour, shape, place = rng.choice(parts.held)
        chosen[place] = (colour, shape)
    for place in rng.sample([name for name in config.place_names if name not in chosen], number - len(chosen)):
        if split == "val":  # beside the held-out thing anything may stand
            chosen[place] = (rng.choice(config.colour_names), rng.choice(config.shape_names))
        else:
            chosen[place] = rng.choice(parts.seen[place])
    things = [Thing(*chosen[place], rng.choice(config.size_names), place) for place in config.place_names if place in chosen]
    return Scene(tuple(things), config, seed=rng.getrandbits(63))


def scene_keys(config: ShapesConfig, split: str, *, limit: int = 0) -> list[str]:
    """Return the keys of the scenes of a split, or of the first `limit` of them: "train/0000007.png" is scene 7 of "train".

    Raises ValueError: an unknown split.
    """
    _check_split(split)
    total = config.num_train if split == "train" else config.num_val
    return [f"{split}/{index:07d}.png" for index in range(min(limit, total) if limit else total)]


def find_scene(config: ShapesConfig, key: str) -> Scene:
    """Return the scene of a key of `scene_keys`; ValueError for any other."""
    split, _, name = key.partition("/")
    number = name.removesuffix(".png")
    if not number.isdecimal():
        raise ValueError(f"'{key}' is no key of the shapes world; they look like train/0000007.png")
    return draw_scene(config, split, int(number))


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"the shapes world has no split '{split}'; its splits are {' and '.join(SPLITS)}")
