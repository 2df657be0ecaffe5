"""Conversations whose answers hold text and images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from unicode.annotations.records import IMAGE_TAG, RefusedError, read_record
from unicode.annotations.templates import draw
from unicode.generate.engine import CachedDecoder, ImageConstraint, ImageHead, decode_answers
from unicode.generate.sampling import GREEDY, Sampling
from unicode.llm.load import Content, LanguageModel


@dataclass(frozen=True, eq=False)
class Conversation:
    """A conversation to be held.

    Attributes:
        id: its name.
        questions: what the user says, turn by turn; <image> tags stand for `images` in order.
        references: what was answered by somebody else, "" where nothing is known.
        images: paths or keys of the images.
        error: why it cannot be held, with the record's place.
    """

    id: str
    questions: tuple[str, ...]
    references: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    error: str = ""


@dataclass
class Dialogue:
    """How far a conversation has come: turns and answers so far, or why it could not go on."""

    turns: list[str] = field(default_factory=list)
    error: str = ""


class ChatSampler:
    """Answers in words and pictures.

    Args:
        model: one that writes image ids; of a model without a layout the answers are words alone.
        words: how words are drawn.
        pictures: how image ids are drawn; unguided.
        num_tokens: longest answer; pictures count with all their ids.
        max_pictures: how many pictures an answer may hold.

    Raises:
        ValueError: the model reads pixels, or guidance was asked for.
        FileNotFoundError: the image tokenizer is not there.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        words: Sampling = GREEDY,
        pictures: Sampling | None = None,
        num_tokens: int = 512,
        max_pictures: int = 4,
    ) -> None:
        if model.reads_pixels or model.layout is None or model.markers is None:
            raise ValueError("this model writes no pictures; ask it with python -m unicode.run.answer, or train one that draws")
        self.model, self.words, self.pictures = model, words, pictures or Sampling()
        self.num_tokens, self.max_pictures = num_tokens, max_pictures
        self.decoder = CachedDecoder(model.lm)
        self.head = ImageHead(self.decoder, model.images.row_ids, model.layout, markers=model.markers)

    def answer(self, turns: Sequence[Sequence[str]], contents: Sequence[Sequence[Content]], *, seeds: Sequence[int]) -> list[str]:
        """Answer the last questions of a batch of conversations.

        Args:
            turns: of each conversation question, answer, ..., question.
            contents: of each what is read for its <image> tags.
            seeds: one for each.

        Raises:
            ValueError: a prompt that leaves no room for an answer.
        """
        model = self.model
        prompts = [model.prompt(list(one), list(seen)) for one, seen in zip(turns, contents, strict=True)]
        longest = max(map(len, prompts))
        room = min(self.num_tokens, model.context - longest)
        if room < 1:
            raise ValueError(f"a conversation of {longest} tokens leaves no room in the model's context of {model.context}; shorten it")
        features = self.decoder.start(**model.inputs(prompts), max_new=room)
        constraint = ImageConstraint(
            self.head, vocab_size=self.decoder.vocab_size, rows=len(prompts), num_tokens=room, max_images=self.max_pictures
        )
        decoded = decode_answers(
            self.decoder, features, limits=[room] * len(prompts), end_ids=model.end_ids,
            seeds=torch.tensor(list(seeds), device=features.device), words=self.words, images=self.pictures, constraint=constraint,
        )  # fmt: skip
        return [model.read_text(ids).strip() for ids in decoded.ids]


def hold_conversations(
    sampler: ChatSampler,
    conversations: Sequence[Conversation],
    contents: Sequence[Sequence[Content]],
    *,
    seed: int = 0,
    batch_size: int = 8,
) -> list[Dialogue]:
    """Put the questions of conversations to the model, its own answers standing between them.

    Args:
        contents: of each conversation what is read for its images, in the order of the tags.

    Returns:
        One dialogue per conversation, in order; a conversation that cannot go on says why and keeps what it has.
    """
    dialogues = [Dialogue(error=one.error) for one in conversations]
    for number in range(max((len(one.questions) for one in conversations), default=0)):
        going = [place for place, one in enumerate(conversations) if number < len(one.questions) and not dialogues[place].error]
        for start in range(0, len(going), batch_size):
            _one_turn(sampler, conversations, contents, dialogues, going[start : start + batch_size], number, seed)
    return dialogues


def _one_turn(
    sampler: ChatSampler, conversations: Sequence[Conversation], contents: Sequence[Sequence[Content]], dialogues: list[Dialogue],
    places: list[int], number: int, seed: int,
) -> None:  # fmt: skip
    """Question `number` of some conversations; where the batch cannot be asked, one by one."""
    turns = [[*dialogues[place].turns, conversations[place].questions[number]] for place in places]
    seen = [contents[place][: sum(turn.count(IMAGE_TAG) for turn in said[::2])] for place, said in zip(places, turns, strict=True)]
    seeds = [draw(2**31, seed, "talk", conversations[place].id, str(number)) for place in places]
    try:
        answers = sampler.answer(turns, seen, seeds=seeds)
    except ValueError as error:
        if len(places) > 1:
            for place in places:
                _one_turn(sampler, conversations, contents, dialogues, [place], number, seed)
        else:
            dialogues[places[0]].error = f"turn {2 * number}: {error}"
        return
    for place, said, answer in zip(places, turns, answers, strict=True):
        dialogues[place].turns = [*said, answer]


def parse_conversations(records: Sequence[object] | Iterator[object], *, source: str) -> list[Conversation]:
    """LLaVA-like records -> conversations; those that are none carry the reason. Answers of the records become references."""
    found = []
    for number, record in enumerate(records):
        try:
            one = read_record(record, form="written")
            tags = sum(turn.count(IMAGE_TAG) for turn in one.turns[::2])
            counts = f"{tags} {IMAGE_TAG} in the questions, {len(one.keys)} images"
            fault = "" if tags == len(one.keys) else f"{source}, record {number}: {counts}"
            found.append(Conversation(one.id, one.turns[::2], one.turns[1::2], one.keys, fault))
        except RefusedError as error:
            found.append(Conversation(f"record {number}", (), error=f"{source}, record {number}: {error}"))
    return found


def picture_ids(run: np.ndarray, model: LanguageModel) -> np.ndarray | None:
    """The ids of a run where they are a whole picture of this model, else None."""
    assert model.layout is not None
    whole = len(run) == model.layout.num_codes and bool(np.isin(run, model.images.row_ids.cpu().numpy()).all())
    return run if whole else None
