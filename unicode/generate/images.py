"""Captions -> images: batches of requests, guided, seeded, completed or decompressed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from unicode.annotations.templates import TEMPLATES, TEXT_TO_IMAGE, UNCONDITIONAL, fill_caption
from unicode.generate.engine import CachedDecoder, ImageHead, sample_image_tokens
from unicode.generate.sampling import Sampling, merge_sampling
from unicode.images.dataset import DataConfig
from unicode.images.decode import to_uint8
from unicode.llm.card import SAMPLED
from unicode.llm.examples import Example, ExampleBuilder
from unicode.llm.load import LanguageModel, Prompt
from unicode.tokenizer.model import inference_precision

NOTHING = np.empty(0, dtype=np.int64)
CAPTION_TEMPLATE = TEMPLATES[TEXT_TO_IMAGE][0]
SEEDS_APART = 0x9E3779B97F4A7C15 - 2**64  # between the candidates of a picture
FREE_QUESTION = TEMPLATES[UNCONDITIONAL][0]  # The prompt of the unconditional branch of guidance


@dataclass(frozen=True, eq=False)
class DrawRequest:
    """One picture to draw. Raises ValueError: the question is empty."""

    question: str  # What the user says, in full; runs of ids may stand in it
    seed: int = 0  # Of the sampling; the same seed and question give the same picture in every batch
    given: np.ndarray = field(default_factory=lambda: NOTHING)  # (n,) first ids of the answer, in whole rows; they are kept
    compressed: bool = False  # Whether runs in the question are read as compressed images, one position per cell

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("the prompt is empty; say what is to be drawn")


@dataclass(frozen=True, eq=False)
class Drawing:
    """A drawn picture, or why there is none."""

    ids: np.ndarray  # (n,) int64 in id order, given ones included; empty where there is an error
    seconds: float  # Of the batch, divided by its pictures
    error: str = ""  # Why there is none


def caption_request(caption: str, *, seed: int = 0, template: str = "") -> DrawRequest:
    """A request for a picture of some words, put into a template that has a slot {caption}; "": `CAPTION_TEMPLATE`.

    Raises ValueError: no words, or a template that has no such slot.
    """
    if not caption.strip():
        raise ValueError("the prompt is empty; say what is to be drawn")
    return DrawRequest(fill_caption(template or CAPTION_TEMPLATE, caption), seed=seed)


def check_can_draw(model: LanguageModel) -> None:
    """Raise ValueError for a model that writes no image ids."""
    if model.reads_pixels or model.layout is None or model.markers is None:
        missing = "ids of images" if model.layout is None else "markers around images"
        reason = "it reads pixels" if model.reads_pixels else f"it was trained without {missing}"
        raise ValueError(f"this model cannot draw: {reason}; train one with: bash scripts/finetune_visual_text_lora.sh")
    if model.card.output_mode == "cells" and model.cell_head is None:
        raise ValueError("this model cannot draw: it writes cells and was opened without its cell head; open its folder with open_model")


class ImageSampler:
    """Draws with one language model; keeps the rows of its head that belong to images, so make it once.

    `sampling`: of ids, None: the one in the model's card; `guidance` other than 1 doubles the batch, `candidates` multiply it. `decoder`:
    of the model; None makes one. Raises ValueError: the model writes no image ids, or its image tokenizer is another one than it was
    trained with. Raises FileNotFoundError: its image tokenizer is not there.
    """

    def __init__(self, model: LanguageModel, *, sampling: Sampling | None = None, decoder: CachedDecoder | None = None) -> None:
        check_can_draw(model)
        assert model.layout is not None and model.markers is not None
        self.model, self.layout = model, model.layout
        self.sampling = sampling or merge_sampling(model.card.sampling)
        self.decoder = decoder or CachedDecoder(model.causal)
        self.head = ImageHead(self.decoder, model.images.row_ids, self.layout, markers=model.markers, cells=model.cell_head)
        known = (model.template, model.text, model.markers, self.layout, self.decoder.vocab_size)
        self._builder = ExampleBuilder(*known, output_mode=model.card.output_mode)

    def prompt(self, request: DrawRequest) -> Example:
        """Return what the model reads before it draws: the question, the start marker, the given ids.

        Raises ValueError: given ids that are no rows of an image, or a prompt that leaves no room for the picture in the context.
        """
        count = self._positions(request)
        if count < 1:
            raise ValueError(f"{len(request.given)} ids are given, which is the whole image; nothing is left to draw")
        example, context = self._open_answer(request), self.model.context
        if len(example) > context - count:
            room = f"with {count} positions to write, {context - count} fit into the model's context of {context}"
            raise ValueError(f"the prompt has {len(example)} tokens; {room}; shorten it")
        return example

    def draw(self, requests: Sequence[DrawRequest], tell: Callable[[int], object] | None = None) -> list[Drawing]:
        """Draw a batch. A request that cannot be drawn has `Drawing.error`; the others are drawn, those with as many given ids together.

        `tell`: called with the number of ids that these have so far, given ones included.
        """
        prompts: dict[int, Example] = {}
        drawings: dict[int, Drawing] = {}
        groups: dict[int, list[int]] = {}  # one number of ids, one group
        for place, request in enumerate(requests):
            try:
                prompts[place] = self.prompt(request)
                groups.setdefault(len(request.given), []).append(place)
            except ValueError as error:
                drawings[place] = Drawing(NOTHING, 0.0, str(error))
        for places in groups.values():
            drawn = self._draw([requests[place] for place in places], [prompts[place] for place in places], tell)
            drawings |= dict(zip(places, drawn, strict=True))
        return [drawings[place] for place in range(len(requests))]

    def _draw(self, requests: Sequence[DrawRequest], examples: list[Example], tell: Callable[[int], object] | None) -> list[Drawing]:
        start, count = time.perf_counter(), self._positions(requests[0])
        told = None if tell is None else lambda number: tell(len(requests[0].given) + number * self.head.position_ids)
        if self.sampling.guided:
            examples = examples + [self._open_answer(replace(request, question=FREE_QUESTION)) for request in requests]
        number = self.sampling.candidates if self.sampling.temperature else 1  # of the likeliest there is one
        read = 1 if self.decoder.can_select else number  # times that each prompt is read
        features = self.decoder.start(**self.model.inputs([Prompt(one) for one in examples for _ in range(read)]), max_new=count)
        if number > read:
            rows = torch.arange(len(features), device=features.device).repeat_interleave(number)
            self.decoder.select(rows, torch.ones_like(rows, dtype=torch.bool))
            features = features[rows]
        places = torch.full((len(requests) * number,), self.head.num_positions - count, device=features.device)
        seeds = (torch.tensor([[one.seed] for one in requests]) + torch.arange(number) * SEEDS_APART).flatten().to(features.device)
        ids = sample_image_tokens(
            self.decoder, features, self.head, places=places, count=count, sampling=self.sampling, seeds=seeds, step=0, tell=told
        )
        written = ids.cpu().numpy().reshape(len(requests), number, -1)
        drawn = [np.stack([np.concatenate([one.given, row]) for row in some]) for one, some in zip(requests, written, strict=True)]
        kept = [some[most_typical(decode_pictures(self.model, some)) if number > 1 else 0] for some in drawn]
        seconds = (time.perf_counter() - start) / len(requests)
        return [Drawing(ids, seconds) for ids in kept]

    def _positions(self, request: DrawRequest) -> int:
        """How many positions are to be written."""
        return (self.layout.num_codes - len(request.given)) // self.head.position_ids

    def _open_answer(self, request: DrawRequest) -> Example:
        mode = "sum" if request.compressed else self.model.card.input_mode
        return self._builder.build([request.question], [request.given], input_mode=mode, open_image=True)


def most_typical(pictures: np.ndarray) -> int:
    """The place of the picture, of (N, H, W, 3) uint8, with the least sum of squared distances to all of them; the first of equal ones."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float64)
    return int(((flat - flat.mean(0)) ** 2).sum(1).argmin())  # that sum is N |p - mean|^2, and what is the same for all


def decode_pictures(model: LanguageModel, ids: np.ndarray) -> np.ndarray:
    """Ids (B, n) in id order -> (B, H, W, 3) uint8. ValueError for ids that are not the image tokenizer's."""
    with inference_precision("float32", model.device):
        codes = model.images.from_ids(torch.tensor(ids).to(model.device), layout=model.layout)
        return to_uint8(model.images.decode(codes, layout=model.layout)).permute(0, 2, 3, 1).cpu().numpy()


@dataclass
class GenerationConfig:
    """Prompts, sampling, and the pictures to compare with. Raises ValueError: a value out of range, or a template with an unknown slot."""

    prompts: str = ""  # A file (.txt, .jsonl, LLaVA .json), shapes:val, or unconditional:NUMBER
    template: str = ""
    """What the user says about a description, which takes the place of {caption}; '{caption}' alone leaves it as it is. Left out: as the
    model was trained, else 'Draw a picture of "{caption}".'"""
    samples: int = 1  # Pictures per prompt, each with a seed of its own
    limit: int = 0  # The first so many prompts only; 0: all
    seed: int = 0  # Of the sampling; a picture's own seed is drawn from it and the id of the prompt
    batch_size: int = 16  # Pictures drawn at a time; guidance doubles the rows, candidates multiply them
    temperature: float | None = None
    """Of the image ids; 0 takes the likeliest. Left out, as the next three: the value in the model's card, else 1; decompression: 0."""
    top_k: int | None = None  # Draw each id among so many of the likeliest; 0: all, which is the default
    top_p: float | None = None  # Draw each id among the likeliest that together have this probability; 1: all, which is the default
    guidance: float | None = None
    """Classifier-free guidance; 1: none, which is the default. Above 1 the model must have been trained with unconditional pictures too."""
    candidates: int | None = None
    """Pictures drawn of each prompt, of which the one most like the others is kept; 1 by default. Above 1 it needs a temperature."""
    cache: str = "auto"
    """Key-value cache: "dynamic", "static", or "auto": static and compiled on a GPU for 8 batches and more, else dynamic."""
    compiled: bool = False  # Compile the decoding step (with the static cache; worth it for many pictures on a GPU)
    splits: int = 10  # Groups of the inception score
    data: DataConfig = field(default_factory=DataConfig)
    """Pictures to compare with (FID); with `name: shapes` also the world of the prompts."""
    published: str = ""  # What is known of published figures under this protocol; for the reader

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("limit", 0), ("batch_size", 1), ("splits", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        caption_request("words", template=self.template)  # a template without the slot ends here
        self.sampling()

    def sampling(self, stored: Mapping[str, Any] | None = None, *, guided: bool = True) -> Sampling:
        """How ids are drawn by a model whose card has `stored`; arguments and errors as `merge_sampling`."""
        return merge_sampling(stored, {name: getattr(self, name) for name in SAMPLED}, guided=guided)
