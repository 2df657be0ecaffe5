"""Keys of annotation and question files -> pictures in folders, archives and the generated world; no key leads out of the folders."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from unicode.common.config import load_config
from unicode.common.logging import get_logger
from unicode.images.dataset import DataConfig, Source, name_source, open_source
from unicode.images.decode import PictureTransform, decode_image, make_square
from unicode.images.listing import UnreadableImageError, read_bytes
from unicode.images.shapes import ShapesConfig, find_scene
from unicode.images.shapes_text import scene_caption

log = get_logger(__name__)


def is_world(name: str | Path) -> bool:
    """Whether a source of pictures is the generated world: "shapes" or "shapes:SPLIT"."""
    return str(name).partition(":")[0] == "shapes"


def square_pixels(image: Image.Image | bytes, *, transform: PictureTransform, side: int) -> Tensor:
    """Return a picture or the content of an image file as (3, S, S) uint8, in training as in use.

    `transform`: RGB picture -> (3, S, S) uint8. `side`: S; JPEG files may be decoded smaller as long as twice as much remains. Raises
    UnreadableImageError: not an image, damaged, too large or too thin.
    """
    settings = DataConfig()
    if isinstance(image, bytes):
        image = decode_image(image, shorter=math.ceil(settings.draft * side), max_pixels=settings.max_pixels)
    return make_square(image.convert("RGB"), transform, side=side, max_pixels=settings.max_pixels)


class ImageLookup:
    """Pictures by key, in several sources that are searched in order. Worker processes get it pickled.

    `names`: folders, LMDB folders, tar shards (*.tar), Parquet files (*.parquet), "torchvision:SET:SPLIT@ROOT" and the generated world
    ("shapes" or "shapes:SPLIT"; a key names its split). `side`: side of the world's pictures in pixels; 0: the world's own. `world`:
    settings of the world that differ from the default ones, as "colours=8". Raises FileNotFoundError: a source does not exist. Raises
    ValueError: an archive without images, or unknown settings.
    """

    def __init__(self, names: Sequence[str | Path], *, side: int = 0, world: Sequence[str] = ()) -> None:
        self.names = [str(name) for name in names]
        config = load_config(ShapesConfig, None, [*world, *([f"image_size={side}"] if side else [])])
        roots = tuple(os.path.realpath(name) for name in self.names if os.path.isdir(name))
        self._sources = [_open(name, config, roots) for name in self.names]

    def __contains__(self, key: str) -> bool:
        return any(source.holds(key) for source in self._sources)

    def read(self, key: str) -> Image.Image | bytes:
        """Return a picture of the world or of a set of torchvision, or the content of an image file.

        Raises UnreadableImageError: no source has the key, the key leads out of the folders, or the file cannot be read.
        """
        source = next((source for source in self._sources if source.holds(key)), None)
        if source is None:
            raise UnreadableImageError(self._why_missing(key))
        return source.read(key)

    def find(self, key: str) -> Image.Image | None:
        """Return the picture of a key, upright and in RGB; None where no source has it or it cannot be decoded."""
        try:
            found = self.read(key)
            return decode_image(found) if isinstance(found, bytes) else found
        except UnreadableImageError:
            return None

    def caption(self, key: str) -> str:
        """Return the caption of a scene of the world, or the first line of the .txt file beside a picture; "" where there is none."""
        return next(filter(None, (source.caption(key) for source in self._sources)), "")

    def check(self, keys: Iterable[str], *, setting: str) -> None:
        """Raise FileNotFoundError where none of some keys is found; warn where some are missing.

        `setting`: the option that names the sources, for the message.
        """
        keys = list(keys)
        missing = [key for key in keys if key not in self]
        if missing and len(missing) == len(keys):
            where = f"{', '.join(self.names)}, as '{missing[0]}' ({self._why_missing(missing[0])})"
            raise FileNotFoundError(f"none of {len(keys)} pictures is in {where}; {setting} names their folders")
        if missing:
            log.warning("%d of %d pictures looked for are missing, as '%s'", len(missing), len(keys), missing[0])

    def _why_missing(self, key: str) -> str:
        outside = "outside the image folders"
        if not _is_relative(key):
            return f"{outside}: keys are relative paths without '..'; name the folder as a source of pictures"
        for source in self._sources:
            if isinstance(source, _Folder) and os.path.isfile(path := source.resolve(key)):
                return f"{outside}: a link leads to {path}; name its folder as a source of pictures too"
        return "missing file"


def _is_relative(key: str) -> bool:
    """Whether a key is a path below a folder: not empty, not absolute, without "..", links aside."""
    return bool(key) and "\0" not in key and not key.startswith("/") and ".." not in key.split("/")


def _open(name: str, config: ShapesConfig, roots: tuple[str, ...]) -> "_Folder | _Archive | _World":
    named = name_source(name, DataConfig())
    if named is None or named.name in ("list", "llava"):
        kinds = "folders, LMDB folders, tar shards (*.tar), Parquet files (*.parquet), torchvision:SET:SPLIT@ROOT and shapes"
        raise FileNotFoundError(f"no pictures at '{name}'; --images and vision.images take {kinds}")
    if named.name == "shapes":
        return _World(config)
    return _Folder(name, roots) if named.name == "folder" else _Archive(open_source(named))


class _Folder:
    """Files below a folder. A link may lead only into one of `roots`, the resolved folders of the look-up."""

    def __init__(self, root: str, roots: tuple[str, ...]) -> None:
        self._root, self._roots = os.path.abspath(root), tuple(f"{root.rstrip('/')}/" for root in roots)

    def resolve(self, key: str) -> str:
        return os.path.realpath(os.path.join(self._root, key))

    def holds(self, key: str) -> bool:
        return _is_relative(key) and (path := self.resolve(key)).startswith(self._roots) and os.path.isfile(path)

    def read(self, key: str) -> bytes:
        return read_bytes(self.resolve(key))

    def caption(self, key: str) -> str:
        name = os.path.splitext(key)[0] + ".txt"
        if not self.holds(name):
            return ""
        with open(self.resolve(name), encoding="utf-8", errors="replace") as file:
            return file.readline().strip()


class _Archive:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows = {key: row for row, key in enumerate(source.keys)}

    def holds(self, key: str) -> bool:
        return key in self._rows

    def read(self, key: str) -> Image.Image | bytes:
        return self._source.read(self._rows[key])

    def caption(self, key: str) -> str:
        return ""


class _World:
    def __init__(self, config: ShapesConfig) -> None:
        self._config = config

    def holds(self, key: str) -> bool:
        try:
            return bool(find_scene(self._config, key))
        except ValueError:
            return False

    def read(self, key: str) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(find_scene(self._config, key).pixels().transpose(1, 2, 0)))

    def caption(self, key: str) -> str:
        return scene_caption(find_scene(self._config, key)) if self.holds(key) else ""
