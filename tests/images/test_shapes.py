"""The shapes world: the same scenes by seed, unseen combinations in validation, an exact judge, text."""

from collections import Counter
from itertools import islice
from random import Random

import numpy as np
import pytest
import torch

from unicode.images.shapes import ShapesConfig, combinations
from unicode.images.shapes_scenes import Scene, draw_scene, judge, world_text

WORLDS = {
    "default": ShapesConfig(),
    "four shapes, eight colours": ShapesConfig(colours=8, shapes=4, max_objects=4),
    "sizes": ShapesConfig(colours=8, shapes=3, sizes=2),
    "jitter and noise": ShapesConfig(colours=8, shapes=4, jitter=2, noise=0.05),
    "64 px, nine places": ShapesConfig(image_size=64, colours=8, shapes=6, places=3, sizes=2, max_objects=5, jitter=1),
    "everything": ShapesConfig(image_size=64, colours=8, shapes=6, places=2, sizes=3, max_objects=4, jitter=2, noise=0.1),
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_judge_is_exact(world: str) -> None:
    config = WORLDS[world]
    for split in ("train", "val"):
        for index in range(400):
            scene = draw_scene(config, split, index)
            assert judge(scene.render(), config) == scene


@pytest.mark.parametrize("world", WORLDS)
def test_the_judge_reads_what_a_tokenizer_would_leave(world: str) -> None:
    config = WORLDS[world]
    random = np.random.default_rng(0)
    right = 0
    for index in range(200):
        scene = draw_scene(config, "val", index)
        picture = scene.render()
        padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
        blurred = 0.6 * picture + 0.1 * (padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:])
        spoiled = blurred + random.normal(0, 2 * 10 ** (-25 / 20), picture.shape)  # 25 dB on a range of two
        right += judge(spoiled.astype(np.float32), config) == scene
    assert right == 200


def test_scenes_depend_on_settings_alone() -> None:
    config = ShapesConfig(max_objects=3, jitter=1, noise=0.02)
    again = draw_scene(ShapesConfig(max_objects=3, jitter=1, noise=0.02), "train", 7)
    assert (draw_scene(config, "train", 7).render() == again.render()).all()
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
    picture = scene.render()
    assert picture.shape == (3, 32, 32)
    assert picture.dtype == np.float32
    assert -1 <= picture.min() < picture.max() <= 1
    assert judge(torch.from_numpy(picture), scene.config) == scene  # type: ignore[arg-type]


def test_bad_calls() -> None:
    with pytest.raises(ValueError, match="train and val"):
        draw_scene(ShapesConfig(), "test", 0)
    with pytest.raises(ValueError, match=r"\(3, 32, 32\)"):
        judge(np.zeros((3, 64, 64), np.float32), ShapesConfig())


def test_world_text() -> None:
    lines = list(world_text(400, seed=1))
    assert lines == list(world_text(400, seed=1))
    assert lines != list(world_text(400, seed=2))
    assert lines[:50] == list(islice(world_text(seed=1), 50))
    assert all(line and "\n" not in line for line in lines)
    assert 0.6 < sum("Question:" in line for line in lines) / 400 < 0.95


def test_captions_and_questions_of_a_scene() -> None:
    scene = draw_scene(ShapesConfig(), "train", 11)
    assert scene.caption() == scene.caption()
    assert len({scene.caption(Random(seed)) for seed in range(30)}) > 3
    assert scene.questions(Random(1)) == scene.questions(Random(1))
