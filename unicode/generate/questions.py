"""Question files -> questions, and their images -> what the model reads for them: ids, or pixels.

Keys that a store knows cost a look-up. All other images are decoded by threads ahead of their use and read by the model in batches.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unicode.common.logging import get_logger
from unicode.generate.jobs import Key, check_unique, key_of
from unicode.ids.store import Store
from unicode.images.decode import UnreadableImageError, read_bytes
from unicode.images.lookup import ImageLookup, is_world
from unicode.llm.load import Content, LanguageModel

BLANKS = {"grey": 128, "black": 0, "none": None}
"""What stands for every image of a blind baseline: a picture of that value, or no image and no tag at all."""
CACHED = 4096  # images whose ids are kept for later questions
THREADS = 8

ImageLike = np.ndarray | Tensor | Image.Image | bytes | str | Path
"""Vocabulary ids in id order (n,), a picture, the content of an image file, its path (Path), or its key (str)."""
log = get_logger(__name__)


@dataclass(frozen=True)
class AskedQuestion:
    """A question for the model.

    Attributes:
        text: its words, with an <image> tag for each image or without any: then the images go in front, as LLaVA has them.
        images: in the order of the tags.
        id: decides, with the seed, how its answer is sampled.
        history: earlier turns of the conversation: question, answer, question, answer; <image> tags in them take the first images.
        fields: all other keys of its line in a question file, such as category.
    """

    text: str
    images: tuple[ImageLike, ...] = ()
    id: Any = 0
    history: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Key of its answer, see `key_of`."""
        return key_of({"question_id": self.id, "round_id": self.fields.get("round_id"), "prompt": self.text})


def read_questions(path: str | Path) -> list[AskedQuestion]:
    """Read a question file: JSON lines {"question_id", "text", "image"?}, or LLaVA's JSON list, of which the first turns are asked.

    Lines that are damaged or no questions are left out with a warning that names them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no question in it, or two with the same id and text.
    """
    questions = [question for line in _question_lines(Path(path)) if (question := _parse_question(*line, path)) is not None]
    if not questions:
        raise ValueError(f'{path} holds no question; expected lines as {{"question_id": 1, "image": "a.jpg", "text": "What is this?"}}')
    check_unique((question.key for question in questions), path)
    return questions


def _question_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each line, or of each element of a list; None for what is no JSON."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json" and text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _parse_question(number: int, record: Any, path: str | Path) -> AskedQuestion | None:
    """One line; None with a warning where it is no question."""
    record = dict(record) if isinstance(record, dict) else {}
    name, text = record.pop("question_id", record.pop("id", None)), record.pop("text", None)
    turns = record.pop("conversations", None)
    if text is None and isinstance(turns, list) and turns and isinstance(turns[0], dict):
        text = turns[0].get("value")
    images = record.pop("image", None) or []
    images = [images] if isinstance(images, str) else images
    if name is None or not isinstance(text, str) or not isinstance(images, Sequence) or not all(isinstance(i, str) for i in images):
        log.warning("%s, record %d is damaged or no question (question_id and text are needed); it is left out", path, number)
        return None
    return AskedQuestion(text.strip(), tuple(images), name, fields=record)


def open_lookup(names: Sequence[str], model: LanguageModel) -> ImageLookup:
    """Open places of pictures, the working folder where none is named; the world's pictures have the size that the model reads."""
    return ImageLookup(names or ["."], side=model.image_size if any(map(is_world, names)) else 0)


class ImageError(Exception):
    """An image that no question can be asked about; the message says which and why."""


class ImageReader:
    """Looks images up, decodes them ahead and has the model read them in batches. A context manager: it owns threads.

    Args:
        stores: stores of ids that keys are looked up in, in this order.
        pictures: where keys are looked up after the stores; None: below the working folder.
        blank: empty, or a key of BLANKS: what stands in place of every image.
        batch_size: pictures that the model reads at a time.

    Raises:
        ValueError: a store of another tokenizer or order, or an unknown `blank`.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        stores: Sequence[Store] = (),
        pictures: ImageLookup | None = None,
        blank: str = "",
        batch_size: int = 32,
    ) -> None:
        if blank and blank not in BLANKS:
            raise ValueError(f"blank images '{blank}' are unknown; known: {', '.join(BLANKS)}")
        for store in stores:
            model.check_store(store)
        self.model, self.stores, self.blank = model, tuple(stores), blank
        self.pictures = ImageLookup(["."]) if pictures is None else pictures
        self._batch_size = batch_size
        self._threads = ThreadPoolExecutor(THREADS)
        self._decoding: dict[Any, Future[Tensor]] = {}
        self._known: OrderedDict[Any, Content] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._threads.shutdown(cancel_futures=True)

    def prefetch(self, images: Iterable[ImageLike]) -> None:
        """Begin to decode those images that `read` will be asked for soon."""
        if self.blank:
            return
        for image in images:
            key = _name(image)
            if key not in self._known and key not in self._decoding and not _is_ids(image) and self._find(image) is None:
                self._decoding[key] = self._threads.submit(self._decode, image)

    def read(self, images: Iterable[ImageLike]) -> dict[Any, Content | ImageError]:
        """What the model reads for each image, by `name(image)`; an ImageError for those that cannot be used."""
        found: dict[Any, Content | ImageError] = {}
        waiting: dict[Any, Future[Tensor]] = {}
        for image in images:
            key = _name(image)
            if key in found or key in waiting:
                continue
            if self.blank:
                found[key] = self._blank()
            elif key in self._known:
                self._known.move_to_end(key)
                found[key] = self._known[key]
            elif (ids := self._find(image)) is not None:
                found[key] = self._checked(image, ids)
            else:
                waiting[key] = self._decoding.pop(key) if key in self._decoding else self._threads.submit(self._decode, image)
        found.update(self._read_decoded(waiting))
        return found

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the keys that neither a store nor a file has; files are not opened."""
        return [] if self.blank else [name for name in dict.fromkeys(names) if self._find(name) is None and name not in self.pictures]

    def contents(self, images: Sequence[ImageLike], found: dict[Any, Content | ImageError]) -> list[Content]:
        """What is read for the images of one question, in order; raises the first ImageError among them. Nothing for blank "none"."""
        if self.blank == "none":
            return []
        contents = []
        for image in images:
            content = found[_name(image)]
            if isinstance(content, ImageError):
                raise content
            contents.append(content)
        return contents

    def _find(self, image: ImageLike) -> np.ndarray | None:
        """Ids that need no model."""
        if isinstance(image, Tensor):
            return image.cpu().numpy()
        if isinstance(image, np.ndarray):
            return image
        if isinstance(image, str):
            return next((ids for store in self.stores if (ids := store.get(image)) is not None), None)
        return None

    def _checked(self, image: ImageLike, ids: np.ndarray) -> Content | ImageError:
        try:
            self.model.check_ids(ids)
        except ValueError as error:
            return ImageError(f"image '{image}': {error}" if isinstance(image, str) else str(error))
        return ids

    def _decode(self, image: ImageLike) -> Tensor:
        """Runs in a thread."""
        if isinstance(image, Image.Image | bytes):
            return self.model.picture(image)
        return self.model.picture(read_bytes(image) if isinstance(image, Path) else self.pictures.read(str(image)))

    def _read_decoded(self, waiting: dict[Any, Future[Tensor]]) -> dict[Any, Content | ImageError]:
        found: dict[Any, Content | ImageError] = {}
        keys = list(waiting)
        for start in range(0, len(keys), self._batch_size):
            pixels: dict[Any, Tensor] = {}
            for key in keys[start : start + self._batch_size]:
                try:
                    pixels[key] = waiting[key].result()
                except UnreadableImageError as error:
                    found[key] = ImageError(self._explain(key, error))
            if pixels:
                for key, content in zip(pixels, self.model.read_pictures(torch.stack(list(pixels.values()))), strict=True):
                    found[key] = content
                    self._remember(key, content)
        return found

    def _remember(self, key: Any, content: Content) -> None:
        if isinstance(content, np.ndarray) and isinstance(key, str):  # ids are small, pixels are not
            self._known[key] = content
            if len(self._known) > CACHED:
                self._known.popitem(last=False)

    def _explain(self, key: Any, error: UnreadableImageError) -> str:
        looked = [*(f"the store {store.path}" for store in self.stores), *self.pictures.names]
        return f"image '{key}': {error}; looked in {', '.join(looked) or 'nowhere'}" if isinstance(key, str) else f"image: {error}"

    def _blank(self) -> Content:
        """What the model reads for a picture of one value, or nothing where there is to be no image."""
        value = BLANKS[self.blank]
        if value is None:
            return np.empty(0, dtype=np.int64)
        if self.blank not in self._known:
            grey = Image.new("RGB", (64, 64), (value, value, value))
            self._known[self.blank] = self.model.read_pictures(self.model.picture(grey)[None])[0]
        return self._known[self.blank]


def _is_ids(image: ImageLike) -> bool:
    return isinstance(image, np.ndarray | Tensor)


def _name(image: ImageLike) -> Any:
    """What tells one image from another: its path, or the object itself."""
    return str(image) if isinstance(image, str | Path) else id(image)
