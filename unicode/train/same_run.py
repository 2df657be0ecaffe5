"""A run folder and the config of a command that is to continue it: what must not change is refused, what did change is said."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from unicode.common.log import get_logger

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
