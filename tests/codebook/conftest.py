"""A small table of a language model."""

from pathlib import Path

import pytest
import torch

from unicode.codebook.embedding_table import LanguageTable, load_table, save_table


@pytest.fixture
def table(tmp_path: Path) -> LanguageTable:
    """80 rows of width 24, the first ten excluded."""
    generator = torch.Generator().manual_seed(1)
    rows = 0.1 * torch.randn(80, 24, generator=generator) + 0.05
    save_table(tmp_path / "table.safetensors", rows, torch.arange(10), model="tiny")
    return load_table(tmp_path / "table.safetensors")
