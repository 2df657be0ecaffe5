"""What goes in and out by name: annotation files, lists of images, and the names that published files have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unicode.annotations.conversation import RefusedError, image_key
from unicode.common.json_stream import read_json_list

LAION, MIX = "blip_laion_cc_sbu_558k", "llava_v1_5_mix665k"
PUBLISHED_NAMES = {LAION: "llava_laion558k", MIX: "llava_mix665k"}
"""Stem of an annotation file of LLaVA -> the name that what is made from it carries in published files."""
Item = tuple[str, int, Any]
"""Where something comes from (a file or store), its place there, and the thing itself: a record or the key of an image."""


@dataclass(frozen=True)
class Source:
    """An annotation file or list of images."""

    path: Path
    folder: str = ""
    """Folder below the image root that the image paths in it start from; "" for the root itself."""

    def key(self, path: str) -> str:
        """Path of an image as the file has it (normalized) -> key of the image."""
        return f"{self.folder}/{path}" if self.folder else path


def find_source(root: str | Path, name: str | Path) -> Source:
    """FILE or FILE@FOLDER, the file relative to `root` or to the working folder, the folder relative to the image root.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the folder leaves the image root.
    """
    whole, (file, _, folder) = str(name), str(name).rpartition("@")
    for text, inside in ((whole, ""), (file, folder)):
        for path in (Path(root) / text, Path(text)):
            if text and path.is_file():
                return Source(path, _checked_folder(inside))
    raise FileNotFoundError(f"no file {Path(root) / (file or whole)}; name one with --anno, or the folder that it is in with --root")


def find_sources(root: str | Path, names: Sequence[str | Path]) -> list[Source]:
    """Several files by `find_source`. ValueError when there is none or one of them is named twice."""
    sources = [find_source(root, name) for name in names]
    if not sources or len({source.path.resolve() for source in sources}) < len(sources):
        raise ValueError(f"{len(sources)} files given ({', '.join(map(str, names))}); name at least one with --anno, each once")
    return sources


def read_sources(sources: Sequence[Source]) -> Iterator[Item]:
    """The records of several annotation files one after the other."""
    for source in sources:
        for index, record in enumerate(read_json_list(source.path)):
            yield str(source.path), index, record


def output_name(source: Source | None, kind: str) -> str:
    """Default name of what is made from an annotation file: llava_laion558k_t2v.json for LLaVA's 558K and kind "t2v".

    images_t2v.json where no annotation file is behind it.
    """
    stem = source.path.stem if source else "images"
    return f"{PUBLISHED_NAMES.get(stem, stem)}_{kind}.json"


def output_path(out: str | Path, name: str, inputs: Sequence[Source]) -> Path:
    """`out` itself when it is a .json file, else the file `name` in the folder `out`. ValueError when that is an input."""
    path = Path(out) if Path(out).suffix == ".json" else Path(out) / name
    for source in inputs:
        if path.exists() and path.samefile(source.path):
            raise ValueError(f"the output {path} would replace an input; choose another --out")
    return path


def _checked_folder(folder: str) -> str:
    try:
        return image_key(folder) if folder.strip("/.") else ""
    except RefusedError as refused:
        raise ValueError(f"'@{folder}' names no folder below the image root: {refused}") from None
