"""Prompt files -> images on disk: drawing, completion and decompression."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unicode.annotations.records import IMAGE_TAG, TASKS, RefusedError, read_record
from unicode.annotations.templates import DECOMPRESSION, TEMPLATES, TEXT_TO_IMAGE, UNCONDITIONAL, draw
from unicode.common.distributed import is_main, rank, world_size
from unicode.common.files import read_damaged_jsonl
from unicode.common.json_lists import read_json_list
from unicode.common.logging import get_logger
from unicode.generate.images import FREE_QUESTION, Drawing, DrawRequest, caption_request, decode_pictures
from unicode.generate.jobs import OutputSlot, Record, ResultFile, save_picture
from unicode.ids.store import check_key
from unicode.ids.text import OPEN, write_run
from unicode.images.dataset import ImageDataset, ShapesImages, Skipped
from unicode.images.decode import to_float
from unicode.images.shapes import SPLITS, ShapesConfig, find_scene, scene_keys
from unicode.images.shapes_text import scene_caption, typed_caption
from unicode.llm.load import LanguageModel

TEXT_KEYS = ("prompt", "caption", "text")
HELD_FORMS = "held"  # shapes:held
log = get_logger(__name__)


@dataclass(frozen=True)
class DrawPrompt:
    """One line of a prompt file."""

    id: str  # Names its picture
    text: str  # The words as they stand in the file
    where: str  # Names the line in messages
    whole: bool = False  # Whether the words are the whole request; otherwise they go into a template
    seed: int | None = None  # Of its picture; None: drawn from the seed of the run and the id
    reference: str = ""  # Key of the scene or image that the words describe
    error: str = ""  # What is wrong with the line

    def request(self, *, seed: int, sample: int = 0, template: str = "") -> DrawRequest:
        """Return what to ask the model.

        `seed`: of the run; the picture's own is drawn from it, the id and the number of the sample, so that no other line matters.
        `template`: for words that are a description. Raises ValueError: the line is no prompt; the message names it.
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

    `source`: a .txt file (one prompt a line; what it describes may follow after a tab, as a key), a .jsonl file, a LLaVA .json file,
    shapes:SPLIT, or unconditional:NUMBER. `world`: settings of the shapes world. `limit`: the first so many only; 0: all. Raises
    FileNotFoundError: there is no such file. Raises ValueError: an unknown kind of source, a file that is no JSON list, or nothing in it.
    """
    kind, _, rest = source.partition(":")
    if kind == "shapes" and not Path(source).exists():
        return _world_prompts(rest or "val", world or ShapesConfig(), limit)
    if kind == "unconditional" and rest.isdecimal():
        number = min(int(rest), limit or int(rest))
        return [DrawPrompt(f"{index:06d}", FREE_QUESTION, f"{source}, number {index}", whole=True) for index in range(number)]
    path, readers = Path(source), {".txt": _text_lines, ".jsonl": _json_lines, ".json": _conversations}
    if path.suffix not in readers:
        known = f"{', '.join(readers)} files, shapes:val, unconditional:1000"
        raise ValueError(f"prompts '{source}' are of no known format; known: {known}")
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompts {path}")
    prompts = [prompt for prompt, _ in zip(_unique(readers[path.suffix](path)), range(limit or 2**62), strict=False)]
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def _world_prompts(split: str, world: ShapesConfig, limit: int) -> list[DrawPrompt]:
    held = split == HELD_FORMS
    if split not in SPLITS and not held:
        known = f"{' and '.join(SPLITS)}, and {HELD_FORMS}, val in held-out words"
        raise ValueError(f"prompts 'shapes:{split}': the shapes world has the splits {known}")
    keys = scene_keys(world, "val" if held else split, limit=limit)
    captions = (typed_caption(find_scene(world, key), Random(key), held=held) for key in keys)
    return [DrawPrompt(key.removesuffix(".png"), text, f"scene {key}", reference=key) for key, text in zip(keys, captions, strict=True)]


def _text_lines(path: Path) -> Iterator[DrawPrompt]:
    lines = path.read_text(encoding="utf-8-sig", errors="replace").rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        text, _, reference = map(str.strip, line.partition("\t"))
        where, fault = f"{path}, line {number}", "" if text else "the prompt is empty"
        yield DrawPrompt(f"{number:06d}", text, where, reference=reference, error=fault)


def _json_lines(path: Path) -> Iterator[DrawPrompt]:
    for number, record in read_damaged_jsonl(path):
        where, name = f"{path}, line {number}", f"{number:06d}"
        if isinstance(record, Exception):
            yield DrawPrompt(name, "", where, error=f"no JSON: {record}")
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
            read = read_record(record, form="written")
        except RefusedError as error:
            yield DrawPrompt(name, "", where, error=f"no conversation: {error}")
            continue
        words, answer, whole, fault = read.turns[0].strip(), read.turns[1], True, ""
        if read.task not in ("", TEXT_TO_IMAGE, UNCONDITIONAL):
            known = "an unknown task" if read.task not in TASKS else "not drawn from words alone"
            fault = f"task '{read.task}' is {known}; give records of {TEXT_TO_IMAGE} or {UNCONDITIONAL}"
        elif IMAGE_TAG in words and OPEN not in answer:  # the answer describes the image; otherwise the question asks for one
            words, whole = " ".join(answer.split()), False
            fault = "" if words else "the caption is empty"
        elif IMAGE_TAG in words or OPEN in words:
            fault = "the question holds an image; give --reference for conversations with pictures"
        yield DrawPrompt(name, "" if fault else words, where, whole, reference=read.keys[0] if read.keys else "", error=fault)


def _unique(prompts: Iterator[DrawPrompt]) -> Iterator[DrawPrompt]:
    """Yield the prompts; one whose id cannot name a file, or was there before, becomes an error under a name of its own."""
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


Compare = Callable[[Tensor, Tensor], Tensor]  # two (B, 3, H, W) uint8 -> (B,), as the PSNR


@dataclass(frozen=True, eq=False)
class Job:
    """One picture to draw."""

    where: str  # Names it in messages
    request: DrawRequest | None  # What to ask the model; None where it cannot be asked
    record: Record  # Keys of its line that are known before it is drawn
    error: str = ""  # Why it cannot be asked
    original: Tensor | None = None  # (3, H, W) uint8, the picture that it should become
    original_ids: np.ndarray | None = None  # (n,) ids of `original`


class PromptTask:
    """Pictures of prompts, whose `ids` stand in their order."""

    def __init__(self, prompts: Sequence[DrawPrompt], *, seed: int, template: str = "") -> None:
        self.ids = [prompt.id for prompt in prompts]
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._seed, self._template = seed, template

    def jobs(self, slots: Sequence[OutputSlot]) -> list[Job]:
        """Return what to draw for some pictures."""
        found = []
        for slot in slots:
            prompt = self._prompts[slot.id]
            about = {"reference": prompt.reference} if prompt.reference else {}
            try:
                request = prompt.request(seed=self._seed, sample=slot.sample, template=self._template)
                found.append(Job(prompt.where, request, {"prompt": prompt.text, "seed": request.seed, **about}))
            except ValueError as error:
                found.append(Job(prompt.where, None, {"prompt": prompt.text, **about}, str(error)))
        return found


class ImageTask:
    """Pictures continued from the first rows of given ones, or written out from their compressed form.

    `model` encodes the pictures of `dataset`; `ids` are their keys, in order. `rows`: how many rows of coarse cells to keep; None:
    decompress. `caption`: words about every picture, for completion; "": those of the shapes world, else none. `seed`: as of prompts.
    Raises ValueError: more rows than leave something to draw.
    """

    def __init__(
        self, model: LanguageModel, dataset: ImageDataset, *, rows: int | None, caption: str = "", seed: int,
        template: str = "",
    ) -> None:  # fmt: skip
        assert model.layout is not None
        if rows is not None and not 0 <= rows < model.layout.coarse_rows:
            top = model.layout.coarse_rows - 1
            raise ValueError(f"{rows} rows are to be kept; of {model.layout.describe()} 0 to {top} can be, or nothing is left to draw")
        self.ids = [dataset.key(index) for index in range(len(dataset))]
        self._index = {key: index for index, key in enumerate(self.ids)}
        self._model, self._dataset, self._caption, self._seed = model, dataset, caption, seed
        self._template, self._given = template, None if rows is None else model.layout.prefix(rows)

    def jobs(self, slots: Sequence[OutputSlot]) -> list[Job]:
        """Return what to draw for some pictures; encodes them."""
        found = {slot.id: self._dataset.pixels(self._index[slot.id]) for slot in slots}
        pixels = {key: one for key, one in found.items() if isinstance(one, Tensor)}
        encoded = self._model.image_ids(to_float(torch.stack(list(pixels.values())))).cpu().numpy() if pixels else ()
        ids = dict(zip(pixels, encoded, strict=True))
        return [self._job(slot, found[slot.id], ids) for slot in slots]

    def _job(self, slot: OutputSlot, pixels: Tensor | Skipped, encoded: dict[str, np.ndarray]) -> Job:
        words = self._caption
        if self._given is not None and not words and isinstance(self._dataset, ShapesImages):
            words = scene_caption(self._dataset.scene(self._index[slot.id]))
        if isinstance(pixels, Skipped):
            return Job(slot.id, None, {"prompt": words}, pixels.reason)
        ids, seed = encoded[slot.id], draw(2**31, self._seed, "picture", slot.id, str(slot.sample))
        if self._given is None:
            question = TEMPLATES[DECOMPRESSION][0].format(ids=write_run(ids))
            request = DrawRequest(question, seed=seed, compressed=True)
        else:
            question = caption_request(words, template=self._template).question if words else FREE_QUESTION
            request = DrawRequest(question, seed=seed, given=ids[: self._given])
        return Job(slot.id, request, {"prompt": words, "seed": seed}, original=pixels, original_ids=ids)


class Sampler(Protocol):
    """What draws batches of requests: `ImageSampler`, or an engine elsewhere."""

    model: LanguageModel

    def draw(self, requests: Sequence[DrawRequest]) -> list[Drawing]:
        """See `ImageSampler.draw`."""


def run_task(
    sampler: Sampler, task: PromptTask | ImageTask, file: ResultFile, slots: Sequence[OutputSlot], *, batch_size: int, compare: Compare
) -> list[Record]:
    """Draw what is missing; called by every rank. Batches in which anything is missing are drawn again as a whole, for the same rounding.

    `slots`: all pictures, whose keys are those of `file`. `compare`: how near an original and its copy are, for the key "psnr". Returns the
    lines of all pictures, drawn now or before. Raises OSError: the disk is full.
    """
    several = any(slot.sample for slot in slots)
    batches = [slots[start : start + batch_size] for start in range(0, len(slots), batch_size)]
    missing = [batch for batch in batches if not all(file.has(slot.key) for slot in batch)][rank() :: world_size()]
    with tqdm(total=sum(map(len, missing)), desc="drawing", unit=" pictures", disable=not is_main()) as bar:
        for batch in missing:
            jobs = task.jobs(batch)
            asked = {place: job.request for place, job in enumerate(jobs) if job.request is not None}
            drawings = dict(zip(asked, sampler.draw(list(asked.values())), strict=True))
            drawn = [place for place in drawings if not drawings[place].error]
            pixels = decode_pictures(sampler.model, np.stack([drawings[place].ids for place in drawn])) if drawn else ()
            pictures = dict(zip(drawn, pixels, strict=True))
            for place, (slot, job) in enumerate(zip(batch, jobs, strict=True)):
                if not file.has(slot.key):
                    _write(file, slot, job, drawings.get(place), pictures.get(place), compare, several=several)
            bar.update(len(batch))
    file.finish()
    return list(file.records().values())


def _write(
    file: ResultFile, slot: OutputSlot, job: Job, drawing: Drawing | None, picture: np.ndarray | None, compare: Compare, *, several: bool
) -> None:
    out, record = file.path.parent, {"id": slot.id, **({"sample": slot.sample} if several else {}), **job.record}
    if drawing is None or picture is None:
        reason = job.error if drawing is None else drawing.error
        error = reason if reason.startswith(job.where) else f"{job.where}: {reason}"
        log.warning("not drawn: %s", error)
        file.put({**record, "error": error})
        return
    if job.original is not None and job.original_ids is not None and job.request is not None:
        given = len(job.request.given)
        record["exact"] = float((drawing.ids[given:] == job.original_ids[given:]).mean())
        record["psnr"] = float(compare(job.original[None], torch.from_numpy(picture).permute(2, 0, 1)[None]))
        record["reference"] = save_picture(out, slot, job.original.permute(1, 2, 0).numpy(), folder="originals")
        record |= {} if job.request.compressed else {"given": given}
    name = save_picture(out, slot, picture)
    file.put({**record, "file": name, "seconds": round(drawing.seconds, 4), "ids": drawing.ids.tolist()})
