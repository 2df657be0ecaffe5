"""Questions about images -> answers, in batches of prompts of similar length with shared prefixes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import StopStringCriteria

from unicode.annotations.records import IMAGE_TAG
from unicode.common.distributed import is_main
from unicode.generate.engine import CachedDecoder, ImageHead, decode_answers
from unicode.generate.questions import AskedQuestion, ImageReader
from unicode.generate.sampling import Sampling
from unicode.llm.load import LanguageModel, Prompt


def beginning(prompt: Prompt) -> tuple[int, bytes]:
    """Return the length of what a prompt may share with others, up to the end of its last image, and a digest of it; 0 without images."""
    example = prompt.example
    places = example.is_image.nonzero()
    length = min(int(places[-1]) + 2, len(example) - 1) if len(places) else 0
    digest = blake2b(example.input_ids[:length].numpy().tobytes(), digest_size=16)
    digest.update(example.extra_ids.numpy().tobytes())
    if prompt.pixels is not None:
        digest.update(prompt.pixels.numpy().tobytes())
    return length, digest.digest() if length else b""


def sort_prompts(prompts: dict[int, Prompt], beginnings: dict[int, tuple[int, bytes]]) -> list[int]:
    """Return the places of the prompts in the order of their batches: those that begin alike stand together, long ones come first.

    What does not fit into memory then shows at once, the time left is not underrated, and rows of a batch are of like length.
    """
    longest: dict[bytes, int] = {}
    for place, prompt in prompts.items():
        name = beginnings[place][1]
        longest[name] = max(longest.get(name, 0), len(prompt))

    def rank(place: int) -> tuple[int, int, bytes, int]:
        length, name = beginnings[place]
        group = longest[name] if name else len(prompts[place])
        return -group, -length, name, -len(prompts[place])

    return sorted(prompts, key=rank)


def read_prompts(
    decoder: CachedDecoder, model: LanguageModel, prompts: Sequence[Prompt], beginnings: Sequence[tuple[int, bytes]], *, max_new: int
) -> Tensor:
    """Read a batch of prompts into the cache, what several begin with once.

    `beginnings`: `beginning` of each. Returns (B, D) features after each prompt.
    """
    names = [name for _, name in beginnings]
    shared = list(dict.fromkeys(filter(None, names)))
    if not decoder.can_select or len(shared) == sum(map(bool, names)):
        return decoder.start(**model.inputs(prompts), max_new=max_new)
    first = model.inputs([_cut(prompts[row], 0, beginnings[row][0]) for row in map(names.index, shared)])
    rest = model.inputs([_cut(prompt, length, len(prompt)) for prompt, (length, _) in zip(prompts, beginnings, strict=True)])
    decoder.start(**first, max_new=rest["attention_mask"].shape[1] + max_new)
    chosen = torch.tensor([shared.index(name) if name else 0 for name in names], device=decoder.device)
    decoder.select(chosen, torch.tensor([bool(name) for name in names], device=decoder.device))
    return decoder.extend(**rest)


def _cut(prompt: Prompt, start: int, end: int) -> Prompt:
    """Return positions `start` to `end` of a prompt; its images stand before the cut."""
    example, images = prompt.example, start == 0
    parts = {name: getattr(example, name)[start:end] for name in ("input_ids", "labels", "is_image", "branch")}
    extra = slice(None) if images else slice(0, 0)
    cut = type(example)(**parts, extra_ids=example.extra_ids[extra], extra_at=example.extra_at[extra], task=example.task)
    return Prompt(cut, prompt.pixels if images else None)


WINDOW = 1024  # Questions whose prompts and images are in memory at a time, and that are sorted by length


@dataclass(frozen=True)
class Answer:
    """An answer, or why there is none."""

    text: str  # Its words; pictures in it as <vistok>...</vistok>
    num_tokens: int = 0  # Positions written, the end token included; a cell of a picture is one
    finished: bool = False  # Whether the model ended the answer itself, before the limit of tokens or of its context
    error: str = ""  # An image that cannot be read, a prompt longer than the context
    ids: tuple[int, ...] = ()  # Its tokens without the end token, pictures with all their ids


@dataclass(frozen=True)
class AnswerConfig:
    """How answers are generated. Raises ValueError: a number out of range."""

    batch_size: int = 16  # Questions per batch
    max_new_tokens: int = 128  # Longest answer in tokens; an answer also ends where the model's context does
    temperature: float = 0.0  # 0 takes the likeliest token (greedy); above 0 answers are sampled
    top_p: float = 1.0  # Sample among the likeliest tokens that together have this probability
    seed: int = 0  # Of sampling, together with the id of each question

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_new_tokens < 1:
            raise ValueError(f"batch size {self.batch_size} and new tokens {self.max_new_tokens} must be at least 1")
        Sampling(self.temperature, top_p=self.top_p)

    def made_by(self) -> dict[str, Any]:
        """Return those settings that answers depend on."""
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return {"max_new_tokens": self.max_new_tokens, **(sampled if self.temperature else {})}

    def seed_of(self, name: Any) -> int:
        """Return the seed of the question with the id `name`."""
        return int.from_bytes(blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest(), "little") >> 1


def answer_questions(
    model: LanguageModel,
    questions: Sequence[AskedQuestion],
    *,
    config: AnswerConfig | None = None,
    images: ImageReader | None = None,
    decoder: CachedDecoder | None = None,
    ask: Callable[[dict[int, Prompt], dict[int, int]], Iterator[tuple[int, Answer]]] | None = None,
    progress: bool = False,
) -> Iterator[tuple[int, Answer]]:
    """Answer questions batch by batch, in bounded memory however many there are.

    Args:
        questions: anything with a length and items by number; items are asked for once, in order, WINDOW at a time.
        images: where images are looked up; None: below the working folder.
        decoder: of `model.causal`; None makes one.
        ask: answers prompts in place of `model`: prompts and seeds by place -> answers by place, in any order.
        progress: whether the main rank shows a bar with the time left.

    Yields (place in `questions`, answer) as they come, each place once. A question that cannot be asked has `Answer.error`; the others are
    answered.
    """
    config = config or AnswerConfig()
    ask = ask or partial(answer_prompts, decoder or CachedDecoder(model.causal), model, config)
    bar = tqdm(total=len(questions), desc="answering", unit=" questions", smoothing=0.05, disable=not (progress and is_main()))
    with bar, nullcontext(images) if images else ImageReader(model) as reader:
        for start, window in _windows(questions, reader):
            prompts, failed = _make_prompts(model, window, reader)
            seeds = {place: config.seed_of(window[place].id) for place in prompts}
            for place, answer in chain(failed.items(), ask(prompts, seeds)):
                yield start + place, answer
                bar.update()


def answer_prompts(
    decoder: CachedDecoder, model: LanguageModel, config: AnswerConfig, prompts: dict[int, Prompt], seeds: dict[int, int]
) -> Iterator[tuple[int, Answer]]:
    """Answer prompts in batches of like length; yields (their place, the answer). `seeds`: by place, for sampled answers."""
    cells, layout, markers, stop = model.cell_head, model.layout, model.markers, model.template.stop
    head = ImageHead(decoder, cells.row_ids, layout, markers=markers, cells=cells) if cells and layout and markers else None
    criteria = StopStringCriteria(model.text, [stop]) if stop else None
    has_stopped = None if criteria is None else lambda tokens: criteria(tokens, None)
    words = Sampling(config.temperature, top_p=config.top_p)
    beginnings = {place: beginning(prompt) for place, prompt in prompts.items()}
    order = sort_prompts(prompts, beginnings)
    for first in range(0, len(order), config.batch_size):
        batch = order[first : first + config.batch_size]
        # A row may go on until its own context is full; the batch goes on for the row that may go on longest.
        limits = [min(config.max_new_tokens, model.context - len(prompts[place])) for place in batch]
        asked, shared = [prompts[place] for place in batch], [beginnings[place] for place in batch]
        features = read_prompts(decoder, model, asked, shared, max_new=max(limits))
        decoded = decode_answers(
            decoder, features, limits=limits, end_ids=model.end_ids, seeds=[seeds[place] for place in batch],
            words=words, images=words, head=head, has_stopped=has_stopped,
        )  # fmt: skip
        for place, ids, length, ended in zip(batch, decoded.ids, decoded.lengths, decoded.ended, strict=True):
            text, found, _ = model.read_text(ids).lstrip().partition(stop or "\0")
            yield place, Answer(text.strip(), length, bool(found) or ended, ids=tuple(ids))


def _windows(questions: Sequence[AskedQuestion], images: ImageReader) -> Iterator[tuple[int, list[AskedQuestion]]]:
    """Yield windows of questions with the place of their first; the images of the next one are decoded while one is worked on."""
    following: list[AskedQuestion] = []
    for start in range(0, len(questions) + WINDOW, WINDOW):
        window, following = following, [questions[place] for place in range(start, min(start + WINDOW, len(questions)))]
        images.prefetch(image for question in following for image in question.images)
        if window:
            yield start - WINDOW, window


def _make_prompts(model: LanguageModel, window: list[AskedQuestion], images: ImageReader) -> tuple[dict[int, Prompt], dict[int, Answer]]:
    """Return place -> prompt, and place -> answer with the error of the questions that cannot be asked."""
    contents = images.read(image for question in window for image in question.images)
    prompts: dict[int, Prompt] = {}
    failed: dict[int, Answer] = {}
    for place, question in enumerate(window):
        try:
            seen = images.contents(question.images, contents)
            if question.images and not seen:  # the blind baseline without images
                question = replace(question, history=tuple(map(_without_tags, question.history)), text=_without_tags(question.text))
            prompt = model.prompt(place_tags(question.text, question.history, len(seen)), seen)
            if len(prompt) >= model.context:
                raise ValueError(f"the prompt has {len(prompt)} tokens, the model's context {model.context}; shorten the question")
            prompts[place] = prompt
        except ValueError as error:
            failed[place] = Answer("", error=str(error))
    return prompts, failed


def place_tags(text: str, history: Sequence[str], num_images: int) -> list[str]:
    """Return the turns of a conversation that ends with the question `text`: as many <image> tags as images; missing ones go in front.

    Raises ValueError: more tags than images.
    """
    missing = num_images - sum(turn.count(IMAGE_TAG) for turn in (*history[::2], text))
    if missing < 0:
        raise ValueError(f"the question has {num_images - missing} {IMAGE_TAG} tags for {num_images} images")
    return [*history, f"{IMAGE_TAG}\n" * missing + text]


def _without_tags(text: str) -> str:
    return text.replace(f"{IMAGE_TAG}\n", "").replace(IMAGE_TAG, "").strip()
