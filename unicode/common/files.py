"""Text, JSON, JSON Lines and tensors on disk: atomic writes, checked reads."""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # takes seconds to import, which every command with --help would wait for


@contextmanager
def name_errors(path: str | Path) -> Iterator[None]:
    """Give an OSError of the block that names no file, as a full disk's, the name `path` and a remedy."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = f"could not write ({error.strerror or error}); make room there and start again, nothing that was there before is lost"
        raise OSError(error.errno, reason, str(path)) from error


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes its name only when the block ends well.

    The content goes to a hidden file in the same folder, is flushed to disk and then renamed. When the block raises, the
    hidden file is removed and an older file of that name stays as it was.

    Raises:
        OSError: the disk is full or the folder cannot be written; the message names the path that was to be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with name_errors(path), os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON; the message names the file and the position.
    """
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_jsonl(path: str | Path) -> Iterator[Any]:
    """Yield the object of each non-empty line.

    Raises:
        ValueError: a line is not JSON; the message names the file and the line.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number} is not valid JSON: {error}") from error


def write_jsonl(path: str | Path, records: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_write(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_list(path: str | Path) -> list[str]:
    """Return the non-empty lines of a text file without their line ends."""
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\r\n") for line in file if line.strip()]


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
    """Load a file of `torch.save` onto the CPU, plain tensors and containers only.

    Args:
        wanted: what the caller expects in the file, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of torch, is damaged, or holds objects other than plain tensors and containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; {wanted} is expected there")
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on bytes that are no pickle the reader fails in whatever way they lead it to
        raise ValueError(f"{path} is damaged or not a file of plain tensors ({_reason(error)}); {wanted} is expected there") from error


def _reason(error: Exception) -> str:
    """Return what the reader found, without its advice, which is to load the file unsafely."""
    found = re.search(r"unsupported [^\n]*?(?= was| whose|\n|$)", str(error), flags=re.IGNORECASE)
    return found[0] if found else (str(error).splitlines() or [type(error).__name__])[0][:120]
