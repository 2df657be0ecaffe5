"""Bits per image of a small language model: known entropies, unseen ids, repeatability, bad input."""

import math

import pytest
import torch
from bench import predictability
from bench.predictability import predict_ids


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictability, "WIDTH", 32)
    monkeypatch.setattr(predictability, "LEARNING_RATE", 1e-2)


def _copies(number: int, seed: int) -> torch.Tensor:
    """Four equal ids per image: one free choice of eight (3 bits), then nothing new."""
    choice = torch.randint(8, (number, 1), generator=torch.Generator().manual_seed(seed))
    return (1000 + 7 * choice).expand(number, 4)


def test_finds_the_entropy_of_ids_that_follow_from_each_other() -> None:
    result = predict_ids(_copies(400, 0), _copies(200, 1), steps=150)
    assert result.bits_per_image == pytest.approx(3, abs=0.15)
    assert result.bits_per_id == pytest.approx(result.bits_per_image / 4)
    assert (result.vocabulary, result.num_train, result.num_heldout, result.steps) == (8, 400, 200, 150)


def test_random_ids_cost_what_a_uniform_guess_costs() -> None:
    ids = torch.randint(16, (600, 4), generator=torch.Generator().manual_seed(0))
    result = predict_ids(ids[:500], ids[500:], steps=60)
    assert result.bits_per_image == pytest.approx(4 * math.log2(16), rel=0.03)
    assert result.final_bits_per_image >= result.bits_per_image


def test_unseen_ids_cost_bits_but_do_not_crash() -> None:
    heldout = torch.full((3, 4), 5)
    result = predict_ids(_copies(50, 0), heldout, steps=20)
    assert result.vocabulary == 9
    assert 4 < result.bits_per_image < math.inf


def test_same_seed_same_number_and_the_random_state_stays() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = predict_ids(_copies(50, 0), _copies(20, 1), steps=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    assert predict_ids(_copies(50, 0), _copies(20, 1), steps=5) == first
    assert predict_ids(_copies(50, 0), _copies(20, 1), steps=5, seed=1) != first


@pytest.mark.parametrize(
    ("train", "heldout", "message"),
    [((4, 3), (4, 2), r"\(4, 3\) and \(4, 2\)"), ((4,), (4,), "expected ids"), ((0, 3), (4, 3), "0 training images")],
)
def test_bad_input(train: tuple, heldout: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict_ids(torch.zeros(train, dtype=torch.int64), torch.zeros(heldout, dtype=torch.int64))
