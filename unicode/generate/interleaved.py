"""Conversations whose answers hold text and images: held with the model, and written as a page for a reader.

OUT/conversations.jsonl    {"id", "turns": the turns with pictures as <vistok> runs, "error"?} a line
OUT/page.html, page.md     questions, the model's answers, and the answers of the file beside them; pictures in OUT/pictures/
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np

from unicode.annotations.records import IMAGE_TAG, RefusedError, read_record
from unicode.annotations.templates import draw
from unicode.common.files import atomic_write, read_jsonl, write_jsonl
from unicode.common.json_lists import read_json_list
from unicode.common.logging import printable
from unicode.generate.engine import CachedDecoder, decode_answers
from unicode.generate.images import ImageSampler, decode_pictures
from unicode.generate.questions import ImageError, ImageReader
from unicode.generate.sampling import GREEDY, Sampling, merge_sampling
from unicode.ids.text import RUN, read_run
from unicode.images.lookup import ImageLookup
from unicode.llm.load import Content, LanguageModel
from unicode.tokenizer.decode import write_picture


class ChatSampler(ImageSampler):
    """Answers in words and pictures.

    `words`: how words are sampled. `pictures`: how image ids are, unguided; None: as the model's card has it. `num_tokens`: longest answer
    in positions; a picture takes one for each id, or for each cell, and two for its markers. An answer holds up to `max_pictures`.
    `decoder`: of the model; None makes one. Raises ValueError: the model writes no image ids. Raises FileNotFoundError: the image tokenizer
    is not there.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        words: Sampling = GREEDY,
        pictures: Sampling | None = None,
        num_tokens: int = 512,
        max_pictures: int = 4,
        decoder: CachedDecoder | None = None,
    ) -> None:
        super().__init__(model, sampling=pictures or merge_sampling(model.card.sampling, guided=False), decoder=decoder)
        self.words, self.num_tokens, self.max_pictures = words, num_tokens, max_pictures

    def answer(self, turns: Sequence[Sequence[str]], contents: Sequence[Sequence[Content]], *, seeds: Sequence[int]) -> list[str]:
        """Answer the last questions of a batch of conversations. `seeds`: one for each.

        `turns`: of each conversation question, answer, ..., question. `contents`: of each what is read for its <image> tags. Raises
        ValueError: a prompt that leaves no room for an answer, or guidance or candidates were asked for.
        """
        model = self.model
        prompts = [model.prompt(list(one), list(seen)) for one, seen in zip(turns, contents, strict=True)]
        longest = max(map(len, prompts))
        room = min(self.num_tokens, model.context - longest)
        if room < 1:
            raise ValueError(f"a conversation of {longest} tokens leaves no room in the model's context of {model.context}; shorten it")
        features = self.decoder.start(**model.inputs(prompts), max_new=room)
        decoded = decode_answers(
            self.decoder, features, limits=[room] * len(prompts), end_ids=model.end_ids, seeds=seeds,
            words=self.words, images=self.sampling, head=self.head, max_images=self.max_pictures,
        )  # fmt: skip
        return [model.read_text(ids).strip() for ids in decoded.ids]


@dataclass(eq=False)
class Dialogue:
    """A conversation to hold, and how far it has come."""

    id: str
    questions: tuple[str, ...] = ()  # The user's turns in order; <image> tags stand for `images` in order
    references: tuple[str, ...] = ()  # The answers of the file, "" where nothing is known
    images: tuple[str, ...] = ()  # Keys of the images
    turns: list[str] = field(default_factory=list)  # Questions and the model's answers so far
    error: str = ""  # Why it could not start or continue


def read_conversations(path: Path, *, limit: int = 0) -> list[Dialogue]:
    """Read LLaVA's .json, or .jsonl with one conversation a line; records that are none have `Dialogue.error`.

    `limit`: the first so many only; 0: all. Raises FileNotFoundError: there is no such file. Raises ValueError: another kind of file, or it
    holds no conversations.
    """
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"--reference {path}: conversations are LLaVA's .json, or .jsonl with one a line")
    records = list(read_jsonl(path) if path.suffix == ".jsonl" else read_json_list(path))[: limit or None]
    if not records:
        raise ValueError(f"{path} holds no conversations")
    found = []
    for number, record in enumerate(records):
        where = f"{path}, record {number}"
        try:
            one = read_record(record, form="written")
        except RefusedError as error:
            found.append(Dialogue(f"record {number}", error=f"{where}: {error}"))
            continue
        tags = sum(turn.count(IMAGE_TAG) for turn in one.turns[::2])
        fault = "" if tags == len(one.keys) else f"{where}: {tags} {IMAGE_TAG} in the questions, {len(one.keys)} images"
        found.append(Dialogue(one.id, one.turns[::2], one.turns[1::2], one.keys, error=fault))
    return found


def sample_dialogues(
    sampler: ChatSampler, dialogues: list[Dialogue], *, pictures: ImageLookup | None = None, seed: int = 0, batch_size: int = 8
) -> list[Dialogue]:
    """Put the questions of conversations to the model, its own answers between them; returns the same dialogues, filled.

    `pictures`: where images are looked up; None: below the working folder.
    """
    contents: dict[int, list[Content]] = {}
    with ImageReader(sampler.model, pictures=pictures) as reader:
        found = reader.read(image for one in dialogues for image in one.images)
        for place, one in enumerate(dialogues):
            try:
                contents[place] = reader.contents(one.images, found)
            except ImageError as error:
                one.error = one.error or f"conversation '{one.id}': {error}"
    for number in range(max((len(one.questions) for one in dialogues), default=0)):
        going = [place for place, one in enumerate(dialogues) if number < len(one.questions) and not one.error]
        for start in range(0, len(going), batch_size):
            batch = going[start : start + batch_size]
            _ask(sampler, [dialogues[place] for place in batch], [contents[place] for place in batch], number, seed)
    return dialogues


def _ask(sampler: ChatSampler, dialogues: list[Dialogue], contents: list[list[Content]], number: int, seed: int) -> None:
    """Ask question `number` of some conversations; one by one where the batch cannot be asked."""
    turns = [[*one.turns, one.questions[number]] for one in dialogues]
    seen = [content[: sum(turn.count(IMAGE_TAG) for turn in one[::2])] for content, one in zip(contents, turns, strict=True)]
    seeds = [draw(2**31, seed, "talk", one.id, str(number)) for one in dialogues]
    try:
        answers = sampler.answer(turns, seen, seeds=seeds)
    except ValueError as error:
        if len(dialogues) == 1:
            dialogues[0].error = f"turn {2 * number}: {error}"
            return
        for one, content in zip(dialogues, contents, strict=True):
            _ask(sampler, [one], [content], number, seed)
        return
    for one, asked, answer in zip(dialogues, turns, answers, strict=True):
        one.turns = [*asked, answer]


def answer_parts(text: str, model: LanguageModel) -> Iterator[str | np.ndarray]:
    """Cut an answer into words and the ids of pictures; what is no complete picture of this model becomes words."""
    assert model.layout is not None
    for piece in filter(None, re.split(f"({RUN.pattern})", text)):
        ids = read_run(piece, allow_empty=True) if RUN.fullmatch(piece) else None
        if ids is None:
            yield piece
        elif len(ids) == model.layout.num_codes and np.isin(ids, model.images.row_ids.cpu().numpy()).all():
            yield ids
        else:
            yield f"[broken: {len(ids)} ids that are no complete picture]"


Part = dict[str, str]  # {"text": words} or {"picture": file relative to the page}
_HTML = jinja2.Environment(autoescape=True).from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))


def write_pages(model: LanguageModel, out: Path, dialogues: Sequence[Dialogue], *, title: str) -> None:
    """Write conversations.jsonl, page.html, page.md and the pictures."""
    pages: list[tuple[str, list[tuple[str, list[Part]]]]] = []
    for place, one in enumerate(dialogues):
        name = f"{place:04d}-{re.sub(r'[^0-9A-Za-z_.-]', '_', one.id)[:40]}"
        turns: list[tuple[str, list[Part]]] = []
        for number, turn in enumerate(one.turns):
            turns.append(("model" if number % 2 else "user", _parts(turn, f"{name}-{number}", model, out)))
            if number % 2 and number // 2 < len(one.references):
                turns.append(("reference", _parts(one.references[number // 2], f"{name}-{number}-reference", model, out)))
        if one.error:
            turns.append(("error", [{"text": printable(one.error)}]))
        pages.append((printable(one.id), turns))
    lines = ({"id": one.id, "turns": one.turns, **({"error": one.error} if one.error else {})} for one in dialogues)
    write_jsonl(out / "conversations.jsonl", lines)
    with atomic_write(out / "page.html") as file:
        file.write(_HTML.render(title=title, conversations=pages))
    with atomic_write(out / "page.md") as file:
        file.write(_markdown(title, pages))


def _parts(text: str, name: str, model: LanguageModel, out: Path) -> list[Part]:
    found: list[Part] = []
    for part in answer_parts(text, model):
        if isinstance(part, str):
            found += [{"text": printable(part.strip())}] if part.strip() else []
            continue
        file = f"pictures/{name}-{sum('picture' in one for one in found)}.png"
        write_picture(out / file, decode_pictures(model, part[None])[0])
        found.append({"picture": file})
    return found


def _markdown(title: str, pages: Sequence[tuple[str, Sequence[tuple[str, Sequence[Part]]]]]) -> str:
    def plain(text: str) -> str:
        """Escape everything that Markdown or the HTML in it gives a meaning."""
        return re.sub(r"([\\`*_{}\[\]()<>#|~&$!])", r"\\\1", text)

    lines = [f"# {plain(title)}"]
    for name, turns in pages:
        lines.append(f"## {plain(name)}")
        for speaker, parts in turns:
            lines.append(f"**{speaker}**")
            lines += [f"![picture of the {speaker}]({part['picture']})" if "picture" in part else plain(part["text"]) for part in parts]
    return "\n\n".join(lines) + "\n"
