"""Pictures of things: aligned, exact, and readable after blur and noise."""

import numpy as np
import pytest

from unicode.images.shapes import BACKGROUND, COLOURS, ShapesConfig, Thing, draw, read


def test_an_object_fills_its_place_only() -> None:
    config = ShapesConfig()
    pixels = draw([Thing("red", "square", "large", "bottom left")], config)
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
        cuts.append(draw([Thing("blue", "triangle", "large", place)], config)[:, y : y + config.cell, x : x + config.cell])
    assert all((cut == cuts[0]).all() for cut in cuts)


def test_an_empty_picture_holds_nothing() -> None:
    config = ShapesConfig(noise=0.1)
    assert read(draw([], config, seed=3).astype(np.float32) / 127.5 - 1, config) == []


def test_jitter_moves_an_object_inside_its_place() -> None:
    config = ShapesConfig(jitter=2)
    thing = Thing("green", "circle", "large", "top right")
    pictures = [draw([thing], config, seed=seed) for seed in range(40)]
    assert len({picture.tobytes() for picture in pictures}) > 10
    assert all((picture[:, :, :16] == pictures[0][:, :, :16]).all() for picture in pictures)


def test_stencils_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="too small to tell"):
        draw([], ShapesConfig(image_size=16, shapes=6, sizes=3))
