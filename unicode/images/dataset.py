"""Data sets by name: one config -> square pictures of one size by index, each with its key."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unicode.images import decode, listing
from unicode.images.archives import Lmdb, TarShards
from unicode.images.listing import LAYOUTS, Files, PackedStrings, UnreadableImageError, is_held_out
from unicode.images.parquet import ParquetImages
from unicode.images.shapes import Scene, ShapesConfig, draw_scene, scene_keys
from unicode.images.torchvision_sets import TorchvisionSet, parse_source

NAMES = ("shapes", "folder", "list", "llava", "imagenet", "ffhq", "cc3m", "coco", "lsun", "webdataset", "torchvision", "parquet")
FILE_KINDS = {".txt": "list", ".json": "llava", ".tar": "webdataset", ".parquet": "parquet"}
Source = Files | TarShards | Lmdb | TorchvisionSet | ParquetImages


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
    pad: bool = False  # pictures that fit into the square stay at their size, in the middle of a black one; others are resized
    resize: str = "bicubic"  # kernel, always antialiased: bilinear, bicubic, lanczos
    draft: float = 2.0  # JPEGs may be decoded at 1/2, 1/4 or 1/8 size as long as so many times the size asked for remains; 0: never
    max_pixels: int = 89_478_485  # larger images are skipped before they are decoded
    check_files: int = 100  # files of a list that are checked at the start; -1: all, 0: none
    set: str = ""  # torchvision: name of the data set, as FashionMNIST, CIFAR10, Flowers102, Food101; its class of torchvision.datasets
    download: bool = False  # torchvision: download the set to root if it is not there; never done unless asked
    image_column: str = "image"  # parquet: column of the pictures, {bytes, path} as in Hugging Face data sets, or the bytes of files
    captions: str = ""  # LLaVA files, written as path, whose answers are captions; empty: the captions of the set, or .txt files
    caption_column: str = ""  # parquet: column of captions, lists of them, or labels
    shapes: ShapesConfig = field(default_factory=ShapesConfig)  # the generated world of name=shapes

    @property
    def training_crop(self) -> str:
        """The crop that training takes: `crop`, or what "auto" means for this data set."""
        return ("resized" if self.name == "ffhq" else "random") if self.crop == "auto" else self.crop

    def __post_init__(self) -> None:
        for name, allowed in (("name", NAMES), ("crop", decode.CROPS), ("resize", decode.RESIZES)):
            value = getattr(self, name)
            if value not in allowed:
                nearest = get_close_matches(value, allowed, n=1)
                hint = f"did you mean '{nearest[0]}'?" if nearest else f"one of {', '.join(allowed)}"
                raise ValueError(f"data.{name} is '{value}'; {hint}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"data.holdout is {self.holdout}; it must be 0 or a share below 1")
        if self.limit < 0 or self.max_pixels < 1 or self.draft < 0:
            raise ValueError(f"data.limit {self.limit}, data.max_pixels {self.max_pixels} and data.draft {self.draft} must not be negative")


def open_source(config: DataConfig) -> Source:
    """Find the files of the data set that a config names: `keys`, and `read(index)` for the bytes of a file or a picture in RGB.

    Raises FileNotFoundError: a folder, list, archive, or files named in a list are missing. Raises ValueError: nothing to read, a malformed
    list, or a setting is missing.
    """
    name, root, path = config.name, config.root, config.path
    if name == "torchvision":
        part = "train" if config.holdout and config.split == "val" else config.split
        return TorchvisionSet(config.set, part, root, download=config.download)
    if not root and name in ("folder", "imagenet", "ffhq", "cc3m", "coco"):
        raise ValueError(f"data.name={name} needs data.root, the folder of its images; {LAYOUTS}")
    if name in ("folder", "imagenet"):
        folder = config.split if name == "imagenet" else path.replace("{split}", config.split)
        return listing.list_folder(os.path.join(root, folder), root=root)
    path = path or {"ffhq": "ffhq_{split}.txt", "cc3m": "{split}_list.txt"}.get(name, "")
    needed = {"list": "the list", "llava": "the annotation file", "lsun": "the ..._lmdb folder"}
    needed |= {"webdataset": "the shards", "parquet": "the files"}
    if not path and name in needed:
        raise ValueError(f"data.name={name} needs data.path, {needed[name]}; {LAYOUTS}")
    if name == "webdataset":
        return TarShards(path.replace("{split}", config.split), root)
    if name == "parquet":
        return ParquetImages(path.replace("{split}", config.split), root, column=config.image_column)
    if name == "lsun":
        return Lmdb(resolve_path(config, path))
    if name == "coco":
        files = listing.list_coco(root, config.split, resolve_path(config, path) if path else "")
    else:
        files = _listed(replace(config, path=path))
    listing.check_files(files, config.check_files, config.path or name)
    return files


def _listed(config: DataConfig) -> Files:
    """List the images of the files in `path`, which stand between commas, each with the folder under the root behind an @."""
    parts = [part.strip() for part in config.path.split(",") if part.strip()]
    if len(parts) > 1 and not config.root:
        raise ValueError(f"several files in data.path ({config.path}) need data.root, the folder that their images have in common")
    found = []
    for part in parts:
        name, folder = part.rpartition("@")[::2] if "@" in part else (part, "")
        path, folder = resolve_path(config, name), folder.strip("/")
        if config.name == "llava":
            found.append(listing.list_llava(path, config.root, folder=folder))
        else:
            found.append(listing.list_lines(path, config.root, folder=folder, separator="\t" if config.name == "cc3m" else None))
    return Files(found[0].root, dict.fromkeys(key for files in found for key in files.keys))


def resolve_path(config: DataConfig, path: str) -> str:
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


@dataclass(frozen=True)
class Skipped:
    """One picture that could not be used."""

    key: str
    reason: str  # "kind" or "kind: detail"
    index: int


class ImageDataset(ABC):
    """Pictures of one size by index; subclasses make them. Workers get it pickled, so it is small.

    Where pictures are read in blocks, `blocks` (N,) has the block of each, and `window` is how many blocks to shuffle together.
    """

    blocks: np.ndarray | None = None
    window: int = 1

    def __init__(self, keys: Sequence[str], *, image_size: int, protocol: str) -> None:
        self._keys = keys if isinstance(keys, PackedStrings) else PackedStrings(keys)
        self.image_size = image_size
        self.protocol = protocol  # how evaluation makes a square of a picture, in words, for reports and manifests

    @abstractmethod
    def pixels(self, item: int | AugmentedIndex) -> Tensor | Skipped:
        """Return picture `item` as (3, H, W) uint8, or why there is none."""

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> ImageSample | Skipped:
        """Return picture `index` with its key, or why there is none: for notebooks; the loader takes `pixels`."""
        pixels = self.pixels(index)
        return pixels if isinstance(pixels, Skipped) else ImageSample(decode.to_float(pixels), self.key(index))

    def key(self, index: int) -> str:
        """Return the key of picture `index`: its path relative to the image root, with forward slashes."""
        return self._keys[index]

    @property
    def keys(self) -> list[str]:
        return list(self._keys)


class FileImages(ImageDataset):
    """Pictures decoded from image files, in folders or archives."""

    def __init__(self, source: Source, config: DataConfig, *, image_size: int, train: bool) -> None:
        self._rows = _choose(source.keys, config)
        kept = source.keys if self._rows is None else [source.keys[int(row)] for row in self._rows]
        draft = f", JPEG draft {config.draft:g}" if config.draft else ""
        small = ", smaller pictures padded with black" if config.pad else ""
        protocol = f"shorter side {image_size} {config.resize} antialiased, center crop{small}{draft}"
        super().__init__(kept, image_size=image_size, protocol=protocol)
        if isinstance(source, ParquetImages):
            self.blocks, self.window = source.blocks if self._rows is None else source.blocks[self._rows], source.window
        self.source = source
        self._max_pixels = config.max_pixels
        self._eval = self._train = decode.eval_transform(image_size, resize=config.resize, pad=config.pad)
        self._shorter = self._shorter_train = math.ceil(config.draft * image_size)
        if train:
            crop = config.training_crop
            self._train = decode.train_transform(image_size, crop=crop, flip=config.flip, resize=config.resize, pad=config.pad)
            self._shorter_train = math.ceil(self._shorter / (math.sqrt(decode.SMALLEST_AREA) if crop == "resized" else 1))

    def pixels(self, item: int | AugmentedIndex) -> Tensor | Skipped:
        if isinstance(item, AugmentedIndex):
            index, shorter, transform = item.index, self._shorter_train, decode.seeded(self._train, item.seed)
        else:
            index, shorter, transform = item, self._shorter, self._eval
        try:
            found = self.source.read(index if self._rows is None else int(self._rows[index]))
            picture = decode.decode_image(found, shorter=shorter, max_pixels=self._max_pixels) if isinstance(found, bytes) else found
            return decode.make_square(picture, transform, side=self.image_size, max_pixels=self._max_pixels)
        except UnreadableImageError as error:
            return Skipped(self.key(index), str(error), index)


class ShapesImages(ImageDataset):
    """Pictures of the generated world; training does not augment them."""

    def __init__(self, config: ShapesConfig, *, split: str, limit: int = 0) -> None:
        super().__init__(scene_keys(config, split, limit=limit), image_size=config.image_size, protocol="generated at this size")
        self.config, self.split = config, split
        self.scene(0).pixels()  # raises ValueError early for shapes that cannot be told apart

    def scene(self, index: int) -> Scene:
        return draw_scene(self.config, self.split, index)

    def pixels(self, item: int | AugmentedIndex) -> Tensor:
        return torch.from_numpy(self.scene(item.index if isinstance(item, AugmentedIndex) else item).pixels())


def build_dataset(config: DataConfig, *, image_size: int, train: bool) -> ImageDataset:
    """Find the pictures that a config names.

    `image_size`: side of the squares in pixels. `train`: give an `AugmentedIndex` the training transform; without it every item is as in
    evaluation. Raises FileNotFoundError: a folder, list, archive, or files named in a list are missing. Raises ValueError: nothing to read,
    or something malformed; the message names the setting.
    """
    if config.name == "shapes":
        return ShapesImages(replace(config.shapes, image_size=image_size), split=config.split, limit=config.limit)
    return FileImages(open_source(config), config, image_size=image_size, train=train)


def open_images(
    path: str | Path, *, image_size: int, root: str = "", config: DataConfig | None = None, train: bool = False
) -> ImageDataset:
    """Find the pictures that `--images` of a command means.

    `path`: a folder (searched recursively), an LMDB folder, a .txt list, a LLaVA .json, tar shards, Parquet files,
    "shapes:SPLIT" or "torchvision:SET:SPLIT@ROOT". `root`: the folder that the paths in a list or annotation file start from, or that a
    set of torchvision is in; the file's own folder if empty. `config`: settings that are not about which pictures (resize, crop, draft,
    limit, the world of shapes). `train`: as in `build_dataset`. Raises FileNotFoundError: the path does not exist. Raises ValueError: it
    holds no images, or is of no known kind.
    """
    base, text = config or DataConfig(), str(path)
    named = name_source(text, base, root=root)
    if named is None:
        what = f"is none of {', '.join(FILE_KINDS)}" if os.path.exists(text) else "does not exist"
        kinds = "a folder, a list (.txt), a LLaVA file (.json), tar shards, Parquet files, shapes:val or torchvision:SET:SPLIT"
        raise FileNotFoundError(f"--images {text} {what}; give {kinds}")
    return build_dataset(named, image_size=image_size, train=train)


def name_source(text: str, config: DataConfig, *, root: str = "") -> DataConfig | None:
    """Return `config` for the pictures that a text of `open_images` names; None for one of no known kind."""
    if text.partition(":")[0] == "shapes":
        return replace(config, name="shapes", split=text.partition(":")[2] or "val")
    if (named := parse_source(text, root=root)) is not None:
        return replace(config, name="torchvision", set=named.set, split=named.part or "test", root=named.root)
    if os.path.isfile(os.path.join(text, "data.mdb")):
        return replace(config, name="lsun", root="", path=os.path.abspath(text))
    if os.path.isdir(text):
        return replace(config, name="folder", root=text, path="")
    kind = FILE_KINDS.get(Path(text).suffix)
    return replace(config, name=kind, root=root, path=os.path.abspath(text)) if kind else None


def _choose(keys: PackedStrings, config: DataConfig) -> np.ndarray | None:
    """Return the rows that `holdout` and `limit` leave, None for all."""
    rows = np.arange(len(keys))
    if config.holdout and (config.name != "torchvision" or config.split in ("train", "val")):  # a test part is not divided
        if config.split not in ("train", "val"):
            raise ValueError(f"data.split is '{config.split}'; with data.holdout it must be train or val")
        held = np.array([is_held_out(key, config.holdout) for key in keys])
        rows = rows[held if config.split == "val" else ~held]
        if not len(rows):
            raise ValueError(f"data.holdout={config.holdout} leaves none of {len(keys)} images for {config.split}; change it")
    if config.limit and config.limit < len(rows):
        rows = rows[np.arange(config.limit) * len(rows) // config.limit]
    return rows if len(rows) < len(keys) else None
