"""The pictures of conversations for a model that reads pixels: keys of annotation files -> (3, S, S) uint8, found wherever they lie.

In batches an image is n placeholder positions; `PixelReader` adds the pictures that belong there. A picture that cannot be read becomes a
grey one from whose conversation nothing is learned, and is counted: the rest of its batch is as it would have been.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unicode.common.config import load_config
from unicode.common.logging import get_logger
from unicode.images.archives import Lmdb, TarShards
from unicode.images.dataset import DataConfig
from unicode.images.decode import UnreadableImageError, decode_image, read_bytes
from unicode.images.shapes import ShapesConfig, find_scene
from unicode.llm.examples import IGNORED, Example

SHAPES = "shapes"
GREY_LEVEL = 128
WARNINGS = 5  # unreadable pictures that are named in the log, per process
CHECKED = 100  # pictures that are looked for before training starts

PictureTransform = Callable[[Image.Image], Tensor]
logger = get_logger(__name__)


def square_pixels(image: Image.Image | bytes, *, transform: PictureTransform, side: int) -> Tensor:
    """Return a picture or the content of an image file as (3, S, S) uint8, in training as in use.

    Args:
        transform: RGB picture -> (3, S, S) uint8.
        side: S; JPEG files may be decoded smaller as long as twice as much remains.

    Raises:
        UnreadableImageError: not an image, damaged, too large or too thin.
    """
    settings = DataConfig()
    if isinstance(image, bytes):
        image = decode_image(image, shorter=math.ceil(settings.draft * side), max_pixels=settings.max_pixels)
    width, height = image.size
    if max(width, height) * side**2 > settings.max_pixels * min(width, height):
        raise UnreadableImageError(f"too thin: {width}x{height} pixels")
    return transform(image.convert("RGB"))


class Place(Protocol):
    """Where pictures lie."""

    def __contains__(self, key: str) -> bool:
        """Whether there is a picture of this key."""

    def picture(self, key: str) -> Image.Image | bytes:
        """A picture, or the content of its file; UnreadableImageError if it cannot be had."""


class Folder:
    """Files whose keys are paths below a folder."""

    def __init__(self, root: str) -> None:
        self._root = root

    def __contains__(self, key: str) -> bool:
        return os.path.isfile(f"{self._root}/{key}")

    def picture(self, key: str) -> bytes:
        """See `Place`."""
        return read_bytes(f"{self._root}/{key}")


class Archive:
    """Images in tar shards or an LMDB, whose keys `unicode.images.archives` says."""

    def __init__(self, source: TarShards | Lmdb) -> None:
        self._source = source
        self._rows = {key: row for row, key in enumerate(source.keys)}

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def picture(self, key: str) -> bytes:
        """See `Place`."""
        return self._source.read(self._rows[key])


class World:
    """Scenes of the generated world; keys look like train/0000007.png."""

    def __init__(self, config: ShapesConfig) -> None:
        self._config = config

    def __contains__(self, key: str) -> bool:
        try:
            find_scene(self._config, key)
        except ValueError:
            return False
        return True

    def picture(self, key: str) -> Image.Image:
        """See `Place`."""
        return Image.fromarray(np.ascontiguousarray(find_scene(self._config, key).pixels().transpose(1, 2, 0)))


def open_place(name: str, *, side: int, world: Sequence[str] = ()) -> Place:
    """Open a folder, an LMDB folder, tar shards or the generated world ("shapes", or "shapes:SPLIT": a key names its split itself).

    Args:
        side: side of the world's pictures in pixels.
        world: settings of the world that differ from the default one, as "colours=8".

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: nothing to read in it, or unknown settings of the world.
    """
    if name.partition(":")[0] == SHAPES:
        return World(load_config(ShapesConfig, None, [*world, f"image_size={side}"]))
    if os.path.isdir(name):
        return Archive(Lmdb(name)) if os.path.isfile(os.path.join(name, "data.mdb")) else Folder(name)
    if name.endswith(".tar"):
        return Archive(TarShards(name))
    raise FileNotFoundError(f"no pictures at '{name}'; vision.images takes folders, LMDB folders, tar shards (*.tar) and shapes")


class Pictures:
    """Pictures by key, in several places that are searched in order.

    Args:
        places: see `open_place`.
        transform: RGB picture -> (3, S, S) uint8.
        side: S.
        world: settings of the generated world.

    Raises:
        FileNotFoundError, ValueError: see `open_place`; no place at all.
    """

    def __init__(self, places: Sequence[str], *, transform: PictureTransform, side: int, world: Sequence[str] = ()) -> None:
        if not places:
            raise ValueError("vision.images is empty; name the folders that the image paths of data.files start from, or shapes")
        self.names, self.transform, self.side = list(places), transform, side
        self._places = [open_place(place, side=side, world=world) for place in places]

    def __contains__(self, key: str) -> bool:
        return any(key in place for place in self._places)

    def read(self, key: str) -> Tensor:
        """Return picture `key` as (3, S, S) uint8; UnreadableImageError says why there is none."""
        place = next((place for place in self._places if key in place), None)
        if place is None:
            raise UnreadableImageError("missing file")
        return square_pixels(place.picture(key), transform=self.transform, side=self.side)

    def check(self, keys: Iterable[str]) -> None:
        """FileNotFoundError when none of some keys is to be found: the folder is the wrong one. A warning when a few are not."""
        keys = list(keys)
        missing = [key for key in keys if key not in self]
        if missing and len(missing) == len(keys):
            where = ", ".join(self.names)
            raise FileNotFoundError(f"none of {len(keys)} pictures is in {where}, as '{missing[0]}'; vision.images names where they lie")
        if missing:
            logger.warning("%d of %d pictures looked for are missing, as '%s'", len(missing), len(keys), missing[0])


class PixelReader:
    """Adds to a batch what a `LlavaModel` takes beside ids; travels to worker processes.

    Args:
        pictures: where they come from.
        positions: placeholder positions n of a picture.
    """

    def __init__(self, pictures: Pictures, positions: int) -> None:
        self.pictures, self.positions = pictures, positions
        self._unreadable = torch.zeros(1, dtype=torch.long).share_memory_()  # counted by worker processes too

    @property
    def num_unreadable(self) -> int:
        """Pictures that could not be read so far; one that is met again counts again."""
        return int(self._unreadable)

    def __call__(self, examples: Sequence[Example], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return pixels (m, 3, S, S) uint8 and image_at (m n) int64 flat positions; nothing for a batch without pictures.

        Labels of conversations whose picture cannot be read are taken out of `batch`.
        """
        owners = [(number, key) for number, example in enumerate(examples) for key in example.images]
        if not owners:
            return {}
        places = batch["is_image"].flatten().nonzero().flatten()
        assert len(places) == len(owners) * self.positions, f"{len(places)} placeholders for {len(owners)} pictures of {self.positions}"
        pixels = torch.full((len(owners), 3, self.pictures.side, self.pictures.side), GREY_LEVEL, dtype=torch.uint8)
        for row, (number, key) in enumerate(owners):
            try:
                pixels[row] = self.pictures.read(key)
            except UnreadableImageError as error:
                self._count(key, error)
                batch["labels"][batch["example"] == number] = IGNORED
        return {"pixels": pixels, "image_at": places}

    def _count(self, key: str, error: UnreadableImageError) -> None:
        self._unreadable += 1
        if self.num_unreadable <= WARNINGS:
            logger.warning("picture '%s' cannot be read (%s); its conversation is left out", key, error)
