"""Small files in the form of Fashion-MNIST's, for tests."""

import gzip
import struct
from pathlib import Path

import numpy as np

PICTURES = np.random.default_rng(0).integers(1, 256, (5, 28, 28), np.uint8)
LABELS = np.array([9, 0, 3, 3, 7], np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write bytes as MNIST's authors do, packed where the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, suffix: str = ".gz") -> Path:
    """Write five training pictures and two test pictures with labels."""
    for stem, count in (("train", 5), ("t10k", 2)):
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", PICTURES[:count])
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", LABELS[:count])
    return folder
