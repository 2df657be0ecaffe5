"""Manifest of a store: whose ids these are, how they were made, and which files hold them."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from unicode.common.records import read_json, write_json
from unicode.ids.layout import Layout

FORMAT = "unicode-ids-1"
FILE = "manifest.json"
PRECISIONS = ("float32", "bf16")
_MEANINGS = {
    "tokenizer": "tokenizer",
    "layout": "order of ids",
    "transform": "transform of the images",
    "precision": "precision",
    "views": "views",
    "vocab_size": "vocabulary",
    "num_images": "number of images",
    "image_list": "list of images",
    "shard_size": "shard size",
}


@dataclass(frozen=True)
class Origin:
    """What a store is made from; two runs may fill one store only when all of it is equal.

    Raises:
        ValueError: a value that cannot be.
    """

    tokenizer: str
    """Fingerprint of the tokenizer, 16 hexadecimal digits; "" for imported ids whose tokenizer is not at hand."""
    layout: Layout
    """Grid of the codes and order of the ids."""
    transform: dict[str, Any]
    """How an image file became pixels: image size, resize and crop, as the data set describes them."""
    precision: str
    """Arithmetic of the encoder: "float32" or "bf16". The search is float32 in both."""
    views: tuple[str, ...]
    """Name of each entry of the views axis; ("whole",) when each image was encoded once."""
    vocab_size: int
    """Every id is below it."""
    num_images: int
    """Images in the list, the unreadable ones included."""
    image_list: str
    """SHA-256 of the keys in their order."""
    shard_size: int
    """Images per shard; the last one may be shorter."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is '{self.precision}'; known: {', '.join(PRECISIONS)}")
        for name in ("vocab_size", "num_images", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.views:
            raise ValueError("views is empty; a store holds at least one view of each image")

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_images // self.shard_size)

    @property
    def dtype(self) -> np.dtype:
        """uint16 where every id fits below 65535, int32 otherwise. The type's largest or -1 marks an image without ids."""
        return np.dtype(np.uint16 if self.vocab_size <= np.iinfo(np.uint16).max else np.int32)

    @property
    def no_id(self) -> int:
        """What stands in the rows of images that could not be read."""
        return int(np.iinfo(np.uint16).max) if self.dtype == np.uint16 else -1

    def shard_rows(self, shard: int) -> range:
        """Rows, that is positions in the image list, of one shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_images))

    def shard_shape(self, shard: int) -> tuple[int, int, int]:
        """(images, views, N) of one shard."""
        return len(self.shard_rows(shard)), len(self.views), self.layout.num_codes

    def shard_bytes(self, shard: int) -> int:
        """Size of a whole shard file: the header of a .npy file and the ids."""
        return 128 + int(np.prod(self.shard_shape(shard))) * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "layout": self.layout.to_dict(), "views": list(self.views)}

    def check_same(self, other: "Origin", where: Path) -> None:
        """ValueError naming the first thing in which `other` differs from what the store at `where` was made from."""
        for name, meaning in _MEANINGS.items():
            stored, now = getattr(self, name), getattr(other, name)
            if stored != now:
                shown = [value.describe() if isinstance(value, Layout) else value for value in (stored, now)]
                both = f"{shown[0]} there, {shown[1]} now"
                raise ValueError(f"{where} holds ids of another {meaning}: {both}; write to another folder or delete it")


@dataclass(frozen=True)
class Shard:
    """One shard file as the manifest lists it."""

    file: str
    images: int
    bytes: int
    crc32: str


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json."""

    origin: Origin
    complete: bool = False
    skipped: int = 0
    """Images without ids; skipped.jsonl says why."""
    shards: tuple[Shard, ...] = ()

    def save(self, folder: Path) -> None:
        """Write manifest.json atomically; nothing in it depends on when or by how many processes the store was made."""
        rest = {"complete": self.complete, "skipped": self.skipped, "shards": [asdict(shard) for shard in self.shards]}
        write_json(folder / FILE, {"format": FORMAT, **self.origin.to_dict(), "dtype": self.origin.dtype.name, **rest})

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read manifest.json.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or of another format.
        """
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no store of ids: it has no {FILE}; make one with python -m unicode.run.encode_images")
        again = "encode the images again into a new folder"
        try:
            values = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}; {again}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"{path}: format is {found!r}, expected '{FORMAT}'; {again}")
        try:
            origin = {field.name: values[field.name] for field in fields(Origin)}
            shards = tuple(Shard(**shard) for shard in values["shards"])
            origin["layout"] = Layout.from_dict(origin["layout"])
            return cls(Origin(**origin), values["complete"], values["skipped"], shards)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__} {error}; {again}") from error
