"""Files: atomic writes, appending after a kill, and the lock on a folder."""

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unicode.common.files import LOCK_FILE, atomic_write, lock_folder, open_append, read_json, read_jsonl


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_new_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "secret.txt") as file:
            file.write("a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secret.txt").stat().st_mode) == 0o666 & ~umask


def test_the_folder_is_flushed_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bool] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        flushed.append(stat.S_ISDIR(os.fstat(handle).st_mode) and (tmp_path / "a.txt").is_file())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    with atomic_write(tmp_path / "a.txt") as file:
        file.write("a")
    assert flushed == [False, True]


def test_a_folder_that_cannot_be_written_is_an_error_with_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "file" / "a.txt"):
        pass
    assert str(tmp_path / "file") in str(caught.value.filename)


def test_a_second_holder_of_a_folder_is_refused_and_told_about_the_first(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "run", "training"):
        message = rf"run is in use: training by process {os.getpid()} on \S+ since \d{{4}}-.*; wait for it to end, stop it, or choose"
        with pytest.raises(ValueError, match=message), lock_folder(tmp_path / "run", "training"):
            pass
    assert not (tmp_path / "run" / LOCK_FILE).exists()
    with lock_folder(tmp_path / "run", "training"):
        pass


def test_a_killed_holder_holds_nothing_even_if_its_workers_live_on(tmp_path: Path) -> None:
    ready, wait = os.pipe(), os.pipe()
    holder = os.fork()
    if holder == 0:
        with lock_folder(tmp_path, "training"):
            if os.fork() == 0:  # a worker, as a data loader forks it
                os.write(ready[1], b"x")
                os.read(wait[0], 1)
                os._exit(0)
            signal.pause()
    os.read(ready[0], 1)
    with pytest.raises(ValueError, match=f"process {holder}"), lock_folder(tmp_path, "training"):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with lock_folder(tmp_path, "training"):
        pass
    os.write(wait[1], b"x")


def test_other_ranks_do_not_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock_folder(tmp_path, "training"):
        monkeypatch.setenv("RANK", "1")
        with lock_folder(tmp_path, "training"):
            pass


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS])
def test_without_locks_on_the_file_system_a_warning_is_given(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_folder(tmp_path, "training"):
        pass
    assert caplog.text.count("cannot be locked (") == 1
    assert not list(tmp_path.iterdir())


def test_appending_cuts_half_a_line_off(tmp_path):
    path = tmp_path / "deep" / "lines.jsonl"
    with open_append(path) as file:
        file.write("one\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write("half of t")
    with open_append(path) as file:
        file.write("two\n")
    assert path.read_text(encoding="utf-8") == "one\ntwo\n"


def test_appending_to_a_file_that_is_half_a_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("half", encoding="utf-8")
    with open_append(path) as file:
        file.write("whole\n")
    assert path.read_text(encoding="utf-8") == "whole\n"


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": 1', b"\xff\xfe"])
@pytest.mark.parametrize("reader", [read_json, lambda path: list(read_jsonl(path))])
def test_damaged_json_is_an_error_with_the_name_of_the_file(reader: Callable[[Path], Any], content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        reader(tmp_path / "a.json")
