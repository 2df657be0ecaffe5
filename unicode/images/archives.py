"""Images inside tar shards (WebDataset) and LMDB files (LSUN), read at random: keys once, bytes by index."""

import json
import os
import re
import tarfile
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from unicode.common.extras import require
from unicode.common.files import atomic_write, read_list, write_list
from unicode.common.logging import get_logger
from unicode.images.listing import EXTENSIONS, LAYOUTS, PackedStrings, UnreadableImageError, check_folder

log = get_logger(__name__)


class TarShards:
    """The images of uncompressed tar files. A key is "SHARD/MEMBER"; the members' offsets are kept in SHARD.index.json."""

    def __init__(self, pattern: str, root: str = "") -> None:
        """Find the shards of a pattern (braces {000..127} and globs, relative to `root`) and their members.

        Raises FileNotFoundError: no shard matches, or one of a brace range is missing. Raises ValueError: a shard is compressed or damaged,
        or none holds an image.
        """
        self._paths = find_shards(pattern, root)
        folders, top = [os.path.abspath(os.path.dirname(path)) for path in self._paths], os.path.abspath(root)
        base = top if root and os.path.commonpath([top, *folders]) == top else os.path.commonpath(folders)
        found: dict[str, tuple[int, int, int]] = {}  # of a member that was appended again, the last one counts, as in tar
        for number, path in enumerate(self._paths):
            prefix = os.path.relpath(path, base)
            found |= {f"{prefix}/{member}": (number, offset, size) for member, offset, size in _shard_index(path)}
        if not found:
            raise ValueError(f"no images in the {len(self._paths)} shards of {pattern}; {LAYOUTS}")
        self.keys = PackedStrings(found)
        try:
            self._members = np.array(list(found.values()), np.int64)  # (N, 3): shard, offset, size
        except OverflowError as error:
            raise ValueError(f"a shard of {pattern} is damaged: it has a member of more than 2^63 bytes; leave it out") from error

    def read(self, index: int) -> bytes:
        """Return the bytes of image `index`; UnreadableImageError if the shard ends before it does."""
        shard, offset, size = (int(value) for value in self._members[index])
        try:
            with open(self._paths[shard], "rb") as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise UnreadableImageError(f"unreadable shard: {self._paths[shard]}: {error.strerror}") from error
        if len(data) < size:
            raise UnreadableImageError(f"truncated shard: {self._paths[shard]}")
        return data


def find_shards(pattern: str, root: str = "", *, kind: str = "tar shard") -> list[str]:
    """Expand one brace range and globs of a shard pattern, relative to `root`; `kind` names the files in messages.

    Raises FileNotFoundError: nothing matches, or a shard of a brace range is missing.
    """
    pattern = os.path.join(root, pattern)
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        paths = sorted(glob(pattern, recursive=True))
        if not paths:
            raise FileNotFoundError(f"no {kind} matches {pattern}; set data.root and data.path, {LAYOUTS}")
        return paths
    low, high = match.groups()
    numbers = range(int(low), int(high) + 1)
    paths = [f"{pattern[: match.start()]}{number:0{len(low)}d}{pattern[match.end() :]}" for number in numbers]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing or not paths:
        names = ", ".join(missing[:3])
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} shards of {pattern} are missing: {names}; correct the range in data.path")
    return paths


def _shard_index(path: str) -> list[tuple[str, int, int]]:
    """Return (member, offset, size) of the images of a shard, from its index file if that is newer than the shard's last change."""
    status = os.stat(path)
    stamp = [status.st_size, status.st_mtime_ns]
    cache = f"{path}.index.json"
    try:
        with open(cache, encoding="utf-8") as file:
            content = json.load(file)
        if content["shard"] == stamp:
            return [(str(name), int(offset), int(size)) for name, offset, size in content["images"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        pass  # absent or not ours: made again below
    images = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and os.path.splitext(member.name)[1].lower() in EXTENSIONS:
                    images.append((member.name, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not an uncompressed tar file ({error}); unpack it, or leave it out of data.path") from error
    try:
        with atomic_write(cache) as file:
            json.dump({"shard": stamp, "images": images}, file)
    except OSError:
        log.info("the index of %s cannot be kept beside it; it is made again at every start", path)
    return images


class Lmdb:
    """The images of an LMDB folder as LSUN ships it: keys are ASCII, values image files. The keys are kept in FOLDER.keys.txt."""

    def __init__(self, path: str | Path) -> None:
        """Open the folder and list its keys.

        Raises FileNotFoundError: there is no such folder, or no data.mdb in it. Raises ValueError: it is empty, is not an LMDB, or the
        package lmdb is missing.
        """
        self._path = str(path)
        check_folder(path)
        if not Path(path, "data.mdb").is_file():
            raise FileNotFoundError(f"there is no data.mdb in {path}; set data.path to the ..._lmdb folder, {LAYOUTS}")
        self.keys = PackedStrings(f"{Path(path).name}/{name}" for name in self._list_keys())
        if not len(self.keys):
            raise ValueError(f"{path} holds no image; {LAYOUTS}")

    def read(self, index: int) -> bytes:
        """Return the bytes of image `index`; UnreadableImageError if the file has lost it."""
        with _environment(os.path.realpath(self._path), os.getpid()).begin() as transaction:
            name = self.keys[index].rpartition("/")[2]
            data = transaction.get(bytes.fromhex(name[4:]) if name.startswith("hex.") else name.encode("ascii"))
        if data is None:
            raise UnreadableImageError("missing record")
        return data

    def _list_keys(self) -> list[str]:
        cache = f"{self._path.rstrip('/')}.keys.txt"
        with _environment(os.path.realpath(self._path), os.getpid()).begin() as transaction:
            entries = transaction.stat()["entries"]
            if os.path.isfile(cache):
                names = read_list(cache)
                if len(names) == entries:
                    return names
            keys = [(key.decode("ascii", "replace"), key) for key in transaction.cursor().iternext(keys=True, values=False)]
        names = [name if re.fullmatch(r"(?!hex\.)[\w.-]+", name, re.ASCII) else f"hex.{key.hex()}" for name, key in keys]
        try:
            write_list(cache, names)
        except OSError:
            log.info("the keys of %s cannot be kept beside it; they are listed again at every start", self._path)
        return names


@cache
def _environment(path: str, _pid: int) -> Any:
    """Open an LMDB once per process: LMDB allows neither a second time nor across a fork."""
    lmdb = require("lmdb", extra="lsun")
    try:
        return lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False, max_readers=1024)
    except lmdb.Error as error:
        raise ValueError(f"{path} is not an LMDB: {error}") from error
