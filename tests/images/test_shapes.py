"""The shapes world: settings, scenes by seed, unseen combinations in validation, pictures and their exact reading."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from unicode.images.shapes import BACKGROUND, COLOURS, Scene, ShapesConfig, Thing, combinations, draw_scene, parse_scene


def rendered(scene: Scene) -> np.ndarray:
    return scene.pixels().astype(np.float32) / np.float32(127.5) - 1


WORLDS = {
    "default": ShapesConfig(),
    "four shapes, eight colours": ShapesConfig(colours=8, shapes=4, max_objects=4),
    "sizes": ShapesConfig(colours=8, shapes=3, sizes=2),
    "jitter and noise": ShapesConfig(colours=8, shapes=4, jitter=2, noise=0.05),
    "64 px, nine places": ShapesConfig(image_size=64, colours=8, shapes=6, places=3, sizes=2, max_objects=5, jitter=1),
    "everything": ShapesConfig(image_size=64, colours=8, shapes=6, places=2, sizes=3, max_objects=4, jitter=2, noise=0.1),
}


@pytest.mark.parametrize("world", WORLDS)
def test_a_picture_is_read_exactly(world: str) -> None:
    config = WORLDS[world]
    for split in ("train", "val"):
        for index in range(400):
            scene = draw_scene(config, split, index)
            assert parse_scene(rendered(scene), config) == scene


@pytest.mark.parametrize("world", WORLDS)
def test_a_blurred_and_noisy_picture_is_read_exactly(world: str) -> None:
    config = WORLDS[world]
    random = np.random.default_rng(0)
    right = 0
    for index in range(200):
        scene = draw_scene(config, "val", index)
        picture = rendered(scene)
        padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
        blurred = 0.6 * picture + 0.1 * (padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:])
        spoiled = blurred + random.normal(0, 2 * 10 ** (-25 / 20), picture.shape)  # 25 dB on a range of two
        right += parse_scene(spoiled.astype(np.float32), config) == scene
    assert right == 200


def test_scenes_depend_on_settings_alone() -> None:
    config = ShapesConfig(max_objects=3, jitter=1, noise=0.02)
    again = draw_scene(ShapesConfig(max_objects=3, jitter=1, noise=0.02), "train", 7)
    assert (rendered(draw_scene(config, "train", 7)) == rendered(again)).all()
    scenes = {draw_scene(config, split, index).things for split in ("train", "val") for index in range(200)}
    assert len(scenes) > 250


def test_validation_shows_unseen_combinations_only_there() -> None:
    config = ShapesConfig()
    held = set(combinations(config).held)

    def unseen(scene: Scene) -> int:
        return sum((thing.colour, thing.shape, thing.place) in held for thing in scene.things)

    assert all(unseen(draw_scene(config, "train", index)) == 0 for index in range(2000))
    assert all(unseen(draw_scene(config, "val", index)) >= 1 for index in range(500))
    names = Counter(name for index in range(2000) for thing in draw_scene(config, "train", index).things for name in thing)
    assert set(config.colour_names + config.shape_names + config.place_names) <= set(names)


def test_numbers_of_objects_are_even() -> None:
    for split in ("train", "val"):
        counts = Counter(len(draw_scene(ShapesConfig(), split, index).things) for index in range(3000))
        assert set(counts) == {1, 2}
        assert max(counts.values()) - min(counts.values()) < 250
    assert {len(draw_scene(ShapesConfig(min_objects=4, max_objects=4), "val", index).things) for index in range(20)} == {4}


def test_rendering_is_in_range_and_takes_tensors() -> None:
    scene = draw_scene(ShapesConfig(), "val", 0)
    picture = rendered(scene)
    assert picture.shape == (3, 32, 32)
    assert picture.dtype == np.float32
    assert -1 <= picture.min() < picture.max() <= 1
    assert parse_scene(torch.from_numpy(picture), scene.config) == scene  # type: ignore[arg-type]


def test_bad_calls() -> None:
    with pytest.raises(ValueError, match="train and val"):
        draw_scene(ShapesConfig(), "test", 0)
    with pytest.raises(ValueError, match=r"\(3, 32, 32\)"):
        parse_scene(np.zeros((3, 64, 64), np.float32), ShapesConfig())


SMALL_AND_LARGE = [
    ShapesConfig(),
    ShapesConfig(colours=8, shapes=4),
    ShapesConfig(image_size=64, places=3, colours=8, shapes=6, max_objects=5),
    ShapesConfig(colours=2, shapes=2),
]


@pytest.mark.parametrize("config", SMALL_AND_LARGE)
def test_training_keeps_every_pair(config: ShapesConfig) -> None:
    parts = combinations(config)
    seen = {(colour, shape, place) for place, pairs in parts.seen.items() for colour, shape in pairs}
    assert not seen & set(parts.held)
    assert len(seen) + len(parts.held) == config.colours * config.shapes * config.places**2
    assert {(c, s) for c, s, _ in seen} == set(product(config.colour_names, config.shape_names))
    assert {(c, p) for c, _, p in seen} == set(product(config.colour_names, config.place_names))
    assert {(s, p) for _, s, p in seen} == set(product(config.shape_names, config.place_names))


@pytest.mark.parametrize("config", SMALL_AND_LARGE)
def test_training_keeps_half_of_what_each_pair_occurs_in(config: ShapesConfig) -> None:
    for left_out in range(3):  # the property that a pair does not name
        total = (config.colours, config.shapes, config.places**2)[left_out]
        seen = [(colour, shape, place) for place, pairs in combinations(config).seen.items() for colour, shape in pairs]
        number = Counter(names[:left_out] + names[left_out + 1 :] for names in seen)
        assert min(number.values()) * 2 >= total


def test_share_of_held_out_combinations() -> None:
    assert len(combinations(ShapesConfig()).held) == round(0.15 * 72)
    assert combinations(ShapesConfig()).held == combinations(ShapesConfig(seed=5)).held


@pytest.mark.parametrize(("size", "places", "grid"), [(32, 2, 8), (64, 3, 8), (64, 2, 8), (256, 3, 8), (256, 2, 16), (48, 3, 8)])
def test_places_start_on_the_grid_and_lie_apart(size: int, places: int, grid: int) -> None:
    config = ShapesConfig(image_size=size, places=places, grid=grid)
    corners = [config.corner(place) for place in config.place_names]
    assert all(y % grid == 0 and x % grid == 0 and max(y, x) + config.cell <= size for y, x in corners)
    taken = [(y + dy, x + dx) for y, x in corners for dy in range(config.cell) for dx in range(config.cell)]
    assert len(taken) == len(set(taken))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"colours": 9}, "colours"), ({"shapes": 1}, "shapes"), ({"places": 4}, "places"), ({"sizes": 0}, "sizes"),
        ({"max_objects": 5}, "4 places"), ({"min_objects": 0}, "min_objects"), ({"noise": 0.5}, "noise"), ({"holdout": 0.0}, "holdout"),
        ({"image_size": 8}, "image_size"), ({"jitter": 5}, "jitter"), ({"num_val": 0}, "num_val"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ShapesConfig(**settings)  # type: ignore[arg-type]


def test_an_object_fills_its_place_only() -> None:
    config = ShapesConfig()
    pixels = Scene((Thing("red", "square", "large", "bottom left"),), config).pixels()
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    painted = (pixels != np.array(BACKGROUND, np.uint8)[:, None, None]).any(0)
    assert painted[18:30, 2:14].all()
    assert painted.sum() == 12 * 12
    assert tuple(pixels[:, 20, 5]) == COLOURS["red"]


def test_a_place_is_the_same_wherever_it_is() -> None:
    config = ShapesConfig(image_size=64, places=3)
    cuts = []
    for place in config.place_names:
        y, x = config.corner(place)
        cuts.append(Scene((Thing("blue", "triangle", "large", place),), config).pixels()[:, y : y + config.cell, x : x + config.cell])
    assert all((cut == cuts[0]).all() for cut in cuts)


def test_an_empty_picture_holds_nothing() -> None:
    config = ShapesConfig(noise=0.1)
    assert parse_scene(rendered(Scene((), config, seed=3)), config).things == ()


def test_jitter_moves_an_object_inside_its_place() -> None:
    config = ShapesConfig(jitter=2)
    thing = Thing("green", "circle", "large", "top right")
    pictures = [Scene((thing,), config, seed).pixels() for seed in range(40)]
    assert len({picture.tobytes() for picture in pictures}) > 10
    assert all((picture[:, :, :16] == pictures[0][:, :, :16]).all() for picture in pictures)


def test_stencils_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="too small to tell"):
        Scene((), ShapesConfig(image_size=16, shapes=6, sizes=3)).pixels()
