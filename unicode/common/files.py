"""Text, JSON, JSON Lines and tensors on disk: atomic writes, checked reads, and a lock on the folder that a command fills."""

import fcntl
import json
import os
import re
import secrets
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError

from unicode.common.distributed import is_main
from unicode.common.logging import get_logger

if TYPE_CHECKING:
    import torch  # takes seconds to import, which every command with --help would wait for

LOCK_FILE = ".lock"
logger = get_logger(__name__)
_locks: set[int] = set()  # open lock files of this process


@contextmanager
def name_errors(path: str | Path) -> Iterator[None]:
    """Give an error of the block that names no file, as a full disk's, the name `path` and a remedy; safetensors' too."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "filename", None) is not None:
            raise
        found = getattr(error, "strerror", None) or error
        reason = f"could not write ({found}); make room there and start again, nothing that was there before is lost"
        raise OSError(getattr(error, "errno", None), reason, str(path)) from error


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes its name only when the block ends without an error.

    The content goes to a hidden file in the same folder, is flushed to disk and then renamed. If the block raises, the hidden file is
    removed and an older file of that name stays as it was. The permissions follow the umask. Raises OSError: the disk is full or the folder
    cannot be written; the message names the path that was to be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with name_errors(path), open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sync(path: str | Path) -> None:
    """Flush a file, or the names in a folder, to disk; file systems that cannot do it are left alone."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def lock_folder(path: str | Path, purpose: str) -> Iterator[None]:
    """Keep other processes from filling a folder for the length of a block. The main rank locks; on other ranks nothing happens.

    The lock belongs to the process: the kernel releases it when the process ends, however it ends. `path`: the folder; it is made if it
    does not exist. `purpose`: what the command does there, for the message to others, such as "training". Raises ValueError: another
    process holds the lock; the message names it and the remedy.
    """
    file = Path(path) / LOCK_FILE
    handle = _take_lock(file, purpose) if is_main() else None
    try:
        yield
    finally:
        if handle is not None:
            file.unlink(missing_ok=True)  # before the release, while no other process can hold this name
            _locks.discard(handle)
            os.close(handle)


def _take_lock(file: Path, purpose: str) -> int | None:
    """Return the open and locked file, None where the file system has no locks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # its last holder removed the empty folder
        return _take_lock(file, purpose)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 4096).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise ValueError(f"{file.parent} is in use: {holder}; wait for it to end, stop it, or choose another folder") from None
    except OSError as error:
        os.close(handle)
        file.unlink(missing_ok=True)
        logger.warning("%s cannot be locked (%s); make sure that no other process writes there", file.parent, error)
        return None
    if not file.exists() or not os.path.samestat(os.fstat(handle), file.stat()):  # its holder removed it before we locked it
        os.close(handle)
        return _take_lock(file, purpose)
    holder = f"{purpose} by process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}"
    with name_errors(file):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{holder} ({shlex.join(sys.argv)})\n".encode()[:4096], 0)
    _locks.add(handle)
    return handle


def _forget_locks() -> None:
    """Close the lock files in a forked child: a lock must not outlive the process that took it."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_forget_locks)


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file.

    Raises FileNotFoundError: there is no such file. Raises ValueError: it is not JSON; the message names the file and the position.
    """
    with open(path, encoding="utf-8-sig") as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_jsonl(path: str | Path) -> Iterator[Any]:
    """Yield the object of each non-empty line. Raises ValueError: a line is not JSON; the message names the file and the line."""
    for number, line in _numbered_lines(path):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not valid JSON: {error}") from error


def read_damaged_jsonl(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield number and content of each non-empty line, the error of one that is not JSON; nothing where there is no file.

    A killed process leaves such lines. Bytes that are not UTF-8 are replaced.
    """
    if not Path(path).is_file():
        return
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    record = error
                yield number, record


def write_jsonl(path: str | Path, records: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_list(path: str | Path) -> list[str]:
    """Return the non-empty lines of a text file without their line ends. ValueError naming the file where it is not UTF-8."""
    return [line.rstrip("\r\n") for _, line in _numbered_lines(path)]


def _numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    with open(path, encoding="utf-8") as file:
        try:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def write_list(path: str | Path, lines: Iterable[str]) -> None:
    """Write one string a line, atomically."""
    with atomic_write(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def open_append(path: str | Path) -> IO[str]:
    """Open a file of lines for appending, its folder made; half a line at its end, as a killed process leaves it, is cut off."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
    return open(path, "a", encoding="utf-8")


def stable_bytes(tensors: "dict[str, torch.Tensor]", metadata: dict[str, str]) -> bytes:
    """Return a safetensors file with its header in sorted order; the library writes the metadata in a different order each time."""
    from safetensors.torch import save

    content = save(tensors, metadata)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    ordered = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(ordered) <= length, (len(ordered), length)
    return b"".join((content[:8], ordered.ljust(length), memoryview(content)[8 + length :]))


def read_tensors(path: str | Path, *, wanted: str) -> Any:
    """Load a file of `torch.save`, or by its name of safetensors, onto the CPU, plain tensors and containers only.

    `wanted`: what the caller expects in the file, for the message. Raises FileNotFoundError: there is no such file. Raises ValueError: it
    is no such file, is damaged, or holds objects other than plain tensors and containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; {wanted} is expected there")
    import torch
    from safetensors.torch import load_file

    try:
        return load_file(path) if Path(path).suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on bytes that are no pickle the reader fails in whatever way they lead it to
        # Without the reader's advice, which is to load the file unsafely.
        found = re.search(r"unsupported [^\n]*?(?= was| whose|\n|$)", str(error), flags=re.IGNORECASE)
        reason = found[0] if found else (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path} is damaged or not a file of plain tensors ({reason}); {wanted} is expected there") from error
