"""Configs: a dataclass of defaults, a YAML file of differences, `a.b=c` from the command line -> one checked dataclass."""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unicode.common.files import atomic_write

T = TypeVar("T")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def load_config(schema: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Build an instance of the dataclass `schema` from defaults, then a YAML file, then `key.sub=value` overrides.

    A file may begin with `extends: other.yaml`, relative to itself: then the values of that file, which may extend a third, come first.
    Raises FileNotFoundError: there is no such YAML file. Raises ValueError: an unknown key (the message names the file and the nearest
    key), a value of the wrong type, files that extend each other, or a value that a dataclass's own `__post_init__` refuses.
    """
    base = OmegaConf.structured(schema)
    layers: list[tuple[str, Any]] = [] if path is None else _read_chain(Path(path))
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"'{override}' is not an override; write key.sub=value, for example train.steps=100")
        # `key=` means the empty string, as it does in a shell.
        text = override + "''" if override.endswith("=") else override
        try:
            layers.append((override, OmegaConf.from_dotlist([text])))
        except Exception:  # a text that is no YAML, as {split}/*.tar; the YAML parser has a family of errors of its own
            key, _, value = text.partition("=")
            layers.append((override, OmegaConf.from_dotlist([f"{key}={json.dumps(value)}"])))
    for source, layer in layers:
        _check_keys(schema, OmegaConf.to_container(layer), source)
        try:
            base = OmegaConf.merge(base, layer)
        except OmegaConfBaseException as error:
            raise ValueError(f"{source}: {str(error).splitlines()[0].rstrip('.')}{_expected(base, error.full_key)}") from error
    try:
        return OmegaConf.to_object(base)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ValueError(str(error.__cause__ or error).splitlines()[0]) from error


def save_config(config: Any, path: str | Path) -> None:
    """Write a config dataclass as YAML, atomically."""
    with atomic_write(path) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _read_chain(path: Path, extending: tuple[Path, ...] = ()) -> list[tuple[str, Any]]:
    """Return name and content of a YAML file and of those it extends, the most basic one first."""
    if not path.is_file():
        named_by = f", which {extending[-1]} extends" if extending else ""
        raise FileNotFoundError(f"no config file {path}{named_by}; the ones that come with the project are in configs/")
    if path.resolve() in (file.resolve() for file in extending):
        raise ValueError(f"{extending[-1]} extends {path.name}, which leads back to itself; remove one `extends:`")
    try:
        layer: Any = OmegaConf.load(path)
    except Exception as error:  # the YAML parser has a family of errors of its own
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not OmegaConf.is_dict(layer):
        raise ValueError(f"{path} holds a list; expected keys and values, for example train: {{steps: 100}}")
    extended = layer.pop("extends", None)
    below = [] if extended is None else _read_chain(path.parent / str(extended), (*extending, path))
    return [*below, (str(path), layer)]


def _expected(config: Any, key: str | None) -> str:
    """Return what the setting `key` takes, with an example, for the end of a message; "" where its kind is not known."""
    value = OmegaConf.select(config, key) if key else None
    kind = "a list" if OmegaConf.is_list(value) else KINDS.get(type(value))
    example = f"{key}=[a,b]" if OmegaConf.is_list(value) else f"{key}={json.dumps(value)}" if kind else ""
    return f"; {key} takes {kind}, for example {example}" if kind else ""


def _check_keys(schema: Any, values: Any, source: str, prefix: str = "") -> None:
    if not dataclasses.is_dataclass(schema) or not isinstance(values, dict):
        return
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key, value in values.items():
        if key not in fields:
            nearest = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.3)
            hint = f"did you mean '{prefix}{nearest[0]}'?" if nearest else f"known here: {', '.join(sorted(fields))}"
            raise ValueError(f"{source}: unknown config key '{prefix}{key}'; {hint}")
        _check_keys(fields[key].type, value, source, f"{prefix}{key}.")
