"""The order of the data: a function of the step, the same for all splits; conversations as often as their weights say, alike in length."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest

from unicode.images.dataset import AugmentedIndex
from unicode.train.samplers import WINDOW, AugmentedSampler, ConversationSampler, occurrences

LENGTHS = np.random.default_rng(0).integers(20, 400, size=1000)


def sampler(**changes: object) -> ConversationSampler:
    settings = {"batch_size": 8, "stop_step": 200, "seed": 3, "group_by": "length"}
    return ConversationSampler(LENGTHS, **settings | changes)  # type: ignore[arg-type]


def padding_share(lengths: np.ndarray, micro_batches: Sequence[Sequence[int]]) -> float:
    """Share of the positions of padded micro-batches that hold no token."""
    padded = sum(len(batch) * int(lengths[list(batch)].max()) for batch in micro_batches)
    return 1 - sum(int(lengths[list(batch)].sum()) for batch in micro_batches) / padded


@pytest.mark.parametrize("group_by", ["none", "length", "modality"])
@pytest.mark.parametrize("split", [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_a_step_is_the_same_however_it_is_split(group_by: str, split: tuple[int, int]) -> None:
    ranks, accumulation = split
    whole = list(sampler(group_by=group_by, stop_step=90))
    parts = [list(sampler(group_by=group_by, rank=r, world_size=ranks, accumulation=accumulation, stop_step=90)) for r in range(ranks)]
    for step, batch in enumerate(whole):
        found = [part[step * accumulation + index] for index in range(accumulation) for part in parts]
        assert list(chain(*found)) == batch


def test_it_goes_on_where_it_stopped() -> None:
    whole, rest = list(sampler()), list(sampler(start_step=77))
    assert rest == whole[77:]
    assert len(sampler(start_step=77, accumulation=2)) == 2 * 123


@pytest.mark.parametrize("group_by", ["none", "length"])
def test_an_epoch_holds_every_conversation_once(group_by: str) -> None:
    drawn = list(chain(*sampler(group_by=group_by, stop_step=1000 // 8)))
    assert len(set(drawn)) == len(drawn) == 1000
    assert set(chain(*sampler(group_by=group_by, stop_step=250))) == set(range(1000))


def test_weights_say_how_often() -> None:
    weights = np.repeat([0.25, 1.0, 2.5, 0.0], 250)
    made = sampler(weights=weights, group_by="none", stop_step=10 * 938 // 8)
    assert made.epoch_length == 938  # 937.5
    counts = Counter(list(chain(*made))[: 9 * 938])
    shares = [sum(counts[index] for index in range(begin, begin + 250)) / 9 / 250 for begin in range(0, 1000, 250)]
    assert shares == pytest.approx([0.25, 1.0, 2.5, 0.0], abs=0.02)
    assert {counts[index] // 9 for index in range(500, 750)} <= {2, 3}


def test_all_weights_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="weight 0"):
        occurrences(np.zeros(3))


def test_grouping_leaves_little_padding_and_keeps_modalities_apart() -> None:
    modalities = (np.arange(1000) % 3 == 0).astype(np.int64)
    ordered = {group: list(sampler(group_by=group, modalities=modalities)) for group in ("none", "length", "modality")}
    shares = {group: padding_share(LENGTHS, batches) for group, batches in ordered.items()}
    assert shares["none"] > 0.3
    assert shares["length"] < 0.04
    assert shares["modality"] < 0.06
    batches = list(sampler(group_by="modality", modalities=modalities, stop_step=WINDOW))
    assert sum(len(set(modalities[batch])) > 1 for batch in batches) <= 1


def test_micro_batches_of_mixed_batches_are_sorted() -> None:
    whole, parts = (list(sampler(group_by="none", batch_size=64, accumulation=count, stop_step=15)) for count in (1, 8))
    assert padding_share(LENGTHS, parts) < padding_share(LENGTHS, whole) / 2
    tokens = np.array([LENGTHS[part].sum() for part in parts]).reshape(len(whole), 8)
    assert (tokens.max(axis=1) < 1.5 * tokens.min(axis=1)).all()


def test_micro_batches_of_mixed_batches_are_never_empty() -> None:
    lengths = np.r_[np.ones(16, np.int64), 10**6]
    parts = list(ConversationSampler(lengths, batch_size=16, stop_step=17, seed=3, group_by="none", accumulation=16))
    assert [len(part) for part in parts] == [1] * 16 * 17


def test_micro_batches_at_the_same_time_are_alike() -> None:
    parts = [list(sampler(group_by="length", batch_size=32, rank=rank, world_size=2, accumulation=4, stop_step=20)) for rank in range(2)]
    gaps = [abs(int(LENGTHS[first].max()) - int(LENGTHS[second].max())) for first, second in zip(*parts, strict=True)]
    assert np.mean(gaps) < 10


def pictures(world: int, accumulation: int, start: int = 0) -> list[AugmentedIndex]:
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
def test_pictures_of_a_step_are_the_same_however_it_is_split(world: int, accumulation: int) -> None:
    assert pictures(world, accumulation) == pictures(1, 1)


def test_pictures_go_on_where_they_stopped() -> None:
    assert pictures(2, 1, start=4) == pictures(1, 1)[32:]


def test_epochs_of_pictures_are_permutations_and_seeds_differ() -> None:
    draws = pictures(1, 1)
    assert sorted(draw.index for draw in draws[:37]) == list(range(37))
    assert [draw.index for draw in draws[:37]] != [draw.index for draw in draws[37:74]]
    assert len({draw.seed for draw in draws}) == len(draws)
