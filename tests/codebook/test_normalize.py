"""Normalization before the search: statistics of steps, not of batches."""

import torch

from unicode.codebook.search import LatentNorm


def test_first_step_standardizes_and_a_split_batch_is_the_same() -> None:
    latents = 5 + 3 * torch.randn(4, 50, 8)
    whole, split = LatentNorm(8, kind="standardize", decay=0.9), LatentNorm(8, kind="standardize", decay=0.9)
    for _ in range(3):
        whole(latents)
        for part in latents.chunk(2):
            split(part)
        whole.update_()
        split.update_()
    assert torch.allclose(whole.mean, split.mean, atol=1e-5)
    assert torch.allclose(whole.variance, split.variance, rtol=1e-4)
    out = whole.eval()(latents)
    assert out.mean().abs() < 1e-3
    assert (out.std() - 1).abs() < 1e-2


def test_sphere_has_length_one_and_evaluation_changes_nothing() -> None:
    norm = LatentNorm(8, kind="sphere", decay=0.9).eval()
    out = norm(torch.randn(2, 5, 8))
    assert torch.allclose(out.norm(dim=-1), torch.ones(2, 5))
    norm.update_()
    assert norm.steps == 0


def test_match_gives_latents_the_statistics_of_the_rows() -> None:
    rows = 2 + 0.3 * torch.randn(500, 8)
    norm = LatentNorm(8, kind="match", decay=0.9, rows=rows)
    latents = 7 + 5 * torch.randn(4, 100, 8)
    norm(latents)
    norm.update_()
    out = norm.eval()(latents).flatten(0, 1)
    assert torch.allclose(out.mean(0), rows.mean(0), atol=1e-2)
    assert torch.allclose(out.std(0), rows.std(0), rtol=1e-2)


def test_mean_length_is_each_images_own() -> None:
    norm = LatentNorm(8, kind="mean_length", decay=0.9, length=2.0)
    latents = torch.stack([10 * torch.ones(5, 8), 0.01 * torch.ones(5, 8)])
    out = norm(latents)
    assert torch.allclose(out[0].norm(dim=-1).mean(), torch.tensor(2.0))
    assert torch.equal(out[1], latents[1])
