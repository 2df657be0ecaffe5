"""Captions -> images: batches of requests, guided, seeded, completed or decompressed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from unicode.annotations.templates import TEMPLATES, TEXT_TO_IMAGE, UNCONDITIONAL, fill_template
from unicode.generate.engine import CachedDecoder, ImageHead, sample_image_tokens
from unicode.generate.sampling import Sampling
from unicode.ids.layout import Layout
from unicode.images.dataset import DataConfig
from unicode.images.decode import to_uint8
from unicode.llm.collate import collate, sum_inputs
from unicode.llm.examples import Example, ExampleBuilder
from unicode.llm.load import LanguageModel
from unicode.tokenizer.model import inference_precision

NOTHING = np.empty(0, dtype=np.int64)
CAPTION_TEMPLATE = TEMPLATES[TEXT_TO_IMAGE][0]
FREE_QUESTION = TEMPLATES[UNCONDITIONAL][0]
"""What the branch without the prompt is asked, where drawing is guided."""


@dataclass(frozen=True, eq=False)
class DrawRequest:
    """One picture, or some rows of one, to be drawn.

    Raises:
        ValueError: the question is empty.
    """

    question: str
    """What the user says, in full; runs of ids may stand in it."""
    seed: int = 0
    """Of the sampling; the same seed and question give the same picture in every batch."""
    given: np.ndarray = field(default_factory=lambda: NOTHING)
    """(n,) the first ids of the answer, in whole rows: they are kept as they are."""
    count: int = 0
    """How many ids to draw after the given ones; 0: the rest of the image."""
    compressed: bool = False
    """Whether runs in the question are read as compressed images, one position per cell."""
    history: tuple[str, ...] = ()
    """Earlier turns of the conversation, question, answer, question, answer."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("the prompt is empty; say what is to be drawn")


@dataclass(frozen=True, eq=False)
class Drawing:
    """What was drawn, or why not."""

    ids: np.ndarray
    """(n,) int64 ids in id order, given ones included; empty where there is an error."""
    seconds: float
    """Of the batch, divided by its pictures."""
    error: str = ""


def caption_request(caption: str, *, seed: int = 0, template: str = CAPTION_TEMPLATE) -> DrawRequest:
    """A request for a picture of some words, put into a template that has a slot {caption}.

    Raises:
        ValueError: no words, or a template that has no such slot.
    """
    if not caption.strip():
        raise ValueError("the prompt is empty; say what is to be drawn")
    try:
        question = fill_template(template, caption=caption)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"template '{template}' cannot be filled in; its only slot is {{caption}}") from error
    return DrawRequest(question, seed=seed)


class ImageSampler:
    """Draws with one language model; keeps the rows of its head that belong to images, so make it once.

    Args:
        model: one that writes image ids.
        sampling: how ids are drawn; `guidance` other than 1 doubles the batch.
        cache, compiled: as `CachedDecoder`.

    Raises:
        ValueError: the model writes no image ids, or its image tokenizer is another one than it was trained with.
        FileNotFoundError: its image tokenizer is not there.
    """

    def __init__(self, model: LanguageModel, *, sampling: Sampling | None = None, cache: str = "dynamic", compiled: bool = False) -> None:
        if model.reads_pixels or model.layout is None or model.markers is None:
            missing = "ids of images" if model.layout is None else "markers around images"
            reason = "it reads pixels" if model.reads_pixels else f"it was trained without {missing}"
            raise ValueError(f"this model cannot draw: {reason}; train one with: bash scripts/finetune_visual_text_lora.sh")
        self.model, self.layout = model, model.layout
        self.sampling = sampling or Sampling()
        self.decoder = CachedDecoder(model.lm, cache=cache, compiled=compiled)
        self.head = ImageHead(self.decoder, model.images.row_ids, self.layout, markers=model.markers)
        self._builder = ExampleBuilder(model.template, model.text, model.markers, self.layout, self.decoder.vocab_size)

    def prompt(self, request: DrawRequest) -> Example:
        """What the model reads before it draws: the question, the start marker, the given ids.

        Raises:
            ValueError: given ids that are no rows of an image, or a prompt that leaves no room for the picture in the context.
        """
        self.layout.rows_of(len(request.given) + self._count(request))
        if self._count(request) < 1:
            raise ValueError(f"{len(request.given)} ids are given, which is the whole image; nothing is left to draw")
        example = self._open_answer(request)
        needed = len(example) + self._count(request)
        if needed > self.model.context:
            room = self.model.context - needed + len(example)
            reason = f"the prompt has {len(example)} tokens; with {self._count(request)} ids to draw, {room} fit into the model's context"
            raise ValueError(f"{reason} of {self.model.context}; shorten it")
        return example

    def draw(self, requests: Sequence[DrawRequest]) -> list[Drawing]:
        """Draw one batch; all requests for the same number of ids.

        Raises:
            ValueError: as `prompt`.
        """
        start = time.perf_counter()
        count = self._count(requests[0])
        assert all(self._count(request) == count for request in requests), "one batch, one number of ids"
        examples = [self.prompt(request) for request in requests]
        if self.sampling.guided:
            examples += [self._open_answer(replace(request, question=FREE_QUESTION, history=())) for request in requests]
        batch = {name: part.to(self.decoder.device) for name, part in collate(examples, pad_id=self.model.pad_id, side="left").items()}
        with torch.no_grad():
            summed = sum_inputs(self.decoder.embedding, batch) if len(batch["extra_at"]) else None
        inputs = {"input_ids": batch["input_ids"]} if summed is None else {"inputs_embeds": summed}
        features = self.decoder.start(batch["attention_mask"], **inputs, max_new=count)
        places = torch.tensor([len(request.given) for request in requests], device=self.decoder.device)
        seeds = torch.tensor([request.seed for request in requests], device=self.decoder.device)
        ids = sample_image_tokens(
            self.decoder, features, self.head, places=places, count=count, sampling=self.sampling, seeds=seeds, step=0
        )
        drawn = ids.cpu().numpy()
        seconds = (time.perf_counter() - start) / len(requests)
        return [Drawing(np.concatenate([request.given, row]), seconds) for request, row in zip(requests, drawn, strict=True)]

    def pictures(self, ids: np.ndarray) -> np.ndarray:
        """Ids (B, n) in id order, whole pictures or their first rows -> (B, H, W, 3) uint8.

        Raises:
            ValueError: ids that are no whole rows, or no ids of the image tokenizer.
        """
        return decode_pictures(self.model, ids)

    def _count(self, request: DrawRequest) -> int:
        return request.count or self.layout.num_codes - len(request.given)

    def _open_answer(self, request: DrawRequest) -> Example:
        """The conversation, cut where the next id comes."""
        mode = "sum" if request.compressed else self.model.card.input_mode
        return self._builder.build([*request.history, request.question], [request.given], input_mode=mode, open_image=True)


def draw_images(
    model: LanguageModel,
    requests: Sequence[DrawRequest],
    *,
    sampling: Sampling | None = None,
    batch_size: int = 8,
    cache: str = "dynamic",
    compiled: bool = False,
) -> Iterator[tuple[int, Drawing]]:
    """Draw any number of requests, batch after batch in their order.

    Yields:
        (place in `requests`, drawing), each place once. A request that cannot be drawn has `Drawing.error`; the others are drawn.

    Raises:
        ValueError, FileNotFoundError: as `ImageSampler`.
    """
    sampler = ImageSampler(model, sampling=sampling, cache=cache, compiled=compiled)
    for start in range(0, len(requests), batch_size):
        yield from draw_batch(sampler, dict(enumerate(requests[start : start + batch_size], start)))


def draw_batch(sampler: ImageSampler, requests: dict[int, DrawRequest]) -> Iterator[tuple[int, Drawing]]:
    """Draw requests by place, those of one number of ids together; errors become drawings that say them."""
    groups: dict[int, list[int]] = {}
    for place, request in requests.items():
        try:
            sampler.prompt(request)
        except ValueError as error:
            yield place, Drawing(NOTHING, 0.0, str(error))
            continue
        groups.setdefault(sampler._count(request), []).append(place)
    for places in groups.values():
        yield from zip(places, sampler.draw([requests[place] for place in places]), strict=True)


def decode_pictures(model: LanguageModel, ids: np.ndarray) -> np.ndarray:
    """Ids (B, n) in id order, whole pictures or their first rows -> (B, H, W, 3) uint8.

    Raises:
        ValueError: ids that are no whole rows, or no ids of the image tokenizer.
    """
    assert model.layout is not None
    layout: Layout = model.layout
    if ids.shape[-1] != layout.num_codes:
        layout = layout.resized(layout.rows_of(ids.shape[-1]), layout.grids[0][1])
    with inference_precision("float32", model.device):
        codes = model.images.from_ids(torch.tensor(ids).to(model.device), layout=layout)
        return to_uint8(model.images.decode(codes, layout=layout)).permute(0, 2, 3, 1).cpu().numpy()


@dataclass
class GenerationConfig:
    """Prompts, sampling, and the pictures to compare with.

    Raises:
        ValueError: a value out of range, or a template with an unknown slot.
    """

    prompts: str = ""
    """A file (.txt, .jsonl, LLaVA .json), shapes:val, or unconditional:NUMBER."""
    template: str = CAPTION_TEMPLATE
    """What the user says about a description, which takes the place of {caption}; '{caption}' alone leaves it as it is."""
    samples: int = 1
    """Pictures per prompt, each with a seed of its own."""
    limit: int = 0
    """The first so many prompts only; 0: all."""
    seed: int = 0
    """Of the sampling; a picture's own seed is drawn from it and the id of the prompt."""
    batch_size: int = 16
    """Pictures drawn at a time; guidance doubles the rows."""
    temperature: float | None = None
    """Of the image ids; 0 takes the likeliest. Left out: 1, and 0 for decompression."""
    top_k: int = 0
    """Draw each id among so many of the likeliest; 0: all."""
    top_p: float = 1.0
    """Draw each id among the likeliest that together have this probability."""
    guidance: float = 1.0
    """Classifier-free guidance; 1: none. Above 1 the model must have been trained with unconditional pictures too."""
    cache: str = "dynamic"
    """Key-value cache: "dynamic" or "static"."""
    compiled: bool = False
    """Compile the decoding step (with the static cache; worth it for many pictures on a GPU)."""
    splits: int = 10
    """Groups of the inception score."""
    data: DataConfig = field(default_factory=DataConfig)
    """Pictures to compare with (FID); with `name: shapes` also the world of the prompts."""
    published: str = ""
    """What is known of published figures under this protocol; for the reader."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("limit", 0), ("batch_size", 1), ("splits", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        caption_request("words", template=self.template)  # a template without the slot ends here
        self.sampling()

    def sampling(self, default_temperature: float = 1.0) -> Sampling:
        """How ids are drawn. ValueError for values out of range."""
        temperature = default_temperature if self.temperature is None else self.temperature
        return Sampling(temperature, self.top_k, self.top_p, self.guidance)
