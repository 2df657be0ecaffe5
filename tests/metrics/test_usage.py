"""Usage, perplexity and entropy of a codebook against values worked out by hand."""

import pytest
import torch

from unicode.metrics.reconstruction import count_rows_, usage_report


def test_counts_add_up_over_batches() -> None:
    counts = torch.zeros(4, dtype=torch.int64)
    count_rows_(counts, torch.tensor([[0, 1], [1, 3]]))
    count_rows_(counts, torch.tensor([3, 3]))
    assert counts.tolist() == [1, 2, 0, 3]


def test_report() -> None:
    report = usage_report(torch.tensor([2, 1, 1, 0]))
    assert report == {
        "rows": 4,
        "codes": 4,
        "used": 3,
        "usage_percent": 75.0,
        "perplexity": pytest.approx(2**1.5),
        "entropy_bits": pytest.approx(1.5),
        "top1_share": 0.5,
    }


def test_even_use_has_the_perplexity_of_all_rows_and_no_use_is_no_crash() -> None:
    assert usage_report(torch.full((8,), 5))["perplexity"] == pytest.approx(8)
    assert usage_report(torch.zeros(8, dtype=torch.int64))["entropy_bits"] == 0
