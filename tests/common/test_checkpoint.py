"""Checkpoints: whole or passed over, never half."""

import logging
from pathlib import Path

import pytest

from unicode.common.checkpoint import MANIFEST, checkpoint_step, newest_checkpoint, save_checkpoint


def save(folder: Path, step: int, keep: int = 3) -> Path:
    def write(target: Path) -> None:
        (target / "sub").mkdir()
        (target / "sub" / "weights").write_bytes(bytes(1000) + step.to_bytes(4, "little"))

    return save_checkpoint(folder, step, write, keep=keep)


def test_newest_is_found_and_old_ones_are_dropped(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (1, 2, 10):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000010"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert checkpoint_step(newest) == 10


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest"])
def test_a_damaged_one_is_named_and_the_one_before_it_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    before, newest = save(tmp_path, 1), save(tmp_path, 2)
    file = newest / "sub" / "weights"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:500])
    elif damage == "flip":
        file.write_bytes(b"\1" + content[1:])
    elif damage == "missing":
        file.unlink()
    else:
        (newest / MANIFEST).write_text("{")
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == before
    assert "step_00000002" in caplog.text


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    kept = save(tmp_path, 1)

    def write(target: Path) -> None:
        (target / "part").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="could not save the checkpoint of step 2"):
        save_checkpoint(tmp_path, 2, write, keep=1)
    assert newest_checkpoint(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
