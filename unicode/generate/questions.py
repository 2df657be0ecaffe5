"""Question files -> questions, and their images -> what the model reads for them: ids, or pixels.

Keys that a store knows cost a look-up. All other images are decoded by threads ahead of their use and read by the model in batches.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unicode.common.files import read_damaged_jsonl, read_json
from unicode.common.logging import get_logger
from unicode.generate.jobs import Key, key_of
from unicode.ids.store import Store
from unicode.images.listing import UnreadableImageError, read_bytes
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
    """A question for the model."""

    text: str  # Its words, with an <image> tag for each image or without any: then the images go in front, as LLaVA has them
    images: tuple[ImageLike, ...] = ()  # In the order of the tags
    id: Any = 0  # Decides, with the seed, how its answer is sampled
    history: tuple[str, ...] = ()  # Earlier questions and answers by turns; <image> tags in them take the first images
    fields: Mapping[str, Any] = field(default_factory=dict)  # All other keys of its line in a question file, such as category

    @property
    def key(self) -> Key:
        """Key of its answer, see `key_of`."""
        return key_of({"question_id": self.id, "round_id": self.fields.get("round_id"), "prompt": self.text})


def read_questions(path: str | Path) -> list[AskedQuestion]:
    """Read a question file: JSON lines {"question_id", "text", "image"?}, or LLaVA's JSON list, of which the first turns are asked.

    Lines that are damaged or no questions are left out with a warning that names them. Raises FileNotFoundError: there is no such file.
    Raises ValueError: no question in it, or two with the same id and text.
    """
    text = Path(path).read_text(encoding="utf-8-sig")
    is_list = Path(path).suffix == ".json" and text.lstrip().startswith("[")
    questions = []
    for number, record in enumerate(read_json(path), 1) if is_list else read_damaged_jsonl(path):
        question = _parse_question(record)
        if question is not None:
            questions.append(question)
        else:
            log.warning("%s, record %d is damaged or no question (question_id and text are needed); it is left out", path, number)
    if not questions:
        raise ValueError(f'{path} holds no question; expected lines as {{"question_id": 1, "image": "a.jpg", "text": "What is this?"}}')
    key, count = Counter(question.key for question in questions).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path} asks question '{key[0]}' ({key[2]!r:.80}) twice; answers are found by id and text")
    return questions


def _parse_question(record: Any) -> AskedQuestion | None:
    if not isinstance(record, dict):
        return None
    fields = {key: value for key, value in record.items() if key not in ("question_id", "id", "text", "conversations", "image")}
    name, text, turns = record.get("question_id", record.get("id")), record.get("text"), record.get("conversations")
    if text is None and isinstance(turns, list) and turns and isinstance(turns[0], dict):
        text = turns[0].get("value")
    images = record.get("image") or []
    images = [images] if isinstance(images, str) else images
    if name is None or not isinstance(text, str) or not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        return None
    return AskedQuestion(text.strip(), tuple(images), name, fields=fields)


def open_lookup(names: Sequence[str], model: LanguageModel) -> ImageLookup:
    """Open places of pictures, the working folder where none is named; the world's pictures have the size that the model reads."""
    return ImageLookup(names or ["."], side=model.image_size if any(map(is_world, names)) else 0)


class ImageError(ValueError):
    """An image that cannot be read; the message names it and the reason."""


class ImageReader(AbstractContextManager["ImageReader"]):
    """Looks images up, decodes them ahead and has the model read them in batches. A context manager: it owns threads.

    Keys are looked up in `stores` of ids, in this order, then in `pictures`; None: below the working folder. `blank`: "", or a key of
    BLANKS: what stands in place of every image. `batch_size`: pictures that the model reads at a time. Raises ValueError: a store of
    another tokenizer or order, or an unknown `blank`.
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
        self._known: OrderedDict[Any, Content] = OrderedDict()  # ids of the images used last

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def prefetch(self, images: Iterable[ImageLike]) -> None:
        """Begin to decode those images that `read` will be asked for soon."""
        for image in images:
            key = _name(image)
            if not self.blank and key not in self._known and key not in self._decoding and self._find(image) is None:
                self._decoding[key] = self._threads.submit(self._decode, image)

    def read(self, images: Iterable[ImageLike]) -> dict[Any, Content | ImageError]:
        """Return what the model reads for each image, for `contents`; an ImageError for those that cannot be used."""
        asked = {_name(image): image for image in images}
        if self.blank:
            return dict.fromkeys(asked, self._blank) if asked else {}
        self.prefetch(asked.values())
        waiting = [key for key in asked if key in self._decoding]
        found: dict[Any, Content | ImageError] = {}
        for key in asked:
            if key in self._known:
                self._known.move_to_end(key)
                found[key] = self._known[key]
            elif (ids := self._find(asked[key])) is not None:
                try:
                    self.model.check_ids(ids)
                    found[key] = ids
                except ValueError as error:
                    found[key] = ImageError(f"image '{key}': {error}" if isinstance(key, str) else str(error))
        for start in range(0, len(waiting), self._batch_size):
            pixels: dict[Any, Tensor] = {}
            for key in waiting[start : start + self._batch_size]:
                try:
                    pixels[key] = self._decoding.pop(key).result()
                except UnreadableImageError as error:
                    looked = ", ".join([*(f"the store {store.path}" for store in self.stores), *self.pictures.names]) or "nowhere"
                    found[key] = ImageError(f"image '{key}': {error}; looked in {looked}" if isinstance(key, str) else f"image: {error}")
            contents = self.model.read_pictures(torch.stack(list(pixels.values()))) if pixels else []
            found |= zip(pixels, contents, strict=True)
            kept = {key: one for key, one in zip(pixels, contents, strict=True) if isinstance(key, str) and isinstance(one, np.ndarray)}
            self._known |= kept  # ids are small, pixels are not
        while len(self._known) > CACHED:
            self._known.popitem(last=False)
        return found

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the keys that neither a store nor a file has; files are not opened."""
        return [] if self.blank else [name for name in dict.fromkeys(names) if self._find(name) is None and name not in self.pictures]

    def contents(self, images: Sequence[ImageLike], found: dict[Any, Content | ImageError]) -> list[Content]:
        """Return what is read for the images of one question, in order, nothing for blank "none"; raises the first ImageError."""
        contents = [] if self.blank == "none" else [found[_name(image)] for image in images]
        for content in contents:
            if isinstance(content, ImageError):
                raise content
        return contents  # type: ignore[return-value]

    def _find(self, image: ImageLike) -> np.ndarray | None:
        if isinstance(image, Tensor | np.ndarray):
            return np.asarray(image.cpu() if isinstance(image, Tensor) else image)
        stores = self.stores if isinstance(image, str) else ()
        return next((ids for store in stores if (ids := store.get(str(image))) is not None), None)

    def _decode(self, image: ImageLike) -> Tensor:
        if isinstance(image, str | Path):
            image = read_bytes(image) if isinstance(image, Path) else self.pictures.read(image)
        return self.model.picture(image)  # type: ignore[arg-type]

    @cached_property
    def _blank(self) -> Content:
        value = BLANKS[self.blank]
        if value is None:
            return np.empty(0, dtype=np.int64)
        return self.model.read_pictures(self.model.picture(Image.new("RGB", (64, 64), (value, value, value)))[None])[0]


def _name(image: ImageLike) -> Any:
    """Return what tells one image from another: its path, or the object itself."""
    return str(image) if isinstance(image, str | Path) else id(image)
