"""The card of a trained model, unicode.json: its base model, image tokenizer, markers and prompts, with checks that they fit."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from unicode.annotations.records import INPUT_MODES
from unicode.common.files import read_json, write_json
from unicode.ids.layout import Layout
from unicode.llm.vocabulary import Markers, find_model, open_gguf, read_rows, read_vocabulary

FILE = "unicode.json"
FORMAT = "unicode-llm-1"
KINDS = ("lora", "full", "llava")
OUTPUT_MODES = ("ids", "cells")
SAMPLED = ("temperature", "top_k", "top_p", "guidance", "candidates")  # what `Card.sampling` may hold
# keys of config.json that depend on who wrote it, not on the model
_VOLATILE = {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures", "use_cache", "_attn_implementation"}


@dataclass
class Card:
    """Content of unicode.json. Raises ValueError: an unknown kind, mode or value of sampling, or cells without a head or a layout."""

    kind: str  # "lora", "full" or "llava"
    base: str  # Path of the base model as it was given
    base_fingerprint: str  # `fingerprint_base` of it
    template: str  # Name of the template of the conversations
    request: str = ""  # What a request for a picture says, with the description in place of {caption}; "": the project's usual words
    input_mode: str = "ids"  # How images in questions are read
    layout: Layout | None = None  # Grid and order of the ids; None for a model without image ids
    image_tokenizer: dict[str, str] | None = None  # {"path": ..., "fingerprint": ...} of the tokenizer that made the ids
    markers: Markers | None = None  # Tokens around images; None for a model that reads no images
    vision: dict[str, Any] | None = None  # Settings of the tower and projector of a "llava" model
    output_mode: str = "ids"  # How images in answers are written: "ids" or "cells"
    cells: dict[str, Any] | None = None  # `CellHead.describe` and "fingerprint" of the head that writes cells
    sampling: dict[str, float] | None = None  # Of pictures, unless a user gives other values; made by unicode.run.choose_sampling
    max_length: int = 0  # Longest sequence of the training; 0 if unknown
    config: dict[str, Any] = field(default_factory=dict)  # Other facts of the training

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("input_mode", INPUT_MODES), ("output_mode", OUTPUT_MODES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is '{getattr(self, name)}'; known: {', '.join(known)}")
        if unknown := (self.sampling or {}).keys() - set(SAMPLED):
            raise ValueError(f"sampling has {sorted(unknown)}; known: {', '.join(SAMPLED)}")
        if self.output_mode == "cells" and (self.layout is None or self.cells is None):
            raise ValueError("output_mode is 'cells', which needs a layout and the description of a cell head (cells)")

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the image tokenizer; "" where none is named."""
        return (self.image_tokenizer or {}).get("fingerprint", "")


def write_card(folder: str | Path, card: Card) -> None:
    """Write unicode.json into a folder, atomically."""
    write_json(Path(folder) / FILE, {"format": FORMAT, **asdict(card)})


def read_card(folder: str | Path) -> Card:
    """Read unicode.json of a folder.

    Raises FileNotFoundError: there is none. Raises ValueError: it is damaged, of another format, or has unknown or missing keys.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}; expected the run folder of a model trained with python -m unicode.run.train_llm")
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path}: format is {found!r}, expected '{FORMAT}'; it was written by another version of this project")
    known = {one.name for one in fields(Card)}
    unknown = sorted(values.keys() - known - {"format"})
    if unknown:
        raise ValueError(f"{path}: unknown keys {unknown}; known: {sorted(known)}")
    try:
        for name, kind in (("layout", Layout), ("markers", Markers)):
            values[name] = None if values.get(name) is None else kind.from_dict(values[name])
        return Card(**{name: value for name, value in values.items() if name != "format"})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def fingerprint_base(folder: str | Path) -> str:
    """Return 16 hexadecimal digits that change with the config, an embedding row or the vocabulary of a language model.

    Raises FileNotFoundError: there is no such folder or GGUF file. Raises ValueError: it holds no language model.
    """
    path = find_model(folder)
    if path.suffix == ".gguf":
        described: dict[str, Any] = {tensor.name: [int(size) for size in tensor.shape] for tensor in open_gguf(path).tensors}
    else:
        described = {key: value for key, value in read_json(path / "config.json").items() if key not in _VOLATILE}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(read_rows(path).numpy()).data)
    digest.update(json.dumps(sorted(read_vocabulary(path).tokens.items()), ensure_ascii=True).encode())
    return digest.hexdigest()[:16]


def check_base(card: Card, folder: str | Path) -> None:
    """Raise ValueError if the model at `folder` is not the one that the card's model was trained on."""
    found = fingerprint_base(folder)
    if found != card.base_fingerprint:
        both = f"{card.base} ({card.base_fingerprint}), and {folder} is {found}"
        raise ValueError(f"the adapter was trained on {both}; name its base model with --base")


def check_tokenizer(card: Card, *, fingerprint: str, layout: Layout, path: str | Path = "the image tokenizer") -> None:
    """Raise ValueError if ids of this image tokenizer mean something else to the card's model."""
    if card.fingerprint and fingerprint and card.fingerprint != fingerprint:
        both = f"{(card.image_tokenizer or {}).get('path', '')} ({card.fingerprint}), and {path} is {fingerprint}"
        raise ValueError(f"the model reads ids of the image tokenizer {both}; name the right one with --image-tokenizer")
    if card.layout is not None and card.layout != layout:
        both = f"{card.layout.describe()}, and {path} makes {layout.describe()}"
        raise ValueError(f"the model reads images of {both}; name the right tokenizer")
