"""The parts of the shapes world: settings that are refused, places on the grid, combinations held out."""

from collections import Counter
from itertools import product

import pytest

from unicode.images.shapes import ShapesConfig, combinations

WORLDS = [
    ShapesConfig(),
    ShapesConfig(colours=8, shapes=4),
    ShapesConfig(image_size=64, places=3, colours=8, shapes=6, max_objects=5),
    ShapesConfig(colours=2, shapes=2),
]


@pytest.mark.parametrize("config", WORLDS)
def test_training_keeps_every_pair(config: ShapesConfig) -> None:
    parts = combinations(config)
    seen = {(colour, shape, place) for place, pairs in parts.seen.items() for colour, shape in pairs}
    assert not seen & set(parts.held)
    assert len(seen) + len(parts.held) == config.colours * config.shapes * config.places**2
    assert {(c, s) for c, s, _ in seen} == set(product(config.colour_names, config.shape_names))
    assert {(c, p) for c, _, p in seen} == set(product(config.colour_names, config.place_names))
    assert {(s, p) for _, s, p in seen} == set(product(config.shape_names, config.place_names))


@pytest.mark.parametrize("config", WORLDS)
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
