"""A store of ids on disk: a folder of shards with a manifest and an index of keys -> the ids of an image by its key."""

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

FORMAT = "unicode-ids-1"
MANIFEST = "manifest.json"
KEY_FILES = ("names.txt", "offsets.npy", "hashes.npy", "rows.npy")
PRECISIONS = ("float32", "bf16")
OPEN_SHARDS = 128  # memory maps held at a time; each holds a file descriptor
REMEDY = "the command that made the store makes what is missing"
_AGAIN = "encode the images again into a new folder"


@dataclass(frozen=True)
class StoreSpec:
    """What a store is made from; two runs may fill one store only when all of it is equal.

    Raises ValueError: a value that is not allowed.
    """

    tokenizer: str  # Fingerprint of the tokenizer, 16 hexadecimal digits; "" for imported ids whose tokenizer is not known
    layout: Layout  # Grid of the codes and order of the ids
    transform: dict[str, Any]  # How an image file became pixels: image size, resize and crop, as the data set describes them
    precision: str  # Arithmetic of the encoder: "float32" or "bf16". The search is float32 in both
    views: tuple[str, ...]  # Name of each entry of the views axis; ("whole",) when each image was encoded once
    vocab_size: int  # Every id is below it
    num_images: int  # Images in the list, the unreadable ones included
    image_list: str  # SHA-256 of the keys in their order
    shard_size: int  # Images per shard; the last one may be shorter

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is '{self.precision}'; known: {', '.join(PRECISIONS)}")
        for name in ("vocab_size", "num_images", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not isinstance(self.tokenizer, str):
            raise ValueError(f"tokenizer is {self.tokenizer!r:.80}; expected the fingerprint of a tokenizer, or an empty string")
        if not self.views:
            raise ValueError("views is empty; a store holds at least one view of each image")

    @property
    def num_shards(self) -> int:
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
        """Size of a complete shard file: the header of a .npy file and the ids."""
        return 128 + int(np.prod(self.shard_shape(shard))) * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON holds them, with the type of the ids on disk."""
        return {**asdict(self), "layout": self.layout.to_dict(), "dtype": self.dtype.name}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StoreSpec":
        """Inverse of `to_dict`. KeyError for a missing value, ValueError or TypeError for one that is not allowed."""
        return cls(**{field.name: values[field.name] for field in fields(cls)} | {"layout": Layout.from_dict(values["layout"])})

    def check_same(self, other: "StoreSpec", where: Path) -> None:
        """ValueError naming the first value in which `other` differs from the spec of the store at `where`."""
        for field in fields(self):
            stored, now = getattr(self, field.name), getattr(other, field.name)
            if stored != now:
                shown = [value.describe() if isinstance(value, Layout) else value for value in (stored, now)]
                both = f"{shown[0]} there, {shown[1]} now"
                raise ValueError(f"{where} holds ids of another {field.name}: {both}; write to another folder or delete it")


@dataclass(frozen=True)
class Shard:
    """One shard file as the manifest lists it; `file` is relative to the folder of the store."""

    file: str
    images: int
    bytes: int
    crc32: str


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json."""

    spec: StoreSpec
    complete: bool = False
    skipped: int = 0  # Images without ids; skipped.jsonl has the reasons
    shards: tuple[Shard, ...] = ()

    def save(self, folder: Path) -> None:
        """Write manifest.json atomically; nothing in it depends on when or by how many processes the store was made."""
        rest = {"complete": self.complete, "skipped": self.skipped, "shards": [asdict(shard) for shard in self.shards]}
        write_json(folder / MANIFEST, {"format": FORMAT, **self.spec.to_dict(), **rest})

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read manifest.json.

        Raises FileNotFoundError: there is none. Raises ValueError: it is damaged, of another format, or names a shard outside of the
        folder.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no store of ids: it has no {MANIFEST}; make one with python -m unicode.run.encode_images")
        try:
            values = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}; {_AGAIN}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"{path}: format is {found!r}, expected '{FORMAT}'; {_AGAIN}")
        try:
            shards = tuple(Shard(**shard) for shard in values["shards"])
            for shard in shards:
                check_key(shard.file)
            spec = StoreSpec.from_dict(values)
            if values["complete"] and len(shards) != spec.num_shards:
                raise ValueError(f"{len(shards)} shards for {spec.num_images} images of {spec.shard_size} a shard")
            return cls(spec, bool(values["complete"]), int(values["skipped"]), shards)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} is damaged: {type(error).__name__} {error}; {_AGAIN}") from error


class KeyIndex(Sequence[str]):
    """The keys in `folder`: `index[row]` is a key, `index.find(key)` its row.

    Raises ValueError: a file of the index is missing or damaged, or the files do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        remedy = "delete that folder and run the command that made the store, it makes the index again"
        try:
            self._offsets, self._hashes, self._rows = (np.lib.format.open_memmap(folder / name, mode="r") for name in KEY_FILES[1:])
            self._names = np.memmap(folder / KEY_FILES[0], dtype=np.uint8, mode="r")
            kinds = [(array.dtype, array.ndim) for array in (self._offsets, self._hashes, self._rows)]
        except Exception as error:  # damaged headers fail in many ways
            raise ValueError(f"the key index {folder} cannot be read ({error}); {remedy}") from error
        sizes = len(self._offsets) - 1 == len(self._hashes) == len(self._rows) and self._offsets[-1] == len(self._names)
        if kinds != [(np.int64, 1), (np.uint64, 1), (np.int64, 1)] or not sizes:
            raise ValueError(f"the files of the key index {folder} do not belong together; {remedy}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> str:  # type: ignore[override]
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return self._names[start : end - 1].tobytes().decode("utf-8", "surrogateescape")  # the last byte is the line end

    def find(self, key: str) -> int:
        """Row of `key`, or -1: one binary search over the hashes, then a comparison of the names."""
        wanted = _hash(key)
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = int(self._rows[place])
            if 0 <= row < len(self) and self[row] == key:
                return row
            place += 1
        return -1


class Store:
    """Ids by key. Opening reads the manifest and the sizes of the files, never the ids.

    Raises FileNotFoundError: no store there, or a shard is missing. Raises ValueError: the store is not finished, damaged, or a shard is
    truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self.spec = self.manifest.spec
        if not self.manifest.complete:
            raise ValueError(f"{self.path} is not finished; {REMEDY}")
        for shard in self.manifest.shards:
            file = self.path / shard.file
            if not file.is_file():
                raise FileNotFoundError(f"shard {file} is missing; {REMEDY}")
            if file.stat().st_size != shard.bytes:
                raise ValueError(f"shard {file} has {file.stat().st_size} bytes instead of {shard.bytes}; {REMEDY}")
        self.index = KeyIndex(self.path / "keys")
        if len(self.index) != self.spec.num_images:
            raise ValueError(f"{self.path}: {len(self.index)} keys for {self.spec.num_images} images; {_AGAIN}")
        self._maps: dict[int, np.ndarray] = {}

    def __reduce__(self) -> tuple[type["Store"], tuple[Path]]:
        """A store travels to a worker process as its path, not as its content."""
        return Store, (self.path,)

    @property
    def layout(self) -> Layout:
        return self.spec.layout

    def __len__(self) -> int:
        """Images that have ids."""
        return self.spec.num_images - self.manifest.skipped

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def __getitem__(self, key: str) -> np.ndarray:
        """The first view of one image, see `ids`."""
        return self.ids(key)

    def ids(self, key: str, *, view: int = 0) -> np.ndarray:
        """Vocabulary ids of one image: int64 (N,) in id order.

        Raises KeyError: the store has no such image, or no ids of it; the message names the key and the reason. Raises IndexError: no such
        view.
        """
        found = self.get(key, view=view)
        if found is not None:
            return found
        if self.index.find(key) < 0:
            raise KeyError(f"'{key}' is not in {self.path}; keys are paths relative to the image root, as '{self.index[0]}'")
        raise KeyError(f"'{key}' has no ids in {self.path}: {self.skipped.get(key, 'not encoded')}")

    def get(self, key: str, *, view: int = 0) -> np.ndarray | None:
        """As `ids`, with None for an image that is not there or could not be read."""
        row = self.index.find(key)
        if row < 0:
            return None
        shard, place = divmod(row, self.spec.shard_size)
        found = self._shard(shard)[place]
        return None if found[0, 0] == self.spec.no_id else found[view].astype(np.int64)

    def __iter__(self) -> Iterator[str]:
        """Keys of all images that have ids, in the order of the list they were made from."""
        skipped = self.skipped
        return (key for key in self.index if key not in skipped)

    @cached_property
    def skipped(self) -> dict[str, str]:
        """Reason for each image without ids. FileNotFoundError where the list of them is missing, ValueError where it is damaged."""
        path = self.path / "skipped.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {REMEDY}")
        try:
            return {str(record["key"]): str(record["reason"]) for record in read_jsonl(path)}
        except (KeyError, TypeError) as error:
            raise ValueError(f'{path} is damaged: lines of {{"row", "key", "reason"}} are expected; delete it; {REMEDY}') from error

    def check_tokenizer(self, fingerprint: str, layout: Layout) -> None:
        """ValueError when the ids were made by another tokenizer or stand in another order."""
        self.layout.check_same(layout)
        if self.spec.tokenizer and self.spec.tokenizer != fingerprint:
            both = f"{self.spec.tokenizer}, not of {fingerprint}"
            raise ValueError(f"{self.path} holds ids of the tokenizer {both}; encode the images again with this one")

    def verify(self) -> None:
        """Read everything and raise ValueError at the first shard whose checksum is wrong or that holds an id out of range."""
        for number, shard in enumerate(self.manifest.shards):
            file = self.path / shard.file
            if checksum(file.read_bytes()) != shard.crc32:
                raise ValueError(f"shard {file} is damaged: its checksum is not {shard.crc32}; delete the file; {REMEDY}")
            ids = self._shard(number)
            wrong = (ids.astype(np.int64) >= self.spec.vocab_size) & (ids != self.spec.no_id) | (ids < min(self.spec.no_id, 0))
            if wrong.any():
                key = self.index[number * self.spec.shard_size + int(np.argwhere(wrong)[0, 0])]
                fault = f"id {ids[wrong][0]} is not below the vocabulary size {self.spec.vocab_size}"
                raise ValueError(f"shard {file}, image '{key}': {fault}; encode the images again")

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._maps:
            if len(self._maps) >= OPEN_SHARDS:
                self._maps.pop(next(iter(self._maps)))
            file = self.path / self.manifest.shards[number].file
            try:
                ids = np.lib.format.open_memmap(file, mode="r")
            except Exception as error:  # damaged headers fail in many ways
                raise ValueError(f"shard {file} is damaged: it is no array of numpy; delete the file; {REMEDY}") from error
            if ids.shape != self.spec.shard_shape(number) or ids.dtype != self.spec.dtype:
                raise ValueError(f"shard {file} is damaged: it holds {ids.dtype} {ids.shape}; delete the file; {REMEDY}")
            self._maps[number] = ids
        return self._maps[number]


def write_keys(folder: Path, keys: Sequence[str]) -> None:
    """Write the index of `keys` to `folder`, each file atomically. The keys are those that `check_keys` allows."""
    encoded = [_encode(key) + b"\n" for key in keys]
    hashes = np.fromiter((_hash(key) for key in keys), dtype=np.uint64, count=len(keys))
    rows = np.argsort(hashes, kind="stable")
    offsets = np.concatenate(([0], np.cumsum([len(name) for name in encoded]))).astype(np.int64)
    for name, array in zip(KEY_FILES[1:], (offsets, hashes[rows], rows.astype(np.int64)), strict=True):
        with atomic_write(folder / name, "wb") as file:
            np.save(file, array)
    with atomic_write(folder / KEY_FILES[0], "wb") as file:
        file.writelines(encoded)


def check_keys(keys: Sequence[str]) -> None:
    """ValueError when there are no keys, two are equal, or one could lead out of the image root."""
    if not keys:
        raise ValueError("no images to encode: the list is empty")
    seen: set[str] = set()
    for key in keys:
        check_key(key)
        if key in seen:
            raise ValueError(f"key '{key}' stands for two images; keys are paths relative to the image root, never bare names")
        seen.add(key)


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


def checksum(content: bytes) -> str:
    """CRC-32 as eight hexadecimal digits."""
    return f"{zlib.crc32(content):08x}"


def _encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _hash(key: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(_encode(key), digest_size=8).digest(), "little"))
