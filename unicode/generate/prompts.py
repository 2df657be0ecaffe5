"""What is to be drawn, from a file or from the shapes world -> a list of prompts with their ids; bad lines become errors, the others go on.

    FILE.txt                one description a line; the id is the number of the line
    FILE.jsonl              {"id"?, "prompt" (or "caption", "text"): "a red bus", "seed"?} a line
    FILE.json               LLaVA's list: captions of images, or conversations whose first question asks for a picture
    shapes:val, shapes:train    captions of the generated world; the reference is the key of the scene
    unconditional:1000      so many pictures of nothing in particular
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from unicode.annotations.conversation import IMAGE_TAG, TASKS, RefusedError, parse_images, parse_turns
from unicode.annotations.prompts import TEXT_TO_IMAGE, UNCONDITIONAL, draw
from unicode.common.json_stream import read_json_list
from unicode.generate.image import CAPTION_TEMPLATE, FREE_QUESTION, DrawRequest, caption_request
from unicode.ids.keys import check_key
from unicode.ids.text import OPEN
from unicode.images.scene import ShapesConfig
from unicode.images.shapes import SPLITS, find_scene, scene_keys

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
    captions = (find_scene(world, key).caption(Random(key)) for key in keys)
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
    turns, images = parse_turns(record), parse_images(record)
    task = record.get("task", TEXT_TO_IMAGE)
    if task not in (TEXT_TO_IMAGE, UNCONDITIONAL):
        known = "an unknown task" if task not in TASKS else "not drawn from words alone"
        return DrawPrompt(name, "", where, error=f"task '{task}' is {known}; give records of {TEXT_TO_IMAGE} or {UNCONDITIONAL}")
    question = turns[0].strip()
    if IMAGE_TAG in question and OPEN not in turns[1]:
        words = " ".join(turns[1].split())
        return DrawPrompt(name, words, where, reference=images[0] if images else "", error="" if words else "the caption is empty")
    if IMAGE_TAG in question or OPEN in question:
        return DrawPrompt(name, "", where, error="the question holds an image; give --reference for conversations with pictures")
    return DrawPrompt(name, question, where, whole=True, reference=images[0] if images else "")


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
