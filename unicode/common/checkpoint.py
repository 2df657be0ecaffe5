"""Checkpoints named by step: written to a hidden folder, listed in a manifest with sizes and checksums, then renamed."""

import os
import re
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unicode.common.distributed import barrier, is_main
from unicode.common.files import read_json, sync, write_json
from unicode.common.logging import get_logger

MANIFEST = "manifest.json"
OLD_MANIFEST = "whole.json"  # What version 0.1 wrote into the checkpoints of language models: file -> size
UNFINISHED = ".unfinished"
_NAME = re.compile(r"(?:step_|checkpoint-)(\d+)")
logger = get_logger(__name__)


def save_checkpoint(target: str | Path, write: Callable[[Path], None], *, keep: int) -> Path:
    """Write the checkpoint folder `target`, then remove old checkpoints beside it; call on every rank.

    The files go to a hidden folder and are listed with size and checksum; the folder is renamed when everything is on disk. A failure
    leaves the checkpoints that were there as they were. `target`: named step_N or checkpoint-N after the number of finished optimizer
    steps. `write`: writes the files into the folder that it is given; called on every rank. `keep`: how many checkpoints to keep, at least
    1. Raises OSError: the disk is full.
    """
    target = Path(target)
    hidden = target.parent / UNFINISHED / target.name
    try:
        if is_main():
            shutil.rmtree(hidden.parent, ignore_errors=True)
            hidden.mkdir(parents=True)
        barrier()
        write(hidden)
        barrier()
        if is_main():
            files = [path for path in sorted(hidden.rglob("*")) if path.is_file()]
            with ThreadPoolExecutor() as pool:
                list(pool.map(sync, files))
                described = dict(zip((path.relative_to(hidden).as_posix() for path in files), pool.map(_describe, files), strict=True))
            write_json(hidden / MANIFEST, described)
            shutil.rmtree(target, ignore_errors=True)
            hidden.rename(target)
            sync(target.parent)
            prune_checkpoints(target, keep=keep)
        barrier()
    except Exception as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch's writer fails again while it closes
        if isinstance(cause, OSError) or "PytorchStreamWriter" in str(error):
            found = cause.strerror if isinstance(cause, OSError) and cause.strerror else error
            reason = f"could not save the checkpoint ({found}); make room there and start again, older checkpoints are complete"
            raise OSError(getattr(cause, "errno", None), reason, str(target)) from error
        raise
    finally:
        if is_main():
            shutil.rmtree(hidden.parent, ignore_errors=True)
    return target


def newest_checkpoint(folder: str | Path, *, keep: int = 0) -> Path | None:
    """Return the newest complete checkpoint of a folder, None if there is none; warn about damaged ones.

    `keep`: remove older ones beyond so many, which a killed run may leave; 0: none. Raises ValueError: there are checkpoints, and every one
    is damaged.
    """
    damaged = 0
    for checkpoint in reversed(list_checkpoints(folder)):
        fault = find_fault(checkpoint)
        if fault is None:
            if keep:
                prune_checkpoints(checkpoint, keep=keep)
            return checkpoint
        damaged += (checkpoint / MANIFEST).exists() or (checkpoint / OLD_MANIFEST).exists()  # else it was not written to its end
        logger.warning("checkpoint %s is damaged (%s); trying the one before it", checkpoint, fault)
    if damaged:
        raise ValueError(f"every checkpoint in {folder} is damaged; delete them to start the run anew")
    return None


def prune_checkpoints(newest: Path, *, keep: int) -> None:
    """Keep `newest` and the sound ones before it, `keep` together, and remove all older ones.

    Checkpoints of later steps are of a run that was resumed before them; they are replaced when the run comes to their steps.
    """
    before = [path for path in list_checkpoints(newest.parent) if checkpoint_step(path) < checkpoint_step(newest)]
    kept = [newest, *(path for path in reversed(before) if find_fault(path, checksums=False) is None)][:keep]
    for path in before:
        if checkpoint_step(path) < checkpoint_step(kept[-1]):
            shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Return the folders named like checkpoints, by step, whatever their state."""
    return sorted((path for path in Path(folder).glob("*") if _NAME.fullmatch(path.name)), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """Return the step in the name of a checkpoint folder."""
    found = _NAME.fullmatch(path.name)
    assert found, path
    return int(found[1])


def find_fault(checkpoint: Path, *, checksums: bool = True) -> str | None:
    """Return what is wrong with a checkpoint, None if it is complete; `checksums=False` compares names and sizes only."""
    manifest = next((checkpoint / name for name in (MANIFEST, OLD_MANIFEST) if (checkpoint / name).is_file()), None)
    try:
        files: dict[str, Any] = read_json(manifest or checkpoint / MANIFEST)
        sizes = {name: described["bytes"] if isinstance(described, dict) else described for name, described in files.items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return f"no readable {MANIFEST}"
    for name, size in sizes.items():
        path = checkpoint / name
        if not os.path.isfile(path):
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
    if checksums and manifest == checkpoint / MANIFEST:
        with ThreadPoolExecutor() as pool:
            for name, found in zip(files, pool.map(lambda name: _describe(checkpoint / name), files), strict=True):
                if found != files[name]:
                    return f"{name} has other content than was saved"
    return None


def _describe(path: Path) -> dict[str, int]:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return {"bytes": path.stat().st_size, "crc32": checksum}
