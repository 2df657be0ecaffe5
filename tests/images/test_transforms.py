"""Squares from pictures: sizes, crops, chance from the seed only, and the way between uint8 and [-1, 1]."""

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.images.decode import eval_transform, seeded, to_float, to_uint8, train_transform


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_float_and_back_is_exact() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = to_float(every)
    assert values.dtype == torch.float32
    assert (values[0], values[-1]) == (-1, 1)
    assert torch.equal(to_uint8(values), every)
    assert to_uint8(torch.tensor([-7.0, 1.5])).tolist() == [0, 255]


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (20, 500), (16, 16), (64, 64)])
@pytest.mark.parametrize("crop", ["random", "resized", "center"])
def test_every_picture_becomes_a_square(size: tuple[int, int], crop: str) -> None:
    for transform in (train_transform(64, crop=crop, flip=True), eval_transform(64)):
        pixels = transform(picture(*size))
        assert pixels.shape == (3, 64, 64)
        assert pixels.dtype == torch.uint8


def test_evaluation_takes_the_middle() -> None:
    image = picture(96, 64)
    expected = torch.from_numpy(np.asarray(image)[:, 16:80].copy()).permute(2, 0, 1)
    assert torch.equal(eval_transform(64)(image), expected)


def test_shrinking_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))).convert("RGB")
    assert abs(eval_transform(16)(stripes).float() - 127.5).max() < 40


def test_chance_comes_from_the_seed_and_leaves_no_trace() -> None:
    transform = train_transform(32, flip=True)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(5):
        first = transform(picture(100, 32))
    assert torch.equal(torch.rand(3), expected)
    with seeded(5):
        assert torch.equal(transform(picture(100, 32)), first)
    with seeded(6):
        assert not torch.equal(transform(picture(100, 32)), first)
