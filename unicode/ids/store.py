"""A store of ids on disk: keys, manifest and shards; ids are found by key without loading the store."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unicode.common.files import atomic_write, read_json, read_jsonl, write_json
from unicode.ids.layout import Layout

FILES = ("names.txt", "offsets.npy", "hashes.npy", "rows.npy")


class KeyIndex:
    """The keys in `folder`: `index[row]` is a key, `index.find(key)` its row.

    Raises:
        ValueError: a file of the index is missing or damaged, or the files do not belong together.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        remedy = "delete that folder and run the command that made the store, it makes the index again"
        try:
            self._offsets, self._hashes, self._rows = (np.load(folder / name, mmap_mode="r") for name in FILES[1:])
            self._names = np.memmap(folder / FILES[0], dtype=np.uint8, mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"the key index {folder} cannot be read ({error}); {remedy}") from error
        if not len(self._offsets) - 1 == len(self._hashes) == len(self._rows) or self._offsets[-1] != len(self._names):
            raise ValueError(f"the files of the key index {folder} do not belong together; {remedy}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> str:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return self._names[start : end - 1].tobytes().decode("utf-8", "surrogateescape")  # the last byte is the line end

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def find(self, key: str) -> int:
        """Row of `key`, or -1: one binary search over the hashes, then the names themselves decide."""
        wanted = _hash(key)
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = int(self._rows[place])
            if self[row] == key:
                return row
            place += 1
        return -1


def write_keys(folder: str | Path, keys: Sequence[str]) -> None:
    """Write the index of `keys` to `folder`; each file is renamed into place when whole.

    Raises:
        ValueError: see `check_keys`.
    """
    check_keys(keys)
    folder = Path(folder)
    encoded = [_encode(key) + b"\n" for key in keys]
    hashes = np.fromiter((_hash(key) for key in keys), dtype=np.uint64, count=len(keys))
    rows = np.argsort(hashes, kind="stable")
    offsets = np.concatenate(([0], np.cumsum([len(name) for name in encoded]))).astype(np.int64)
    for name, array in zip(FILES[1:], (offsets, hashes[rows], rows.astype(np.int64)), strict=True):
        with atomic_write(folder / name, "wb") as file:
            np.save(file, array)
    with atomic_write(folder / FILES[0], "wb") as file:
        file.writelines(encoded)


def check_keys(keys: Sequence[str]) -> None:
    """ValueError when there are no keys, two are equal, or one could lead out of the image root."""
    if not keys:
        raise ValueError("no images to encode: the list is empty")
    for key in keys:
        check_key(key)
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key '{twice}' stands for two images; keys are paths relative to the image root, never bare names")


def check_key(key: str) -> None:
    """ValueError for a key that is no path below the image root: absolute, with "..", with backslashes, or empty."""
    if not key or key.startswith("/") or "\\" in key or key[1:2] == ":" or ".." in PurePosixPath(key).parts:
        raise ValueError(f"'{key}' is no path below the image root; keys are relative, with forward slashes and without '..'")


def hash_keys(keys: Sequence[str]) -> str:
    """Hexadecimal SHA-256 of the keys in their order: two lists of images are the same when this is."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(_encode(key) + b"\0")
    return digest.hexdigest()


def _encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _hash(key: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(_encode(key), digest_size=8).digest(), "little"))


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


OPEN_SHARDS = 128  # memory maps held at a time; each holds a file descriptor
REMEDY = "the command that made the store makes what is missing"


class Store:
    """Ids by key. Opening reads the manifest and the sizes of the files, never the ids.

    Raises:
        FileNotFoundError: no store there, or a shard is missing.
        ValueError: the store is not finished, damaged, or a shard is truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self.origin = self.manifest.origin
        if not self.manifest.complete:
            raise ValueError(f"{self.path} is not finished; {REMEDY}")
        for shard in self.manifest.shards:
            file = self.path / shard.file
            if not file.is_file():
                raise FileNotFoundError(f"shard {file} is missing; {REMEDY}")
            if file.stat().st_size != shard.bytes:
                raise ValueError(f"shard {file} has {file.stat().st_size} bytes instead of {shard.bytes}; {REMEDY}")
        self.index = KeyIndex(self.path / "keys")
        if len(self.index) != self.origin.num_images:
            counts = f"{len(self.index)} keys for {self.origin.num_images} images"
            raise ValueError(f"{self.path}: {counts}; encode the images again into a new folder")
        self._maps: dict[int, np.ndarray] = {}

    def __reduce__(self) -> tuple[type["Store"], tuple[Path]]:
        """A store travels to a worker process as its path, not as its content."""
        return Store, (self.path,)

    @property
    def layout(self) -> Layout:
        """Grid of the codes and order of the ids."""
        return self.origin.layout

    def __len__(self) -> int:
        """Images that have ids."""
        return self.origin.num_images - self.manifest.skipped

    def __contains__(self, key: str) -> bool:
        row = self.index.find(key)
        return row >= 0 and not self._is_empty(self._row(row))

    def __getitem__(self, key: str) -> np.ndarray:
        """The first view of one image, see `ids`."""
        return self.ids(key)

    def ids(self, key: str, *, view: int = 0) -> np.ndarray:
        """Vocabulary ids of one image: int64 (N,) in id order.

        Raises:
            KeyError: the store has no such image, or no ids of it; the message says which and why.
            IndexError: no such view.
        """
        row = self.index.find(key)
        if row < 0:
            raise KeyError(f"'{key}' is not in {self.path}; keys are paths relative to the image root, as '{self.index[0]}'")
        found = self._row(row)
        if self._is_empty(found):
            raise KeyError(f"'{key}' has no ids in {self.path}: {self.skipped.get(key, 'not encoded')}")
        return found[view].astype(np.int64)

    def get(self, key: str) -> np.ndarray | None:
        """As `self[key]`, with None for an image that is not there or could not be read."""
        row = self.index.find(key)
        found = self._row(row) if row >= 0 else None
        return None if found is None or self._is_empty(found) else found[0].astype(np.int64)

    def __iter__(self) -> Iterator[str]:
        """Keys of all images that have ids, in the order of the list they were made from."""
        skipped = self.skipped
        return (key for key in self.index if key not in skipped)

    def keys(self) -> Iterator[str]:
        """As iterating over the store."""
        return iter(self)

    @cached_property
    def skipped(self) -> dict[str, str]:
        """Reason for each image without ids. FileNotFoundError where the list of them is missing."""
        if not (self.path / "skipped.jsonl").is_file():
            raise FileNotFoundError(f"{self.path / 'skipped.jsonl'} is missing; {REMEDY}")
        return {record["key"]: record["reason"] for record in read_jsonl(self.path / "skipped.jsonl")}

    def check_tokenizer(self, fingerprint: str, layout: Layout) -> None:
        """ValueError when the ids were made by another tokenizer or stand in another order."""
        self.layout.check_same(layout)
        if self.origin.tokenizer and self.origin.tokenizer != fingerprint:
            both = f"{self.origin.tokenizer}, not of {fingerprint}"
            raise ValueError(f"{self.path} holds ids of the tokenizer {both}; encode the images again with this one")

    def verify(self) -> None:
        """Read everything and raise ValueError at the first shard whose checksum is wrong or that holds an id out of range."""
        for number, shard in enumerate(self.manifest.shards):
            file = self.path / shard.file
            if checksum(file.read_bytes()) != shard.crc32:
                raise ValueError(f"shard {file} is damaged: its checksum is not {shard.crc32}; delete the file; {REMEDY}")
            ids = self._shard(number)
            wrong = (ids.astype(np.int64) >= self.origin.vocab_size) & (ids != self.origin.no_id) | (ids < min(self.origin.no_id, 0))
            if wrong.any():
                key = self.index[number * self.origin.shard_size + int(np.argwhere(wrong)[0, 0])]
                fault = f"id {ids[wrong][0]} is not below the vocabulary size {self.origin.vocab_size}"
                raise ValueError(f"shard {file}, image '{key}': {fault}; encode the images again")

    def _is_empty(self, row: np.ndarray) -> bool:
        return bool(row[0, 0] == self.origin.no_id)

    def _row(self, row: int) -> np.ndarray:
        """(views, N) of one row, memory-mapped."""
        shard, place = divmod(row, self.origin.shard_size)
        return self._shard(shard)[place]

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._maps:
            if len(self._maps) >= OPEN_SHARDS:
                self._maps.pop(next(iter(self._maps)))
            file = self.path / self.manifest.shards[number].file
            try:
                ids = np.load(file, mmap_mode="r")
            except (ValueError, EOFError) as error:
                raise ValueError(f"shard {file} is damaged: it is no array of numpy; delete the file; {REMEDY}") from error
            if ids.shape != self.origin.shard_shape(number) or ids.dtype != self.origin.dtype:
                raise ValueError(f"shard {file} is damaged: it holds {ids.dtype} {ids.shape}; delete the file; {REMEDY}")
            self._maps[number] = ids
        return self._maps[number]


def checksum(content: bytes) -> str:
    """CRC-32 as eight hexadecimal digits."""
    return f"{zlib.crc32(content):08x}"
