"""The table of a language model: what is read is what was written, and nothing else is taken for one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unicode.codebook.embedding_table import LanguageTable, load_table, save_table


def test_excluded_ids_are_never_selected(table: LanguageTable) -> None:
    assert table.select_ids(0).tolist() == list(range(10, 80))
    chosen = table.select_ids(7)
    assert len(set(chosen.tolist())) == 7
    assert chosen.min() >= 10


def test_too_few_rows_name_the_remedy(table: LanguageTable) -> None:
    with pytest.raises(ValueError, match=r"70 eligible rows of 80.*num_rows"):
        table.select_ids(71)


def test_same_table_same_bytes(tmp_path: Path) -> None:
    rows = torch.randn(6, 3)
    for name in ("a", "b"):
        save_table(tmp_path / name, rows, torch.tensor([2]), model="m")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert torch.equal(load_table(tmp_path / "a").rows, rows)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="export_codebook"):
        load_table(tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not an embedding table"):
        load_table(tmp_path / "junk.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="format"):
        load_table(tmp_path / "other.safetensors")
