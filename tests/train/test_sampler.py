"""The data order is a function of the step: ranks, micro-batches and restarts do not change it."""

import pytest

from unicode.images.dataset import AugmentedIndex
from unicode.train.samplers import AugmentedSampler


def stream(world: int, accumulation: int, start: int = 0) -> list[AugmentedIndex]:
    """All draws of steps `start` to 9 in global order."""
    ranks = [
        AugmentedSampler(37, batch_size=8, accumulation=accumulation, rank=rank, world_size=world, seed=3, start_step=start, stop_step=10)
        for rank in range(world)
    ]
    lists = [list(sampler) for sampler in ranks]
    assert all(len(batches) == len(sampler) for batches, sampler in zip(lists, ranks, strict=True))
    steps = range(10 - start)
    return [draw for micro in range(len(steps) * accumulation) for batches in lists for draw in batches[micro]]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_split_does_not_matter(world: int, accumulation: int) -> None:
    assert stream(world, accumulation) == stream(1, 1)


def test_restart_continues() -> None:
    assert stream(2, 1, start=4) == stream(1, 1)[32:]


def test_epochs_are_permutations_and_seeds_differ() -> None:
    draws = stream(1, 1)
    assert sorted(draw.index for draw in draws[:37]) == list(range(37))
    assert [draw.index for draw in draws[:37]] != [draw.index for draw in draws[37:74]]
    assert len({draw.seed for draw in draws}) == len(draws)
