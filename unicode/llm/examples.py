"""Turns and images of a conversation -> tokens and labels: training examples and prompts."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch

from unicode.annotations.records import IMAGE_TAG, INPUT_MODES
from unicode.ids.layout import Layout
from unicode.ids.text import CLOSE, OPEN, read_run
from unicode.llm.template import CONTROL, END, IMAGE, START, TEXT, Template, TextEncoder, rounds, text_encoder
from unicode.llm.vocabulary import Markers

IGNORED = -100  # Label of a position that is not learned
NOT_BEGUN = OPEN + CLOSE  # A run of no ids, which UniCode-ECCV24 wrote for an image that is not begun; it is dropped


@dataclass
class Example:
    """One tokenized conversation of T positions."""

    input_ids: torch.Tensor  # (T,) int64
    labels: torch.Tensor  # (T,) int64, IGNORED or the id at the same position (the model shifts them itself)
    is_image: torch.Tensor  # (T,) bool, positions of image ids or compressed cells, without the markers
    extra_ids: torch.Tensor  # (n, m - 1) int64, the further ids of n cells of m ids, read or written; the first stands in `input_ids`
    extra_at: torch.Tensor  # (n,) int64, the positions of these cells
    branch: torch.Tensor  # (T,) int64, 0 for positions that every turn sees, then 1, 2, ... for turns that do not see each other
    task: str = ""  # One of the tasks of annotations
    images: tuple[str, ...] = ()  # Keys of the images, in the order of their runs

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_image_targets(self) -> int:
        """Number of image ids that are learned."""
        learned = (self.labels != IGNORED) & self.is_image
        return int(learned.sum() + learned[self.extra_at].sum() * self.extra_ids.shape[1])

    @property
    def num_text_targets(self) -> int:
        """Number of other tokens that are learned: words, markers and end tokens."""
        return int(((self.labels != IGNORED) & ~self.is_image).sum())

    def positions(self) -> torch.Tensor:
        """Return position ids, (T,) int64; every branch continues from the end of the common beginning."""
        order = torch.arange(len(self))
        begun = torch.where(self.branch.diff(prepend=self.branch[:1]) != 0, order, 0).cummax(0).values
        return torch.where(self.branch > 0, order - begun + (self.branch == 0).sum(), order)


@dataclass
class Segment:
    """A stretch of tokens with one meaning."""

    ids: Any
    learned: bool = False
    image: bool = False
    extra: np.ndarray | None = None  # (cells, m - 1) of an image of which a position is a cell


@dataclass(frozen=True)
class ExampleBuilder:
    """Tokenizes conversations, for training and for prompts."""

    template: Template  # How turns are written as text
    text_tokenizer: Any  # The language model's, of transformers
    markers: Markers | None = None  # Around images; None where there are none
    layout: Layout | None = None  # Of whole images; None leaves the length of runs unchecked (then there is no input_mode "sum")
    vocab_size: int = 0  # Rows of the embedding table; every id must lie below it
    bare_images: bool = False  # No markers, and text behind an image is tokenized as at the beginning of a text, as for LLaVA's models
    output_mode: str = "ids"  # "cells" writes an image in an answer in one position for each cell, as input_mode "sum" reads one

    def __post_init__(self) -> None:
        text_encoder(self.text_tokenizer)  # raises where the tokenizer cannot be used

    @property
    def encoder(self) -> TextEncoder:
        """The encoder of `text_tokenizer`."""
        return text_encoder(self.text_tokenizer)

    @property
    def placeholder(self) -> int:
        """An id for positions at which features replace the embedding; any that is no marker."""
        taken = self.markers.ids() if self.markers is not None else ()
        return next(index for index in range(len(taken) + 1) if index not in taken)

    def build(
        self,
        turns: Sequence[str | None],
        runs: Sequence[Any] = (),
        *,
        input_mode: str = "ids",
        isolate_turns: bool = False,
        open_image: bool = False,
        task: str = "",
        images: tuple[str, ...] = (),
    ) -> Example:
        """Tokenize a conversation: a training example, or a prompt when the last answer is None or missing.

        `turns`: human and gpt by turns; images stand in them as <image> (their ids are in `runs`) or as <vistok>...</vistok>. `runs`: ids
        (n,) for each <image>, in order: whole rows of an image. `input_mode`: "sum" compresses the images of the questions.
        `isolate_turns`: turns that share the images of the first question see only these and themselves (see `split_branches`).
        `open_image`: `turns` end with a question, and its answer is an image: the example ends where the next id of the image is to be
        written. The last of `runs` holds the ids that are given, (0,) for none. `task`, `images`: kept in the example. Raises ValueError:
        tags and runs that do not fit, ids that are no image of the layout or no ids of the vocabulary.
        """
        if open_image:
            (segments,) = self.segments([*turns, IMAGE_TAG], runs, input_mode=input_mode, isolate_turns=False)
            branches = [segments[: _last_image(segments) + 1]]
        else:
            branches = self.segments(turns, runs, input_mode=input_mode, isolate_turns=isolate_turns)
        return _join(branches, self.layout, task, images)

    def measure(self, turns: Sequence[str | None], runs: Sequence[Any], *, input_mode: str = "ids", isolate_turns: bool = False) -> int:
        """Return the number of tokens that `build` would give, with the same errors."""
        branches = self.segments(turns, runs, input_mode=input_mode, isolate_turns=isolate_turns)
        return sum(len(segment.ids) for branch in branches for segment in branch)

    def segments(self, turns: Sequence[str | None], runs: Sequence[Any], *, input_mode: str, isolate_turns: bool) -> list[list[Segment]]:
        """Return the segments of the common beginning and of each branch; one list for a conversation without branches."""
        if input_mode not in INPUT_MODES:
            raise ValueError(f"input_mode is '{input_mode}'; known: {', '.join(INPUT_MODES)}")
        turns = [turn if turn is None else turn.replace(NOT_BEGUN, "") for turn in turns]
        num_tags = sum(turn.count(IMAGE_TAG) for turn in turns if turn is not None)
        if num_tags != len(runs):
            raise ValueError(f"{num_tags} {IMAGE_TAG} in the conversation, {len(runs)} images")
        alone = split_branches(turns) if isolate_turns else None
        if alone is None:
            return [list(self._render(turns, iter(runs), input_mode))]
        whole = [list(self._render(branch, iter(runs), input_mode)) for branch in alone]
        shared = _last_image(whole[0]) + (1 if self.bare_images else 2)  # the marker behind the last image too
        return [whole[0][:shared], *(branch[shared:] for branch in whole)]

    def _render(self, turns: Sequence[str | None], runs: Iterator[Any], input_mode: str) -> Iterator[Segment]:
        encoder = self.encoder
        prefix, after_special = True, encoder.prefix_after_special
        if self.template.adds_bos and encoder.bos_id is not None:
            yield Segment([encoder.bos_id])  # `prefix` stays True: this start token does not change how text is tokenized
        for part in self.template.render(turns):
            if part.kind == END:
                yield Segment([self.template.end_id(self.text_tokenizer)], part.learned)
                prefix = after_special
            elif part.kind == START and encoder.bos_id is not None:
                yield Segment([encoder.bos_id])
                prefix = after_special
            elif part.kind == CONTROL:
                ids = encoder.encode(part.text, prefix=prefix, control=True)
                yield Segment(ids)
                prefix = after_special and bool(ids) and ids[-1] in encoder.special_ids
            elif part.kind == TEXT:
                for words in re.split(f"({IMAGE.pattern})", part.text):
                    if IMAGE.fullmatch(words):
                        run = np.asarray(next(runs) if words == IMAGE_TAG else read_run(words), dtype=np.int64)
                        yield from self._image(run, part.learned, mode=self.output_mode if part.learned else input_mode)
                        prefix = self.bare_images or after_special
                    elif words:
                        yield Segment(encoder.encode(words, prefix=prefix and not part.learned), part.learned)
                        prefix = False

    def _image(self, ids: np.ndarray, learned: bool, *, mode: str) -> Iterator[Segment]:
        """Yield marker, ids, marker. ValueError for ids that are no rows of an image of this vocabulary."""
        if self.bare_images:
            yield Segment(ids, learned, image=True)
            return
        markers = self.markers
        if markers is None:
            raise ValueError("the conversation holds an image, but there are no markers for images")
        if len(ids) and self.layout is not None:
            self.layout.rows_of(len(ids))
        if len(ids) and self.vocab_size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"image ids range from {ids.min()} to {ids.max()}, but the language model has {self.vocab_size} tokens")
        if not {*markers.ids()}.isdisjoint(ids.tolist()):
            raise ValueError(f"an image holds the id of a marker ({markers.ids()}); its ids are of another vocabulary")
        extra = None
        if mode != "ids":
            if self.layout is None:
                name = "output_mode" if learned else "input_mode"
                raise ValueError(f"{name} is '{mode}', but the layout of the ids is not known; name the image tokenizer or a store of ids")
            rows = ids.reshape(-1, self.layout.cell_length)
            ids, extra = rows[:, 0], rows[:, 1:]
        compressed = mode == "sum"
        yield Segment([markers.compressed_start if compressed else markers.image_start], learned)
        yield Segment(ids, learned, image=True, extra=extra)
        yield Segment([markers.compressed_end if compressed else markers.image_end], learned)


def split_branches(turns: Sequence[str | None]) -> list[list[str | None]] | None:
    """Split a conversation about the images of its first question into one conversation per round: images, question, answer.

    The images move to the front, as in LLaVA. None for a single round, no image in the first question, or images elsewhere.
    """
    pairs = rounds(turns)
    pictures = IMAGE.findall(pairs[0][0])
    elsewhere = any(IMAGE.search(text) for text in turns[1:] if text is not None)
    if len(pairs) < 2 or not pictures or elsewhere:
        return None
    front = "\n".join(pictures)
    questions = [IMAGE.sub("", pairs[0][0]).strip(), *(question for question, _ in pairs[1:])]
    return [[f"{front}\n{question}", answer] for question, (_, answer) in zip(questions, pairs, strict=True)]


def _last_image(segments: list[Segment]) -> int:
    return max(number for number, segment in enumerate(segments) if segment.image)


def _join(branches: list[list[Segment]], layout: Layout | None, task: str, images: tuple[str, ...]) -> Example:
    segments = [(number, segment) for number, branch in enumerate(branches) for segment in branch]
    sizes = [len(segment.ids) for _, segment in segments]
    starts = np.cumsum([0, *sizes])

    def spread(values: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values), sizes))

    ids = torch.from_numpy(np.concatenate([np.asarray(segment.ids, dtype=np.int64) for _, segment in segments]))
    compressed = [(start, segment.extra) for start, (_, segment) in zip(starts, segments, strict=False) if segment.extra is not None]
    width = layout.cell_length - 1 if layout is not None else 0
    extra_ids = np.concatenate([np.empty((0, width), dtype=np.int64), *(extra for _, extra in compressed)])
    extra_at = np.concatenate([np.empty(0, dtype=np.int64), *(start + np.arange(len(extra)) for start, extra in compressed)])
    labels = torch.where(spread([segment.learned for _, segment in segments]), ids, IGNORED)
    is_image, branch = spread([segment.image for _, segment in segments]), spread([number for number, _ in segments]).long()
    return Example(ids, labels, is_image, torch.from_numpy(extra_ids), torch.from_numpy(extra_at), branch, task, images)


GREEN, GREY, RESET = "\033[1;32m", "\033[90m", "\033[0m"
FROM, TO = "⟦", "⟧"


def format_example(example: Example, text_tokenizer: Any, *, colour: bool = False) -> str:
    """Return an example as text: learned text in brackets, or green among grey, and each run of image ids as its length."""
    encoder, compressed = text_encoder(text_tokenizer), set(example.extra_at.tolist())
    kinds = zip((example.labels != IGNORED).tolist(), example.is_image.tolist(), example.branch.tolist(), strict=True)
    parts, start, before = [], 0, 0
    for (learned, image, branch), stretch in groupby(kinds):
        end = start + len(list(stretch))
        words = encoder.decode(example.input_ids[start:end].tolist())
        if image:
            words = f"({end - start} {'cells' if start in compressed else 'ids'})"
        opened, closed = (GREEN if learned else GREY, RESET) if colour else ((FROM, TO) if learned else ("", ""))
        header = f"\n--- turn {branch} ---\n" if branch not in (0, before) else ""
        parts.append(f"{header}{opened}{words}{closed}")
        start, before = end, branch
    return "".join(parts).replace(f"{TO}{FROM}", "")


def preview(examples: Iterable[Example], text_tokenizer: Any, *, count: int) -> None:
    """Print the first `count` examples with the number of their tokens, in colour on a terminal."""
    for number, example in enumerate(islice(examples, count)):
        targets = f"{example.num_text_targets} words or marks and {example.num_image_targets} image ids learned"
        print(f"=== {number}: {example.task or 'no task'}, {len(example)} tokens, {targets}")
        print(format_example(example, text_tokenizer, colour=sys.stdout.isatty()))
