"""Folders, lists and annotation files of images -> a root folder and unique keys relative to it."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unicode.common.files import read_json
from unicode.common.logging import get_logger


class UnreadableImageError(Exception):
    """An image that cannot be used. The message is "kind" or "kind: detail"; reports count by kind."""


class PackedStrings(Sequence[str]):
    """An immutable sequence of strings. A Python list of them would be copied, object by object, into each worker."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self._offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} strings")
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].decode("utf-8", "surrogateescape")


EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"}
LAYOUTS = "DATA_VAE.md shows the layout of every data set"
log = get_logger(__name__)


class Files:
    """Image files below a root folder; keys are paths relative to it, with forward slashes, each once."""

    def __init__(self, root: str | Path, keys: Iterable[str]) -> None:
        self.root, self.keys = Path(root), PackedStrings(keys)

    def read(self, index: int) -> bytes:
        """Return the bytes of file `index`; UnreadableImageError if they cannot be read."""
        return read_bytes(self.root / self.keys[index])


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a file. Raises UnreadableImageError: there is no such file, or it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise UnreadableImageError("missing file") from error
    except OSError as error:
        raise UnreadableImageError(f"unreadable file: {error.strerror}") from error


def list_folder(folder: str | Path, *, root: str | Path | None = None) -> Files:
    """List the images under a folder, recursively, sorted; links are followed, hidden files and other extensions left out.

    `root`: what the keys are relative to; the folder itself if None. Raises FileNotFoundError: there is no such folder. Raises ValueError:
    there is no image in it.
    """
    folder = Path(folder)
    check_folder(folder)
    found, seen = [], set()
    for where, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder already walked
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(where, root or folder)
        prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
        found += [prefix + name for name in files if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")]
    if not found:
        raise ValueError(f"no images in {folder} (looked for {', '.join(sorted(EXTENSIONS))}, also in its subfolders); {LAYOUTS}")
    return Files(root or folder, sorted(found))


def list_lines(path: str | Path, root: str, *, folder: str = "", separator: str | None = None) -> Files:
    """List the images that a text file names, one a line, in its order; what follows `separator` in a line is left out.

    Relative lines start at `root / folder`, at the folder of the list file if `root` is empty. Absolute lines must lie under `root`; with
    an empty `root` they may lie anywhere, and all keys are then relative to "/". Raises FileNotFoundError: there is no such list or root.
    Raises ValueError: the list is empty, or a line leaves the root.
    """
    check_file(path)
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        texts = [(line.split(separator)[0] if separator else line).strip() for line in file]
    lines = [(f"{path}, line {number}", text) for number, text in enumerate(texts, 1) if text]
    if not root:
        here = Path(path).absolute().parent
        if any(text.startswith("/") for _, text in lines):
            root, folder = "/", str(here / folder).lstrip("/")
        else:
            root = str(here)
    return _gather(path, lines, root, folder)


def list_llava(path: str | Path, root: str, *, folder: str = "") -> Files:
    """List the images of a LLaVA annotation file, a JSON list of records whose "image" is a path, several, or absent (text only).

    Raises FileNotFoundError: there is no such file. Raises ValueError: it is not such a list, no record has an image, or a path leaves the
    root.
    """
    check_file(path)
    records = read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path} is not a LLaVA annotation file: a list of records was expected, not {type(records).__name__}")
    names: list[tuple[str, str]] = []
    for number, record in enumerate(records):
        images = record.get("image") if isinstance(record, dict) else record
        if images is None:
            continue
        for name in images if isinstance(images, list) else [images]:
            if not isinstance(name, str) or not name:
                raise ValueError(f"{path}, record {number}: 'image' must be a path or a list of paths, not {name!r}")
            names.append((f"{path}, record {number}", name))
    return _gather(path, names, root or str(Path(path).parent), folder)


def list_coco(root: str, split: str, path: str = "") -> Files:
    """List the images of COCO: those an annotation file names ("images" with "file_name"), or a split's whole folder.

    The pictures lie in `root/val2017` or `root/images/val2017` (or 2014, or train); the year of an annotation file is in its name. Raises
    FileNotFoundError: no annotation file, or no folder of pictures. Raises ValueError: the annotation file has no images.
    """
    match = re.search(r"(train|val|test)(2014|2015|2017)", Path(path).name)
    names = [match.group()] if match else [f"{split}2017", f"{split}2014"]
    folders = [folder for name in names for folder in (name, f"images/{name}")]
    present = [folder for folder in folders if Path(root, folder).is_dir()]
    if not present:
        pictures = f" with the pictures of {path}" if path else ""
        raise FileNotFoundError(f"no folder {', '.join(folders[:-1])} or {folders[-1]} in {root}{pictures}; {LAYOUTS}")
    if not path:
        return list_folder(Path(root, present[0]), root=root)
    check_file(path)
    content = read_json(path)
    images: Any = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) and isinstance(image.get("file_name"), str) for image in images):
        raise ValueError(f"{path} is not a COCO annotation file: an object with a list 'images' of objects with 'file_name' was expected")
    named = [(f"{path}, image {number}", image["file_name"]) for number, image in enumerate(images)]
    return _gather(path, named, root, present[0])


def is_held_out(key: str, share: float) -> bool:
    """Whether a picture belongs to the share that "val" keeps: a hash of its key decides."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < share


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the items, evenly taken, in their order; all if there are fewer."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def check_files(files: Files, number: int, source: str) -> None:
    """Check that `number` files, evenly spread over the list (all if negative), exist.

    Raises FileNotFoundError: some do not; the message names the first three and tells how many of how many.
    """
    total = len(files.keys)
    looked = spread(files.keys, number if number >= 0 else total)
    missing = [key for key in looked if not os.path.exists(files.root / key)]
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        found = f"{len(missing)} of {len(looked)} files looked for, of the {total} that {source} names, are not in {files.root}: {names}"
        raise FileNotFoundError(f"{found}; set data.root to the folder that they start from, or data.check_files=0 to skip what is missing")


def check_folder(folder: str | Path) -> None:
    """Raise FileNotFoundError unless `folder` is a folder."""
    if not Path(folder).is_dir():
        what = "is not a folder" if Path(folder).exists() else "does not exist"
        raise FileNotFoundError(f"the image folder '{folder}' {what}; set data.root, {LAYOUTS}")


def check_file(path: str | Path) -> None:
    """Raise FileNotFoundError unless `path` is a file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; set data.path (relative to data.root), {LAYOUTS}")


def key_under(root: str | Path, folder: str, name: str, where: str) -> str:
    """Return the key of a file named `name`, relative to `root/folder` or absolute; links are not resolved.

    Raises ValueError: the file would lie outside `root`; the message starts with `where`.
    """
    plain = f"{folder}/{name}" if folder else name
    if not name.startswith("/") and all(part not in ("", ".", "..") for part in plain.split("/")):
        return plain  # nothing to resolve: the usual case, fast
    base = os.path.normpath(os.path.abspath(root))
    full = os.path.normpath(os.path.join(base, folder, name))
    if os.path.commonpath([base, full]) != base or full == base:
        raise ValueError(f"{where}: '{name}' leaves the image root {base}; correct the line or set data.root")
    return os.path.relpath(full, base).replace(os.sep, "/")


def _gather(source: str | Path, names: Iterable[tuple[str, str]], root: str, folder: str) -> Files:
    check_folder(root)
    keys = [key_under(root, folder, name, where) for where, name in names]
    if not keys:
        raise ValueError(f"{source} names no image; {LAYOUTS}")
    unique = list(dict.fromkeys(keys))
    if len(unique) < len(keys):
        log.info("%s names %d images %d times; each is used once", source, len(unique), len(keys))
    return Files(root, unique)
