"""Reading tensors: what is whole loads, anything else ends in one message."""

import functools
from pathlib import Path

import pytest
import torch

from unicode.common.files import read_tensors


def test_round_trip(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3), "b": {"c": 1}}, tmp_path / "file.pt")
    content = read_tensors(tmp_path / "file.pt", wanted="a state dict")
    assert content["a"].tolist() == [0, 1, 2]
    assert content["b"] == {"c": 1}


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short", b"\x80\x02}q\x00."])
def test_other_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt is damaged or not a file of plain tensors .*; a state dict is expected"):
        read_tensors(tmp_path / "file.pt", wanted="a state dict")


def test_objects_and_absent_files_are_refused(tmp_path: Path) -> None:
    torch.save({"run": functools.partial(print, "code")}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        read_tensors(tmp_path / "file.pt", wanted="a state dict")
    with pytest.raises(FileNotFoundError, match="a state dict is expected there"):
        read_tensors(tmp_path / "nothing.pt", wanted="a state dict")
