"""Exact nearest-row search against the definition."""

import pytest
import torch

from unicode.codebook import search
from unicode.codebook.search import nearest_rows


@pytest.mark.parametrize(("count", "rows", "width"), [(1, 1, 1), (300, 50, 8), (1000, 3, 64)])
def test_equals_the_smallest_distance(count: int, rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, table = torch.randn(count, width, generator=generator), torch.randn(rows, width, generator=generator)
    assert torch.equal(nearest_rows(vectors, table), torch.cdist(vectors.double(), table.double()).argmin(1))


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, table = torch.randn(200, 16), torch.randn(40, 16)
    whole = nearest_rows(vectors, table)
    monkeypatch.setattr(search, "CPU_TILE", (7, 9))
    assert torch.equal(nearest_rows(vectors, table), whole)


def test_runs_in_float32_under_autocast_and_takes_no_vectors() -> None:
    vectors, table = torch.randn(500, 256), torch.randn(300, 256)
    exact = nearest_rows(vectors, table)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_rows(vectors, table), exact)
    assert nearest_rows(vectors[:0], table).shape == (0,)


def test_a_row_is_nearest_to_itself() -> None:
    table = torch.randn(64, 4)
    assert torch.equal(nearest_rows(table, table), torch.arange(64))


def test_of_equally_close_rows_the_first_is_taken_in_other_tiles_too(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randint(-2, 3, (16, 3)).float()  # whole numbers: equal distances are equal to the last bit
    table = torch.cat([table, table, table])
    monkeypatch.setattr(search, "CPU_TILE", (5, 7))
    codes = nearest_rows(torch.randint(-2, 3, (50, 3)).float(), table)
    assert codes.max() < 16


@pytest.mark.gpu
def test_a_gpu_finds_the_nearest_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, rows = torch.randn(5000, 256, generator=generator), torch.randn(40_000, 256, generator=generator)
    codes = nearest_rows(vectors.cuda(), rows.cuda()).cpu()
    exact = torch.cdist(vectors.double(), rows.double())
    best = exact.min(dim=1).values
    assert ((exact[torch.arange(5000), codes] - best) / best).max() < 1e-5
