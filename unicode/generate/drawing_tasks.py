"""Prompt files -> images on disk: drawing, completion and decompression."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unicode.annotations.records import IMAGE_TAG, TASKS, RefusedError, read_record
from unicode.annotations.templates import DECOMPRESSION, TEMPLATES, TEXT_TO_IMAGE, UNCONDITIONAL, draw, fill_template
from unicode.common.distributed import is_main
from unicode.common.json_lists import read_json_list
from unicode.common.logging import get_logger
from unicode.generate.images import CAPTION_TEMPLATE, FREE_QUESTION, NOTHING, Artist, Drawing, DrawRequest, caption_request, draw_batch
from unicode.generate.jobs import DrawingFile, Place, Record
from unicode.ids.store import check_key
from unicode.ids.text import OPEN, write_run
from unicode.images.dataset import ImageDataset, ShapesImages, Skipped
from unicode.images.decode import to_float
from unicode.images.shapes import SPLITS, ShapesConfig, find_scene, scene_keys
from unicode.images.shapes_text import scene_caption
from unicode.llm.load import LanguageModel

SUFFIXES = (".txt", ".jsonl", ".json")
TEXT_KEYS = ("prompt", "caption", "text")


@dataclass(frozen=True)
class DrawPrompt:
    """One line of a prompt file."""

    id: str
    text: str
    """The words as they stand in the file."""
    where: str
    """Names the line in messages."""
    whole: bool = False
    """Whether the words are all that the user says; otherwise they go into a template."""
    seed: int | None = None
    reference: str = ""
    """Key of the scene or image that the words describe."""
    error: str = ""
    """What is wrong with the line."""

    def request(self, *, seed: int, sample: int = 0, template: str = CAPTION_TEMPLATE) -> DrawRequest:
        """What to ask the model.

        Args:
            seed: of the run; the picture's own is drawn from it, the id and the number of the sample, so that no other line matters.
            template: for words that are a description.

        Raises:
            ValueError: the line is no prompt; the message names it.
        """
        if self.error:
            raise ValueError(f"{self.where}: {self.error}")
        own = draw(2**31, seed if self.seed is None else self.seed, "picture", "" if self.seed is not None else self.id, str(sample))
        try:
            return DrawRequest(self.text, seed=own) if self.whole else caption_request(self.text, seed=own, template=template)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error


def read_prompts(source: str, *, world: ShapesConfig | None = None, limit: int = 0) -> list[DrawPrompt]:
    """Read all prompts of a source.

    Args:
        source: see above.
        world: settings of the shapes world.
        limit: the first so many only; 0: all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown kind of source, a file that is no JSON list, or nothing in it.
    """
    kind, _, rest = source.partition(":")
    if kind == "shapes" and not Path(source).exists():
        return _world_prompts(rest or "val", world or ShapesConfig(), limit)
    if kind == "unconditional" and rest.isdecimal():
        number = min(int(rest), limit or int(rest))
        return [DrawPrompt(f"{index:06d}", FREE_QUESTION, f"{source}, number {index}", whole=True) for index in range(number)]
    path = Path(source)
    if path.suffix not in SUFFIXES:
        known = f"{', '.join(SUFFIXES)} files, shapes:val, unconditional:1000"
        raise ValueError(f"prompts '{source}' are of no known format; known: {known}")
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompts {path}")
    readers = {".txt": _text_lines, ".jsonl": _json_lines, ".json": _conversations}
    prompts = [prompt for prompt, _ in zip(_unique(readers[path.suffix](path)), range(limit or 2**62), strict=False)]
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def _world_prompts(split: str, world: ShapesConfig, limit: int) -> list[DrawPrompt]:
    if split not in SPLITS:
        raise ValueError(f"prompts 'shapes:{split}': the shapes world has the splits {' and '.join(SPLITS)}")
    keys = scene_keys(world, split, limit=limit)
    captions = (scene_caption(find_scene(world, key), Random(key)) for key in keys)
    return [DrawPrompt(key.removesuffix(".png"), text, f"scene {key}", reference=key) for key, text in zip(keys, captions, strict=True)]


def _text_lines(path: Path) -> Iterator[DrawPrompt]:
    lines = path.read_text(encoding="utf-8-sig", errors="replace").rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        yield DrawPrompt(f"{number:06d}", line.strip(), f"{path}, line {number}", error="" if line.strip() else "the prompt is empty")


def _json_lines(path: Path) -> Iterator[DrawPrompt]:
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where, name = f"{path}, line {number}", f"{number:06d}"
        try:
            record = json.loads(line)
        except ValueError as error:
            yield DrawPrompt(name, "", where, error=f"no JSON: {error}")
            continue
        text = next((record[key] for key in TEXT_KEYS if key in record), None) if isinstance(record, dict) else None
        if not isinstance(text, str) or not isinstance(record.get("seed", 0), int):
            yield DrawPrompt(name, "", where, error='expected {"prompt": "words"}, with "id" and "seed" (a whole number) if wanted')
            continue
        fault = "" if text.strip() else "the prompt is empty"
        yield DrawPrompt(str(record.get("id", name)), text.strip(), where, seed=record.get("seed"), error=fault)


def _conversations(path: Path) -> Iterator[DrawPrompt]:
    for number, record in enumerate(read_json_list(path)):
        name = str(record.get("id", f"{number:06d}")) if isinstance(record, dict) else f"{number:06d}"
        where = f"{path}, record {number} (id '{name}')"
        try:
            yield _conversation(record, name, where)
        except RefusedError as error:
            yield DrawPrompt(name, "", where, error=f"no conversation: {error}")


def _conversation(record: Any, name: str, where: str) -> DrawPrompt:
    """A record: the answer describes its image, or the question asks for one."""
    read = read_record(record, form="written")
    if read.task not in ("", TEXT_TO_IMAGE, UNCONDITIONAL):
        known = "an unknown task" if read.task not in TASKS else "not drawn from words alone"
        return DrawPrompt(name, "", where, error=f"task '{read.task}' is {known}; give records of {TEXT_TO_IMAGE} or {UNCONDITIONAL}")
    question, answer = read.turns[0].strip(), read.turns[1]
    reference = read.keys[0] if read.keys else ""
    if IMAGE_TAG in question and OPEN not in answer:
        words = " ".join(answer.split())
        return DrawPrompt(name, words, where, reference=reference, error="" if words else "the caption is empty")
    if IMAGE_TAG in question or OPEN in question:
        return DrawPrompt(name, "", where, error="the question holds an image; give --reference for conversations with pictures")
    return DrawPrompt(name, question, where, whole=True, reference=reference)


def _unique(prompts: Iterator[DrawPrompt]) -> Iterator[DrawPrompt]:
    """The prompts; one whose id cannot name a file, or was there before, becomes an error under a name of its own."""
    seen: dict[str, str] = {}
    for number, prompt in enumerate(prompts, 1):
        fault = f"id '{prompt.id}' is that of {seen[prompt.id]} too; pictures are named by id" if prompt.id in seen else ""
        try:
            check_key(prompt.id)
        except ValueError:
            fault = f"id '{prompt.id}' cannot name a picture; ids are relative paths without '..'"
        if fault:
            yield DrawPrompt(f"number {number} of the file", prompt.text, prompt.where, error=fault)
            continue
        seen[prompt.id] = prompt.where
        yield prompt


def summarize_errors(errors: Sequence[str], *, shown: int = 5) -> str:
    """The first errors and how many more there are, in one line."""
    more = f" and {len(errors) - shown} more" if len(errors) > shown else ""
    return f"{' | '.join(errors[:shown])}{more}"


log = get_logger(__name__)
Compare = Callable[[Tensor, Tensor], Tensor]  # two (B, 3, H, W) uint8 -> (B,), as the PSNR


class PromptTask:
    """Pictures of prompts.

    Attributes:
        ids: of the prompts, in order.
    """

    def __init__(self, prompts: Sequence[DrawPrompt], *, seed: int, template: str = CAPTION_TEMPLATE) -> None:
        self.ids = [prompt.id for prompt in prompts]
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._seed, self._template = seed, template

    def requests(self, places: Sequence[Place]) -> list[DrawRequest | str]:
        """What to ask the model for each of some pictures, or why it cannot be asked; that names the line of the file."""
        return [self._request(place) for place in places]

    def note(self, place: Place, drawing: Drawing, pixels: np.ndarray | None, save: Callable[[np.ndarray], str]) -> Record:
        """Keys of the line of a picture: prompt, seed, and the key of what the prompt describes."""
        prompt, request = self._prompts[place.id], self._request(place)
        own = {} if isinstance(request, str) else {"seed": request.seed}
        return {"prompt": prompt.text, **own, **({"reference": prompt.reference} if prompt.reference else {})}

    def explain(self, place: Place, error: str) -> str:
        """An error of drawing with the line that it belongs to."""
        where = self._prompts[place.id].where
        return error if error.startswith(where) else f"{where}: {error}"

    def _request(self, place: Place) -> DrawRequest | str:
        try:
            return self._prompts[place.id].request(seed=self._seed, sample=place.sample, template=self._template)
        except ValueError as error:
            return str(error)


class ImageTask:
    """Pictures begun from the first rows of given ones, or written out from their compressed form.

    Attributes:
        ids: keys of the given pictures, in order.

    Args:
        model: to encode the pictures with.
        dataset: the pictures.
        rows: how many rows of coarse cells to keep; None: decompress.
        caption: words about every picture, for completion; "": those of the shapes world, else none.
        seed: as of prompts.
        compare: what tells how near original and result are, for the key "psnr".

    Raises:
        ValueError: more rows than leave something to draw.
    """

    def __init__(
        self, model: LanguageModel, dataset: ImageDataset, *, rows: int | None, caption: str = "", seed: int, compare: Compare,
        template: str = CAPTION_TEMPLATE,
    ) -> None:  # fmt: skip
        assert model.layout is not None
        if rows is not None and not 0 <= rows < model.layout.coarse_rows:
            top = model.layout.coarse_rows - 1
            raise ValueError(f"{rows} rows are to be kept; of {model.layout.describe()} 0 to {top} can be, or nothing is left to draw")
        self.ids = [dataset.key(index) for index in range(len(dataset))]
        self._places = {key: index for index, key in enumerate(self.ids)}
        self._model, self._dataset, self._caption, self._seed, self._compare = model, dataset, caption, seed, compare
        self._template, self._given = template, None if rows is None else model.layout.prefix(rows)
        self._originals: dict[str, tuple[Tensor, np.ndarray]] = {}

    def requests(self, places: Sequence[Place]) -> list[DrawRequest | str]:
        """What to ask the model for each of some pictures, or why it cannot be asked; encodes them."""
        found = {place.id: self._dataset.pixels(self._places[place.id]) for place in places}
        pixels = {key: one for key, one in found.items() if not isinstance(one, Skipped)}
        self._originals = {}
        if pixels:
            ids = self._model.image_ids(to_float(torch.stack(list(pixels.values())))).cpu().numpy()
            self._originals = {key: (one, row) for (key, one), row in zip(pixels.items(), ids, strict=True)}
        made: list[DrawRequest | str] = []
        for place in places:
            one = found[place.id]
            made.append(f"{place.id}: {one.reason}" if isinstance(one, Skipped) else self._request(place, self._originals[place.id][1]))
        return made

    def note(self, place: Place, drawing: Drawing, pixels: np.ndarray | None, save: Callable[[np.ndarray], str]) -> Record:
        """Share of ids that are the original's among those drawn, PSNR, the original's file, and how many ids were given."""
        if pixels is None:
            return {"prompt": self._prompt(place)}
        original, ids = self._originals[place.id]
        given = self._given or 0
        near = self._compare(original[None], torch.from_numpy(pixels).permute(2, 0, 1)[None])
        exact = float((drawing.ids[given:] == ids[given:]).mean()) if given < len(ids) else 1.0
        own: Record = {"prompt": self._prompt(place), "seed": self._own_seed(place), "exact": exact, "psnr": float(near)}
        return own | {"reference": save(original.permute(1, 2, 0).numpy())} | ({"given": given} if self._given is not None else {})

    def explain(self, place: Place, error: str) -> str:
        """An error of drawing with the picture that it belongs to."""
        return error if error.startswith(place.id) else f"{place.id}: {error}"

    def _request(self, place: Place, ids: np.ndarray) -> DrawRequest:
        seed = self._own_seed(place)
        if self._given is None:
            question = fill_template(TEMPLATES[DECOMPRESSION][0], ids=write_run(ids))
            return DrawRequest(question, seed=seed, compressed=True)
        words = self._prompt(place)
        question = caption_request(words, template=self._template).question if words else FREE_QUESTION
        return DrawRequest(question, seed=seed, given=ids[: self._given])

    def _own_seed(self, place: Place) -> int:
        return draw(2**31, self._seed, "picture", place.id, str(place.sample))

    def _prompt(self, place: Place) -> str:
        """The words about a picture."""
        if self._given is None or self._caption or not isinstance(self._dataset, ShapesImages):
            return self._caption
        return scene_caption(self._dataset.scene(self._places[place.id]))


DrawingTask = PromptTask | ImageTask


def run_task(artist: Artist, task: DrawingTask, file: DrawingFile, *, batch_size: int) -> list[Record]:
    """Draw what is missing of a task; called by every rank. Returns the lines of all pictures, drawn now or before.

    Raises:
        OSError: the disk is full.
    """
    batches = list(file.batches(batch_size))
    with tqdm(total=sum(map(len, batches)), desc="drawing", unit=" pictures", disable=not is_main()) as bar:
        for batch in batches:
            places = [file.places[number] for number in batch]
            asked = dict(zip(batch, task.requests(places), strict=True))
            drawn = {number: Drawing(NOTHING, 0.0, request) for number, request in asked.items() if isinstance(request, str)}
            drawn |= dict(draw_batch(artist, {number: one for number, one in asked.items() if not isinstance(one, str)}))
            _keep(artist, task, file, {number: drawn[number] for number in batch})
            bar.update(len(batch))
    return file.finish()


def _keep(artist: Artist, task: DrawingTask, file: DrawingFile, drawn: Mapping[int, Drawing]) -> None:
    """Write the pictures and lines of one batch that are not there yet."""
    whole = [number for number, drawing in drawn.items() if not drawing.error]
    pixels = dict(zip(whole, artist.pictures(np.stack([drawn[number].ids for number in whole])), strict=True)) if whole else {}
    for number, drawing in drawn.items():
        if file.is_done(number):
            continue
        place, picture = file.places[number], pixels.get(number)

        def save(original: np.ndarray, number: int = number) -> str:
            return file.save_picture(number, original, folder="originals")

        record: dict[str, Any] = task.note(place, drawing, picture, save)
        if picture is None:
            error = task.explain(place, drawing.error)
            log.warning("not drawn: %s", error)
            file.put(number, {**record, "error": error})
        else:
            name = file.save_picture(number, picture)
            file.put(number, {**record, "file": name, "seconds": round(drawing.seconds, 4), "ids": drawing.ids.tolist()})
