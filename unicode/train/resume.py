"""Resuming a run: config changes that are refused, checkpoints of the Trainer that are complete."""

import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unicode.common.distributed import barrier, is_main
from unicode.common.files import read_json, write_json
from unicode.common.logging import get_logger

logger = get_logger(__name__)


def check_same_run(config: Any, folder: Path, *, fixed: tuple[str, ...], loose: tuple[str, ...] = ()) -> None:
    """Compare a config with the `config.yaml` of a run folder; say in a warning which settings differ.

    Args:
        config: dataclass of the command.
        folder: run folder; without config.yaml nothing is compared.
        fixed: beginnings of dotted keys whose values a run keeps.
        loose: beginnings of dotted keys below `fixed` that may change all the same.

    Raises:
        ValueError: a setting of `fixed` differs.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return
    before, now = flatten(OmegaConf.to_container(OmegaConf.load(path))), flatten(asdict(config))
    changed = [key for key in now if before.get(key) != now[key] and not key.startswith("run.dir")]
    for key in changed:
        if key.startswith(fixed) and not key.startswith(loose):
            values = f"{key}={before.get(key)}, this one has {now[key]}"
            raise ValueError(f"{folder} holds a run with {values}; choose another run.dir or take the old value")
    if changed:
        settings = ", ".join(f"{key}={now[key]} (was {before.get(key)})" for key in changed)
        logger.warning("continuing %s under other settings: %s", folder, settings)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one, with dotted keys."""
    if not isinstance(values, dict):
        return {prefix[:-1]: list(values) if isinstance(values, tuple) else values}
    return {key: value for name, part in values.items() for key, value in flatten(part, f"{prefix}{name}.").items()}


MARK = "whole.json"
_NAME = re.compile(r"checkpoint-(\d+)")


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
