"""Checkpoints of transformers' Trainer that are whole or do not count: a mark written last, with the size of every file."""

import re
import shutil
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unicode.common.log import get_logger
from unicode.common.ranks import barrier, is_main
from unicode.common.records import read_json, write_json

MARK = "whole.json"
_NAME = re.compile(r"checkpoint-(\d+)")
logger = get_logger(__name__)


class MarkWhole(TrainerCallback):
    """Marks a checkpoint when every rank has written its part of it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Wait for the other ranks, then write the mark."""
        barrier()
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if is_main():
            for file in folder.glob("rng_state*.pth"):  # loaded after the seed of a step is set, it would undo it
                file.unlink()
            write_json(folder / MARK, describe(folder))
        barrier()


def describe(folder: Path) -> dict[str, int]:
    """Return relative path -> size in bytes of every file below `folder`, the mark left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARK)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def checkpoint_step(folder: Path) -> int:
    """Return the step in the name of a checkpoint folder, -1 for other names."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else -1


def newest_whole(run: Path) -> Path | None:
    """Return the newest checkpoint of a run folder that is whole; name damaged ones and pass them over.

    Raises:
        ValueError: there are checkpoints and every one of them is damaged.
    """
    found = sorted((path for path in run.glob("checkpoint-*") if checkpoint_step(path) >= 0), key=checkpoint_step, reverse=True)
    marked = [path for path in found if (path / MARK).is_file()]
    for path in marked:
        fault = find_fault(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is damaged (%s); taking the one before it", path, fault)
    if marked:
        raise ValueError(f"every checkpoint in {run} is damaged; delete them to start the run anew")
    return None


def find_fault(folder: Path) -> str | None:
    """Return what is wrong with a marked checkpoint, or None."""
    try:
        expected = read_json(folder / MARK)
    except (OSError, ValueError):
        return f"no readable {MARK}"
    for name, size in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
    return None


def remove_unfinished(run: Path) -> None:
    """Delete checkpoints that a killed run had begun to write; call on every rank, the main one deletes."""
    if is_main():
        for path in run.glob("checkpoint-*"):
            if checkpoint_step(path) >= 0 and not (path / MARK).is_file():
                logger.warning("removing %s, which was not written to its end", path)
                shutil.rmtree(path, ignore_errors=True)
    barrier()
