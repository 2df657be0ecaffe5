"""torchvision's data sets by name -> labelled pictures by index; Debian's folder of Fashion-MNIST is read as it is."""

import gzip
import inspect
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unicode.common.distributed import on_main
from unicode.images.listing import PackedStrings, UnreadableImageError

PREFIX = "torchvision"
FASHION = "FashionMNIST"
DEBIAN = "; Debian has it: apt-get install dataset-fashion-mnist, and it is in /usr/share/datasets/fashion-mnist"
PARTS = ("train", "val", "test")
LABELS = ("targets", "labels", "_labels", "y")  # attributes in which torchvision's classes keep the labels of all pictures


class NamedPart(NamedTuple):
    """A part of a set, written as torchvision:SET:PART@ROOT; part and root may be left out."""

    set: str
    part: str
    root: str


def parse_source(text: str, *, root: str = "") -> NamedPart | None:
    """Return what "torchvision:SET:PART@ROOT" names, with `root` where it names none; None for any other text."""
    name, _, folder = text.partition("@")
    prefix, *words = name.split(":")
    return NamedPart(words[0], "".join(words[1:2]), folder or root) if prefix == PREFIX and words else None


class TorchvisionSet:
    """The pictures and labels of one part of a data set. A key is "SET/PART/0000123.png".

    Attributes:
        part: the part that was opened: "test" where "val" was asked for and the set has none.
        keys: of the pictures, in torchvision's order.
        labels: (N,) int64 as the files have them.
        classes: names of the labels as torchvision gives them; the labels themselves where it gives none.
    """

    def __init__(self, name: str, part: str, root: str, *, download: bool = False) -> None:
        """Open the set in `root`.

        `part`: "train", "test", "val" or another part that the class knows. `download`: let torchvision get what is missing; the main rank
        does. Raises FileNotFoundError: the set is not there. Raises ValueError: no set of this name has images and labels, it has no such
        part, or its files are damaged.
        """
        kind = _find_class(name)
        if not root:
            raise ValueError(f"data.set={name} needs data.root, the folder that holds it or that data.download=true writes it to")
        self._arguments = (name, part, root)
        if download:
            on_main(lambda: bool(_open(kind, part, root, download=True)))
        found = _read_debian(kind, part, root) or _open(kind, part, root)
        self.part: str = found[0]
        self._data: Any = found[1]
        self.labels = _labels_of(name, self._data)
        names = getattr(self._data, "classes", None) or getattr(self._data, "categories", None) or map(str, np.unique(self.labels))
        self.classes = tuple(label if isinstance(label, str) else str(label[0]) for label in names)  # synonyms: the first
        self.keys = PackedStrings(f"{name}/{self.part}/{index:07d}.png" for index in range(len(self._data)))

    def __reduce__(self) -> tuple[type["TorchvisionSet"], tuple[str, str, str]]:
        """A set travels to a worker process as its name, not as its content."""
        return TorchvisionSet, self._arguments

    def read(self, index: int) -> Image.Image:
        """Return picture `index` in RGB; UnreadableImageError if its file is missing or damaged."""
        try:
            return self._data[index][0].convert("RGB")
        except FileNotFoundError as error:
            raise UnreadableImageError("missing file") from error
        except Exception as error:  # decoders raise errors of many kinds on damaged files
            raise UnreadableImageError(f"damaged image: {str(error)[:200] or type(error).__name__}") from error


class _Arrays:
    """Pictures (N, H, W) uint8 and labels (N,), indexed as a data set of torchvision."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
        self._pictures, self.targets, self.classes = pictures, labels, classes

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._pictures[index]), int(self.targets[index])


def _find_class(name: str) -> Any:
    from torchvision import datasets

    known = [one for one in datasets.__all__ if "download" in _parameters(getattr(datasets, one))]
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise ValueError(f"data.set is '{name}'; {f'did you mean {near[0]}?' if near else 'known: ' + ', '.join(sorted(known))}")
    return getattr(datasets, name)


def _parameters(kind: Any) -> set[str]:
    """Names of the parameters of a class and its bases."""
    makers = [base.__init__ for base in getattr(kind, "__mro__", ()) if base is not object and "__init__" in vars(base)]
    return {name for maker in makers for name in inspect.signature(maker).parameters}


def _choices(kind: Any, part: str) -> list[tuple[str, dict[str, Any]]]:
    """(part, arguments) to try in turn for a part of a set."""
    parts = [part, "test"] if part == "val" else [part]
    if "train" in _parameters(kind):  # sets of two parts
        chosen = "test" if part == "val" else part
        return [(chosen, {"train": chosen == "train"})] if chosen in ("train", "test") else []
    if "split" in _parameters(kind):
        return [(one, {"split": one}) for one in parts]
    return [("train", {})] if part == "train" else []


def _open(kind: Any, part: str, root: str, *, download: bool = False) -> tuple[str, Any]:
    problem: Exception = ValueError("its parts are train and test" if "train" in _parameters(kind) else "it has one part, train")
    for chosen, arguments in _choices(kind, part):
        try:
            return chosen, kind(root=root, download=download, **arguments)
        except (ValueError, TypeError) as error:
            problem = error
        except ImportError as error:
            remedy = f"python -m pip install {error.name}"
            raise ValueError(f"torchvision reads {kind.__name__} with the package {error.name}; this installs it: {remedy}") from error
        except (RuntimeError, OSError) as error:
            if download:
                raise OSError(f"{kind.__name__} could not be downloaded to {root}: {error}") from error
            code = f'python -c "from torchvision.datasets import {kind.__name__} as Set; Set({root!r}, download=True)"'
            remedy = f"a training gets it with data.download=true, or now: {code}{DEBIAN if kind.__name__ == FASHION else ''}"
            raise FileNotFoundError(f"{kind.__name__} is not in {root} ({str(error).split('.')[0]}); {remedy}") from error
    raise ValueError(f"{kind.__name__} cannot be opened with data.split={part}: {problem}") from problem


def _read_debian(kind: Any, part: str, root: str) -> tuple[str, _Arrays] | None:
    """Open a folder of idx files, packed by gzip, as MNIST's and Fashion-MNIST's authors publish them; None for any other folder."""
    chosen = {"train": "train", "val": "test", "test": "test"}.get(part, "")
    stem = "train" if chosen == "train" else "t10k"
    files = [Path(root) / f"{stem}-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1")]
    if not chosen or not hasattr(kind, "resources") or not all(file.is_file() for file in files):
        return None
    pictures, labels = (_read_idx(file, axes) for file, axes in zip(files, (3, 1), strict=True))
    if len(pictures) != len(labels):
        raise ValueError(f"{files[0]} holds {len(pictures)} pictures, {files[1].name} {len(labels)} labels; copy both again")
    return chosen, _Arrays(pictures, labels, kind.classes)


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Read bytes of `axes` axes: two zeros, type 8, number of axes, big-endian sizes, values."""
    try:
        with gzip.open(path) as file:
            data = file.read()
        if data[:4] != bytes((0, 0, 8, axes)):
            raise ValueError(f"it begins with {data[:4].hex(' ')}")
        shape = np.frombuffer(data, ">u4", axes, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no idx file of {axes} axes ({error}); copy it again") from error


def _labels_of(name: str, data: Any) -> np.ndarray:
    found = next((values for field in LABELS if (values := getattr(data, field, None)) is not None and len(values) == len(data)), None)
    if found is None:
        samples = getattr(data, "_samples", None) or getattr(data, "samples", None)
        found = [label for _, label in (samples or data)]
    labels = np.asarray(found)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"data.set={name} has no class labels: its targets are {labels.dtype} {labels.shape}")
    return labels.astype(np.int64)
