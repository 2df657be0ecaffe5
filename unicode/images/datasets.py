"""Data sets by name: one config -> a map-style data set of square pictures in [-1, 1], each with its key.

`dataset[i]` is picture i as evaluation sees it; `dataset[Draw(i, seed)]` as training does, all chance coming from `seed`. A
picture that cannot be read is a `Skipped` with the reason, never an exception.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unicode.images.config import DataConfig
from unicode.images.decode import UnreadableImageError, decode_image
from unicode.images.listing import is_held_out
from unicode.images.packed import PackedStrings
from unicode.images.scene import ShapesConfig
from unicode.images.shapes import SPLITS, Scene, draw_scene, scene_keys
from unicode.images.sources import Source, open_source
from unicode.images.transforms import SMALLEST_AREA, eval_transform, seeded, to_float, train_transform

__all__ = ["DataConfig", "Draw", "FileImages", "ImageDataset", "Sample", "ShapesImages", "Skipped", "build_dataset", "open_images"]


@dataclass(frozen=True, slots=True)
class Draw:
    """A request for a training picture: which, and the seed of its random crop."""

    index: int
    seed: int


@dataclass(frozen=True)
class Sample:
    """One picture."""

    image: Tensor  # (3, H, W) float32 in [-1, 1]
    key: str
    index: int


@dataclass(frozen=True)
class Skipped:
    """One picture that could not be used."""

    key: str
    reason: str  # "kind" or "kind: detail"
    index: int


class ImageDataset(Dataset[Sample | Skipped], ABC):
    """Pictures of one size by index; subclasses say how to make one. Workers get it pickled, so it is small."""

    image_size: int
    protocol: str  # how evaluation makes a square of a picture, in words, for reports and manifests

    def __init__(self, keys: Sequence[str] | PackedStrings, *, image_size: int, protocol: str) -> None:
        self._keys = keys if isinstance(keys, PackedStrings) else PackedStrings(keys)
        self.image_size = image_size
        self.protocol = protocol

    @abstractmethod
    def pixels(self, item: int | Draw) -> Tensor | Skipped:
        """Return picture `item` as (3, H, W) uint8, or why there is none."""

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """Return the key of picture `index`: its path relative to the image root, with forward slashes."""
        return self._keys[index]

    @cached_property
    def keys(self) -> list[str]:
        """All keys in order. Made when first asked for; `key(i)` is cheaper for a few."""
        return list(self._keys)

    def __getitem__(self, item: int | Draw) -> Sample | Skipped:
        pixels = self.pixels(item)
        if isinstance(pixels, Skipped):
            return pixels
        index = item.index if isinstance(item, Draw) else item
        return Sample(to_float(pixels), self.key(index), index)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "keys"}


class FileImages(ImageDataset):
    """Pictures decoded from image files, wherever these lie."""

    def __init__(self, source: Source, config: DataConfig, *, image_size: int, train: bool) -> None:
        self._rows = _choose(source.keys, config)
        kept = source.keys if self._rows is None else [source.keys[int(row)] for row in self._rows]
        draft = f", JPEG draft {config.draft:g}" if config.draft else ""
        protocol = f"shorter side {image_size} {config.resize} antialiased, center crop{draft}"
        super().__init__(kept, image_size=image_size, protocol=protocol)
        self._source = source
        self._max_pixels = config.max_pixels
        self._train = train_transform(image_size, crop=config.training_crop, flip=config.flip, resize=config.resize)
        self._eval = eval_transform(image_size, resize=config.resize)
        self._use_train = train
        self._shorter = math.ceil(config.draft * image_size)
        self._shorter_train = math.ceil(self._shorter / (math.sqrt(SMALLEST_AREA) if config.training_crop == "resized" else 1))

    def pixels(self, item: int | Draw) -> Tensor | Skipped:
        """Return picture `item` as (3, H, W) uint8, or why there is none."""
        index = item.index if isinstance(item, Draw) else item
        training = self._use_train and isinstance(item, Draw)
        try:
            data = self._source.read(index if self._rows is None else int(self._rows[index]))
            picture = decode_image(data, shorter=self._shorter_train if training else self._shorter, max_pixels=self._max_pixels)
            width, height = picture.size
            if max(width, height) * self.image_size**2 > self._max_pixels * min(width, height):
                return Skipped(self.key(index), f"too thin: {width}x{height} pixels", index)
        except UnreadableImageError as error:
            return Skipped(self.key(index), str(error), index)
        if isinstance(item, Draw) and training:
            with seeded(item.seed):
                return self._train(picture)
        return self._eval(picture)


class ShapesImages(ImageDataset):
    """Pictures of the generated world; training sees them as evaluation does."""

    def __init__(self, config: ShapesConfig, *, split: str, limit: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"data.split is '{split}'; the shapes world has {' and '.join(SPLITS)}")
        super().__init__(scene_keys(config, split, limit=limit), image_size=config.image_size, protocol="generated at this size")
        self.config = config
        self.split = split
        self.scene(0).pixels()  # a world whose objects cannot be told apart ends here

    def scene(self, index: int) -> Scene:
        """Return the scene of picture `index`."""
        return draw_scene(self.config, self.split, index)

    def pixels(self, item: int | Draw) -> Tensor:
        """Return picture `item` as (3, H, W) uint8."""
        return torch.from_numpy(self.scene(item.index if isinstance(item, Draw) else item).pixels())


def build_dataset(config: DataConfig, *, image_size: int, train: bool) -> ImageDataset:
    """Find the pictures that a config names.

    Args:
        image_size: side of the squares in pixels.
        train: give a `Draw` the training transform; without it every item is as in evaluation.

    Raises:
        FileNotFoundError: a folder, list, archive, or files named in a list are missing.
        ValueError: nothing to read, or something malformed; the message says what to set.
    """
    if config.name == "shapes":
        return ShapesImages(replace(config.shapes, image_size=image_size), split=config.split, limit=config.limit)
    return FileImages(open_source(config), config, image_size=image_size, train=train)


def open_images(
    path: str | Path, *, image_size: int, root: str = "", config: DataConfig | None = None, train: bool = False
) -> ImageDataset:
    """Find the pictures that `--images` of a command means.

    Args:
        path: a folder (searched recursively), an LMDB folder, a .txt list, a LLaVA .json, tar shards, or "shapes:SPLIT".
        root: the folder that the paths in a list or annotation file start from; the file's own folder if empty.
        config: settings that are not about which pictures (resize, crop, draft, limit, the world of shapes).
        train: give a `Draw` the training transform, as in `build_dataset`.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: there is nothing to read in it, or no telling what it is.
    """
    base, text = config or DataConfig(), str(path)
    if text == "shapes" or text.startswith("shapes:"):
        return build_dataset(replace(base, name="shapes", split=text.partition(":")[2] or "val"), image_size=image_size, train=train)
    if os.path.isdir(text):
        is_lmdb = os.path.isfile(os.path.join(text, "data.mdb"))
        lmdb, folder = replace(base, name="lsun", root="", path=os.path.abspath(text)), replace(base, name="folder", root=text, path="")
        return build_dataset(lmdb if is_lmdb else folder, image_size=image_size, train=train)
    names = {".txt": "list", ".json": "llava", ".tar": "webdataset"}
    suffix = Path(text).suffix
    if suffix not in names:
        what = f"is none of {', '.join(names)}" if os.path.exists(text) else "does not exist"
        raise FileNotFoundError(f"--images {text} {what}; give a folder, a list (.txt), a LLaVA file (.json), tar shards or shapes:val")
    found = replace(base, name=names[suffix], root=root, path=os.path.abspath(text))
    return build_dataset(found, image_size=image_size, train=train)


def _choose(keys: PackedStrings, config: DataConfig) -> np.ndarray | None:
    """Return the rows that `holdout` and `limit` leave, None for all."""
    rows = np.arange(len(keys))
    if config.holdout:
        if config.split not in ("train", "val"):
            raise ValueError(f"data.split is '{config.split}'; with data.holdout it must be train or val")
        held = np.array([is_held_out(key, config.holdout) for key in keys])
        rows = rows[held if config.split == "val" else ~held]
        if not len(rows):
            raise ValueError(f"data.holdout={config.holdout} leaves none of {len(keys)} images for {config.split}; change it")
    if config.limit and config.limit < len(rows):
        rows = rows[np.arange(config.limit) * len(rows) // config.limit]
    return rows if len(rows) < len(keys) else None
