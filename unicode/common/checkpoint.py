"""Checkpoints that are whole or do not count: folders named by step, with the size and checksum of each file beside them."""

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unicode.common.files import atomic_write, read_json, write_json
from unicode.common.logging import get_logger

MANIFEST = "manifest.json"
logger = get_logger(__name__)


def save_checkpoint(folder: str | Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Write a checkpoint folder `step_00001234` and drop the oldest beyond `keep`.

    The files go to a hidden folder, are listed with size and checksum, and the folder is renamed when everything is on disk. A
    failure leaves the checkpoints that were there as they were.

    Args:
        folder: where the checkpoints of a run lie.
        step: number of finished optimizer steps.
        write: writes the files into the folder that it is given.
        keep: how many checkpoints to keep, at least 1.

    Raises:
        OSError: the disk is full.
    """
    folder = Path(folder)
    target, hidden = folder / f"step_{step:08d}", folder / f".step_{step:08d}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    try:
        write(hidden)
        files = {str(path.relative_to(hidden)): _describe(path) for path in sorted(hidden.rglob("*")) if path.is_file()}
        write_json(hidden / MANIFEST, files)
        shutil.rmtree(target, ignore_errors=True)
        hidden.rename(target)
    except BaseException as error:
        shutil.rmtree(hidden, ignore_errors=True)
        if isinstance(error, OSError):
            reason = f"could not save the checkpoint of step {step}: {error.strerror or error}; older checkpoints are whole"
            raise OSError(error.errno, reason, str(target)) from error
        raise
    for old in sorted(folder.glob("step_*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest whole checkpoint, or None; damaged ones are named in a warning and passed over."""
    for candidate in sorted(Path(folder).glob("step_*"), reverse=True):
        fault = _find_fault(candidate)
        if fault is None:
            return candidate
        logger.warning("checkpoint %s is damaged (%s); taking the one before it", candidate, fault)
    return None


def checkpoint_step(path: Path) -> int:
    """Return the step that a checkpoint folder's name gives."""
    return int(path.name.removeprefix("step_"))


def save_tensors(path: str | Path, content: Any) -> None:
    """Write a structure of plain tensors, numbers, strings, lists and dictionaries, atomically."""
    with atomic_write(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer stumbles over a full disk once more while it ends
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _describe(path: Path) -> dict[str, int]:
    """Return size and CRC-32 of a file."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return {"bytes": path.stat().st_size, "crc32": checksum}


def _find_fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        files = read_json(checkpoint / MANIFEST)
    except (OSError, ValueError):
        return f"no readable {MANIFEST}"
    for name, described in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != described["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, expected {described['bytes']}"
        if _describe(path) != described:
            return f"{name} has other content than was saved"
    return None
