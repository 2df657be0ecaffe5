"""Data sets by name: one config -> a map-style data set of square pictures in [-1, 1], each with its key."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unicode.images import listing
from unicode.images.archives import Lmdb, TarShards
from unicode.images.decode import (
    CROPS,
    RESIZES,
    SMALLEST_AREA,
    UnreadableImageError,
    decode_image,
    eval_transform,
    read_bytes,
    seeded,
    to_float,
    train_transform,
)
from unicode.images.listing import LAYOUTS, Listing, PackedStrings, is_held_out
from unicode.images.shapes import SPLITS, Scene, ShapesConfig, draw_scene, scene_keys

NAMES = ("shapes", "folder", "list", "llava", "imagenet", "ffhq", "cc3m", "coco", "lsun", "webdataset")


@dataclass
class DataConfig:
    """Which pictures, and how they become squares."""

    name: str = "shapes"  # one of NAMES
    root: str = ""  # the image root: keys and relative paths start here
    # list, annotation file, lmdb folder or shard pattern, relative to root or to the working directory; {split} is replaced by the split.
    # For list and llava also FILE@FOLDER,FILE@FOLDER: several files, each with the folder under root that its images start from.
    path: str = ""
    split: str = "train"  # "train", "val" or any name that the data set's files have
    holdout: float = 0.0  # share of the images, chosen by a hash of the key, that "val" keeps and "train" leaves out; 0: both have all
    limit: int = 0  # number of images, evenly spread over the data set; 0: all
    crop: str = "auto"  # in training: random, resized (75-100 % of the area), center; auto: resized for ffhq, random otherwise
    flip: bool = False  # in training: mirror half of the pictures
    resize: str = "bicubic"  # kernel, always antialiased: bilinear, bicubic, lanczos
    draft: float = 2.0  # JPEGs may be decoded at 1/2, 1/4 or 1/8 size as long as so many times the size asked for remains; 0: never
    max_pixels: int = 89_478_485  # larger images are skipped before they are decoded
    check_files: int = 100  # files of a list that are checked at the start; -1: all, 0: none
    shapes: ShapesConfig = field(default_factory=ShapesConfig)  # the generated world of name=shapes

    @property
    def training_crop(self) -> str:
        """The crop that training takes: `crop`, or what "auto" means for this data set."""
        return ("resized" if self.name == "ffhq" else "random") if self.crop == "auto" else self.crop

    def __post_init__(self) -> None:
        for name, allowed in (("name", NAMES), ("crop", CROPS), ("resize", RESIZES)):
            value = getattr(self, name)
            if value not in allowed:
                nearest = get_close_matches(value, allowed, n=1)
                hint = f"did you mean '{nearest[0]}'?" if nearest else f"one of {', '.join(allowed)}"
                raise ValueError(f"data.{name} is '{value}'; {hint}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"data.holdout is {self.holdout}; it must be 0 or a share below 1")
        if self.limit < 0 or self.max_pixels < 1 or self.draft < 0:
            raise ValueError(f"data.limit {self.limit}, data.max_pixels {self.max_pixels} and data.draft {self.draft} must not be negative")


class Source(Protocol):
    """Image files by number."""

    keys: PackedStrings

    def read(self, index: int) -> bytes:
        """Return the bytes of file `index`; UnreadableImageError if it cannot be read."""


class Files:
    """Image files of a folder tree."""

    def __init__(self, files: Listing) -> None:
        self._root = os.path.abspath(files.root)
        self.keys = PackedStrings(files.keys)

    def read(self, index: int) -> bytes:
        """Return the bytes of file `index`; UnreadableImageError if it cannot be read."""
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


@dataclass(frozen=True, slots=True)
class AugmentedIndex:
    """A request for a training picture: which, and the seed of its random crop."""

    index: int
    seed: int


@dataclass(frozen=True)
class ImageSample:
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


class ImageDataset(Dataset[ImageSample | Skipped], ABC):
    """Pictures of one size by index; subclasses make one picture. Workers receive it pickled, so it is small."""

    image_size: int
    protocol: str  # how evaluation makes a square of a picture, in words, for reports and manifests

    def __init__(self, keys: Sequence[str] | PackedStrings, *, image_size: int, protocol: str) -> None:
        self._keys = keys if isinstance(keys, PackedStrings) else PackedStrings(keys)
        self.image_size = image_size
        self.protocol = protocol

    @abstractmethod
    def pixels(self, item: int | AugmentedIndex) -> Tensor | Skipped:
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

    def __getitem__(self, item: int | AugmentedIndex) -> ImageSample | Skipped:
        pixels = self.pixels(item)
        if isinstance(pixels, Skipped):
            return pixels
        index = item.index if isinstance(item, AugmentedIndex) else item
        return ImageSample(to_float(pixels), self.key(index), index)

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

    def pixels(self, item: int | AugmentedIndex) -> Tensor | Skipped:
        """Return picture `item` as (3, H, W) uint8, or why there is none."""
        index = item.index if isinstance(item, AugmentedIndex) else item
        training = self._use_train and isinstance(item, AugmentedIndex)
        try:
            data = self._source.read(index if self._rows is None else int(self._rows[index]))
            picture = decode_image(data, shorter=self._shorter_train if training else self._shorter, max_pixels=self._max_pixels)
            width, height = picture.size
            if max(width, height) * self.image_size**2 > self._max_pixels * min(width, height):
                return Skipped(self.key(index), f"too thin: {width}x{height} pixels", index)
        except UnreadableImageError as error:
            return Skipped(self.key(index), str(error), index)
        if isinstance(item, AugmentedIndex) and training:
            with seeded(item.seed):
                return self._train(picture)
        return self._eval(picture)


class ShapesImages(ImageDataset):
    """Pictures of the generated world; training does not augment them."""

    def __init__(self, config: ShapesConfig, *, split: str, limit: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"data.split is '{split}'; the shapes world has {' and '.join(SPLITS)}")
        super().__init__(scene_keys(config, split, limit=limit), image_size=config.image_size, protocol="generated at this size")
        self.config = config
        self.split = split
        self.scene(0).pixels()  # raises ValueError early for shapes that cannot be told apart

    def scene(self, index: int) -> Scene:
        """Return the scene of picture `index`."""
        return draw_scene(self.config, self.split, index)

    def pixels(self, item: int | AugmentedIndex) -> Tensor:
        """Return picture `item` as (3, H, W) uint8."""
        return torch.from_numpy(self.scene(item.index if isinstance(item, AugmentedIndex) else item).pixels())


def build_dataset(config: DataConfig, *, image_size: int, train: bool) -> ImageDataset:
    """Find the pictures that a config names.

    Args:
        image_size: side of the squares in pixels.
        train: give an `AugmentedIndex` the training transform; without it every item is as in evaluation.

    Raises:
        FileNotFoundError: a folder, list, archive, or files named in a list are missing.
        ValueError: nothing to read, or something malformed; the message names the setting.
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
        train: give an `AugmentedIndex` the training transform, as in `build_dataset`.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it holds no images, or is of no known kind.
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
