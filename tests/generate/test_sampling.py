"""Tokens from scores: the noise belongs to the seed, the shares are right, the cuts are transformers'."""

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from unicode.generate.sampling import GREEDY, Sampling, choose, drop_unlikely, guide, gumbel_noise

SEEDS = torch.arange(20000)


def test_noise_is_standard_gumbel_and_independent():
    noise = gumbel_noise(SEEDS[:500], 3, torch.arange(400))
    assert abs(float(noise.mean()) - 0.5772) < 0.01 and abs(float(noise.std()) - 1.2825) < 0.01
    others = [gumbel_noise(SEEDS[:500], 4, torch.arange(400)), gumbel_noise(SEEDS[1:501], 3, torch.arange(400)), noise.roll(1, 1)]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1])) < 0.01


def test_noise_belongs_to_seed_step_and_id():
    ids = torch.tensor([3, 31999, 7])
    whole = gumbel_noise(SEEDS[:4], 5, torch.arange(32000))
    assert torch.equal(gumbel_noise(SEEDS[2:3], 5, ids), whole[2:3, ids])
    assert whole.isfinite().all()


def test_shares_of_choices_are_the_probabilities():
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    chosen = choose(scores.expand(20000, 4), torch.tensor([10, 11, 12, 13]), Sampling(0.7), seeds=SEEDS, step=2)
    shares = torch.bincount(chosen, minlength=14)[10:] / 20000
    assert (shares - (scores[0] / 0.7).softmax(-1)).abs().max() < 0.012


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.6), (7, 0.6), (1, 1.0)])
def test_cuts_are_those_of_transformers(top_k, top_p):
    scores = torch.randn(1, 30, generator=torch.Generator().manual_seed(0))
    kept = scores.clone()
    if top_k:
        kept = TopKLogitsWarper(top_k)(None, kept)
    if top_p < 1:
        kept = TopPLogitsWarper(top_p)(None, kept)
    chosen = choose(scores.expand(20000, 30), torch.arange(30), Sampling(1.0, top_k, top_p), seeds=SEEDS, step=0)
    shares = torch.bincount(chosen, minlength=30) / 20000
    assert set(shares.nonzero().flatten().tolist()) <= set(kept.isfinite()[0].nonzero().flatten().tolist())
    assert (shares - kept[0].softmax(-1)).abs().max() < 0.015


def test_the_likeliest_always_stays():
    assert drop_unlikely(torch.tensor([[5.0, 0.0]]), 0.01).isfinite().tolist() == [[True, False]]
    assert drop_unlikely(torch.tensor([[0.0, 5.0]]), 0.01).isfinite().tolist() == [[False, True]]


def test_greedy_takes_the_likeliest():
    assert choose(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([7, 8, 9]), GREEDY, seeds=SEEDS[:1], step=0).tolist() == [8]


def test_guidance_goes_beyond():
    given, free = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    assert guide(torch.cat([given, free]), 2.0).tolist() == [[2.0, 1.0]]
    assert torch.equal(guide(torch.cat([given, free]), 1.0), given)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 1.5), ("guidance", -2), ("candidates", 0), ("temperature", float("nan"))]
)
def test_bad_values_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})
