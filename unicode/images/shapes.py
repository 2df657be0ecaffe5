"""The shapes world: scenes of a few objects drawn by seed, with their picture, caption and questions, and a judge of pictures.

The embedded default data of the whole project. Nothing is stored: scene i of a split is a function of the settings. A scene
of the split "val" contains at least one combination (colour, shape, place) that no scene of "train" contains.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from random import Random

import numpy as np

from unicode.images import drawing, wording
from unicode.images.scene import COLOURS, SHAPES, ShapesConfig, Thing, combinations
from unicode.images.wording import Question

SPLITS = ("train", "val")
WIDE = {"colours": len(COLOURS), "shapes": len(SHAPES), "places": 3, "min_objects": 2, "max_objects": 3, "jitter": 0}
WIDE_SHARE, HELD, FACTS = 0.6, 0.25, 0.05  # shares of the lines of text
__all__ = ["Question", "Scene", "ShapesConfig", "Thing", "draw_scene", "find_scene", "judge", "scene_keys", "world_text"]


@dataclass(frozen=True)
class Scene:
    """A few things in their places. Two scenes are equal if their things are."""

    things: tuple[Thing, ...]  # in reading order of their places
    config: ShapesConfig
    seed: int = 0  # of jitter and background noise

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scene) and self.things == other.things

    def __hash__(self) -> int:
        return hash(self.things)

    def pixels(self) -> np.ndarray:
        """Return the picture, (3, H, W) uint8."""
        return drawing.draw(self.things, self.config, seed=self.seed)

    def render(self) -> np.ndarray:
        """Return the picture, (3, H, W) float32 in [-1, 1]."""
        return self.pixels().astype(np.float32) * np.float32(2 / 255) - np.float32(1)

    def caption(self, rng: Random | None = None) -> str:
        """Return a caption that determines the scene; `rng` chooses among the templates, None takes the first."""
        return wording.caption(self.things, self.config, rng)

    def questions(self, rng: Random) -> list[Question]:
        """Return questions with one right answer each, the kinds taking turns; cut the list for fewer."""
        return wording.questions(self.things, self.config, rng)


def draw_scene(config: ShapesConfig, split: str, index: int) -> Scene:
    """Return scene `index` of a split ("train" or "val"); the same settings give the same scene on every machine.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"the shapes world has no split '{split}'; its splits are {' and '.join(SPLITS)}")
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
    """Return the keys of the scenes of a split, or of the first `limit` of them: "train/0000007.png" is scene 7 of "train"."""
    total = config.num_train if split == "train" else config.num_val
    return [f"{split}/{index:07d}.png" for index in range(min(limit, total) if limit else total)]


def find_scene(config: ShapesConfig, key: str) -> Scene:
    """Return the scene of a key of `scene_keys`; ValueError for any other."""
    split, _, name = key.partition("/")
    number = name.removesuffix(".png")
    if not number.isdecimal():
        raise ValueError(f"'{key}' is no key of the shapes world; they look like train/0000007.png")
    return draw_scene(config, split, int(number))


def judge(pixels: np.ndarray, config: ShapesConfig) -> Scene:
    """Read a picture (3, H, W) float32 in [-1, 1], numpy or a CPU tensor, back into the scene whose picture is nearest.

    Raises:
        ValueError: the picture has another shape than the world's pictures.
    """
    expected = (3, config.image_size, config.image_size)
    if tuple(pixels.shape) != expected:
        raise ValueError(f"a picture of this world has shape {expected}, not {tuple(pixels.shape)}; set image_size of the world")
    return Scene(tuple(drawing.read(np.asarray(pixels), config)), config)


def world_text(num_lines: int | None = None, *, seed: int = 0, config: ShapesConfig | None = None) -> Iterator[str]:
    """Yield lines of text about the world for pre-training a small language model; without end if `num_lines` is None.

    Most lines say the same scene several times in other words and orders, then ask about it: to go on with such a line a model has to
    look up what was said of a place or thing, which is what questions about pictures ask of it later. Six lines in ten are about a
    wider world (all colours, shapes and places), where there is too much to learn by heart. Words are free to combine, as in the text of
    any language model: held-out combinations occur here, and in no picture of the split "train".
    """
    world = replace(config or ShapesConfig(), seed=seed)
    wide = replace(world, **WIDE, image_size=max(world.image_size, 48), sizes=world.sizes, grid=8)
    rng = Random(seed)
    for _ in count() if num_lines is None else range(num_lines):
        if rng.random() < FACTS:
            yield wording.fact(world, rng)
            continue
        split = "val" if rng.random() < HELD else "train"
        scene = draw_scene(wide if rng.random() < WIDE_SHARE else world, split, 2**20 + rng.getrandbits(40))
        words = [scene.caption(rng) for _ in range(rng.randint(1, 5))]
        words += [f"Question: {question.text} Answer: {question.answer}." for question in scene.questions(rng)[: rng.randint(0, 5)]]
        yield " ".join(words)
