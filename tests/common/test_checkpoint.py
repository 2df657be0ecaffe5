"""Checkpoints: complete or passed over; old ones are removed, good ones never."""

import logging
from pathlib import Path

import pytest

from unicode.common.checkpoint import MANIFEST, checkpoint_step, newest_checkpoint, save_checkpoint
from unicode.common.files import write_json


def save(folder: Path, step: int, keep: int = 3) -> Path:
    def write(target: Path) -> None:
        (target / "sub").mkdir()
        (target / "sub" / "weights").write_bytes(bytes(1000) + step.to_bytes(4, "little"))

    return save_checkpoint(folder / f"step_{step:08d}", write, keep=keep)


def test_newest_is_found_and_old_ones_are_dropped(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (1, 2, 10):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000010"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert checkpoint_step(newest) == 10
    assert newest_checkpoint(tmp_path, keep=1) == newest, "as after a kill before the removal of old ones"
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000010"]


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "{", "[1]", '"\\u001b"', '{"sub/weights": {}}', '{"x\\u0000": 1}'])
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
        (newest / MANIFEST).write_text(damage)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == before
    assert "step_00000002" in caplog.text


def test_a_checkpoint_written_after_a_damaged_later_one_is_kept(tmp_path: Path) -> None:
    save(tmp_path, 8, keep=2)
    damaged = save(tmp_path, 16, keep=2)
    (damaged / "sub" / "weights").unlink()
    written = save(tmp_path, 12, keep=1)  # the run was resumed from step 8
    assert newest_checkpoint(tmp_path) == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000012", "step_00000016"]
    save(tmp_path, 16, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000016"]


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    (second / "sub" / "weights").unlink()
    third = save(tmp_path, 3, keep=2)
    assert first.is_dir()
    (third / "sub" / "weights").unlink()
    assert newest_checkpoint(tmp_path) == first


def test_checkpoints_of_version_0_1_are_read_and_replaced(tmp_path: Path) -> None:
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(bytes(10))
        write_json(folder / "whole.json", {"weights": 10})
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    (tmp_path / "checkpoint-4" / "weights").write_bytes(bytes(9))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-4" / "whole.json").unlink()  # as if killed while it was written
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_every_checkpoint_damaged_is_an_error_none_finished_is_not(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    assert newest_checkpoint(tmp_path) is None
    (save(tmp_path, 3) / "sub" / "weights").unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged; delete them to start the run anew"):
        newest_checkpoint(tmp_path)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    kept = save(tmp_path, 1)

    def write(target: Path) -> None:
        (target / "part").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"could not save the checkpoint \(No space left"):
        save_checkpoint(tmp_path / "step_00000002", write, keep=1)
    assert newest_checkpoint(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
