"""Data sets by name -> the bytes of image files by number and by key."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from unicode.images import listing
from unicode.images.archives import Lmdb, TarShards
from unicode.images.config import DataConfig
from unicode.images.decode import read_bytes
from unicode.images.listing import LAYOUTS, Listing
from unicode.images.packed import PackedStrings


class Source(Protocol):
    """Image files by number."""

    keys: PackedStrings

    def read(self, index: int) -> bytes:
        """Return the bytes of file `index`; UnreadableImageError if they cannot be had."""


class Files:
    """Image files of a folder tree."""

    def __init__(self, files: Listing) -> None:
        self._root = os.path.abspath(files.root)
        self.keys = PackedStrings(files.keys)

    def read(self, index: int) -> bytes:
        """Return the bytes of file `index`; UnreadableImageError if they cannot be had."""
        return read_bytes(f"{self._root}/{self.keys[index]}")


def open_source(config: DataConfig) -> Source:
    """Find the files of the data set that a config names.

    Raises:
        FileNotFoundError: a folder, list, archive, or files named in a list are missing.
        ValueError: nothing to read, a malformed list, or a setting is missing.
    """
    if not config.root and config.name in ("folder", "imagenet", "ffhq", "cc3m", "coco"):
        raise ValueError(f"data.name={config.name} needs data.root, the folder of its images; {LAYOUTS}")
    return SOURCES[config.name](config)


def _folder(config: DataConfig) -> Source:
    return Files(listing.list_folder(os.path.join(config.root, config.path.replace("{split}", config.split)), root=config.root))


def _imagenet(config: DataConfig) -> Source:
    return Files(listing.list_folder(os.path.join(config.root, config.split), root=config.root))


def _lines(config: DataConfig, separator: str | None = None) -> Source:
    parts = [listing.list_lines(path, config.root, folder=folder, separator=separator) for path, folder in _files_of(config)]
    return _checked(config, listing.join(parts))


def _ffhq(config: DataConfig) -> Source:
    return _lines(replace(config, path=config.path or "ffhq_{split}.txt"))


def _cc3m(config: DataConfig) -> Source:
    return _lines(replace(config, path=config.path or "{split}_list.txt"), separator="\t")


def _llava(config: DataConfig) -> Source:
    return _checked(config, listing.join([listing.list_llava(path, config.root, folder=folder) for path, folder in _files_of(config)]))


def _coco(config: DataConfig) -> Source:
    path = _resolve(config, config.path) if config.path else ""
    return _checked(config, listing.list_coco(config.root, config.split, path))


def _lsun(config: DataConfig) -> Source:
    return Lmdb(_resolve(config, _required(config, "the ..._lmdb folder")))


def _webdataset(config: DataConfig) -> Source:
    return TarShards(_required(config, "the shards, for example train-{0000..0127}.tar").replace("{split}", config.split), config.root)


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "folder": _folder, "list": _lines, "llava": _llava, "imagenet": _imagenet, "ffhq": _ffhq, "cc3m": _cc3m, "coco": _coco,
    "lsun": _lsun, "webdataset": _webdataset,
}  # fmt: skip


def _checked(config: DataConfig, files: Listing) -> Source:
    listing.check_files(files, config.check_files, config.path or config.name)
    return Files(files)


def _files_of(config: DataConfig) -> list[tuple[str, str]]:
    """Divide `path` at commas into files and the folders under the root that their images start from."""
    parts = [part.strip() for part in _required(config, "the list or annotation file").split(",") if part.strip()]
    pairs = [(part.rpartition("@")[::2] if "@" in part else (part, "")) for part in parts]
    if len(pairs) > 1 and not config.root:
        raise ValueError(f"several files in data.path ({config.path}) need data.root, the folder that their images have in common")
    return [(_resolve(config, file), folder.strip("/")) for file, folder in pairs]


def _required(config: DataConfig, what: str) -> str:
    if not config.path:
        raise ValueError(f"data.name={config.name} needs data.path, {what}; {LAYOUTS}")
    return config.path


def _resolve(config: DataConfig, path: str) -> str:
    """Return a path relative to the root or, if there is nothing, to the working directory."""
    path = path.replace("{split}", config.split)
    under_root = os.path.join(config.root, path)
    return under_root if Path(under_root).exists() or not Path(path).exists() else path
