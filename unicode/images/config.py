"""The config of a data set of images: which ones, and how they become squares."""

from dataclasses import dataclass, field
from difflib import get_close_matches

from unicode.images.scene import ShapesConfig
from unicode.images.transforms import CROPS, RESIZES

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
    limit: int = 0  # only so many images, evenly spread over the data set; 0: all
    crop: str = "auto"  # in training: random, resized (75-100 % of the area), center; auto: resized for ffhq, random otherwise
    flip: bool = False  # in training: mirror half of the pictures
    resize: str = "bicubic"  # kernel, always antialiased: bilinear, bicubic, lanczos
    draft: float = 2.0  # JPEGs may be decoded at 1/2, 1/4 or 1/8 size as long as so many times the size asked for remains; 0: never
    max_pixels: int = 89_478_485  # larger images are skipped before they are decoded
    check_files: int = 100  # how many files of a list are looked for at the start; -1: all, 0: none
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
