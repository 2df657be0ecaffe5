"""A language model for inference: turns and images -> prompts -> batches; tokens -> text.

Models of this project read an image as ids of their vocabulary, in `input_ids`; models of the LLaVA kind read pixels through a tower
and a projector. The difference is confined to `read_pictures`, `prompt` and `inputs`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unicode.ids.layout import Layout
from unicode.ids.store import Store
from unicode.ids.text import write_run
from unicode.images.decode import eval_transform, to_float
from unicode.images.lookup import square_pixels
from unicode.llm.card import Card, check_tokenizer
from unicode.llm.collate import collate, sum_inputs
from unicode.llm.examples import Example, ExampleBuilder
from unicode.llm.llava import LlavaModel
from unicode.llm.model import context_length, table_rows
from unicode.llm.template import Template, get_template, text_encoder
from unicode.llm.vocabulary import Markers
from unicode.tokenizer.load import load_tokenizer
from unicode.tokenizer.model import ImageTokenizer, inference_precision

Content = np.ndarray | Tensor
"""What is read for one image: ids (n,) int64, or pixels (3, S, S) uint8."""


@dataclass(frozen=True)
class Prompt:
    """A conversation whose last answer is to be written.

    Attributes:
        example: its tokens.
        pixels: (m, 3, S, S) uint8, the images at its placeholders, where the model reads pixels.
    """

    example: Example
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.example)


@dataclass
class LanguageModel:
    """A language model in evaluation mode with its prompts and its image tokenizer; made by `unicode.llm.load.open_model`.

    Attributes:
        card: content of unicode.json.
        lm: a causal language model of transformers, a PEFT model of one, or a `LlavaModel` around one.
        text: its text tokenizer.
        device: where it computes.
        fingerprint: 16 hexadecimal digits that tell trained models apart.
        tokenizer_path: folder of the image tokenizer; empty: there is none.
        markers: ids of the tokens around images; None for a model that reads none.
        template: how turns are written as text.
        layout: of the ids of an image; None where the model reads pixels or knows no image ids.
    """

    card: Card
    lm: Any
    text: Any
    device: torch.device
    fingerprint: str
    tokenizer_path: str = ""
    markers: Markers | None = field(init=False)
    template: Template = field(init=False)
    layout: Layout | None = field(init=False)

    def __post_init__(self) -> None:
        self.markers, self.layout = self.card.marker_ids, self.card.id_layout
        self.template = get_template(self.card.template, self.text)
        bare = self.reads_pixels and self.markers is None
        self._builder = ExampleBuilder(self.template, self.text, self.markers, self.layout, self.vocab_size, bare)

    @property
    def reads_pixels(self) -> bool:
        """Whether images are read as pixels through a tower, rather than as ids."""
        return isinstance(self.lm, LlavaModel)

    @property
    def causal(self) -> Any:
        """The causal language model that generates: `lm`, or the one inside where it reads pixels."""
        return self.lm.lm if self.reads_pixels else self.lm

    @cached_property
    def context(self) -> int:
        """Longest sequence in tokens, prompt and answer together."""
        return context_length(self.lm)

    @cached_property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return table_rows(self.lm)

    @cached_property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer: the template's, and those that the base model itself ends with."""
        own = self.lm.config.get_text_config().eos_token_id
        return sorted({self.template.end_id(self.text), *(own if isinstance(own, list) else [own] if own is not None else [])})

    @property
    def pad_id(self) -> int:
        """Token of the padding; nothing reads it."""
        return int(self.text.pad_token_id if self.text.pad_token_id is not None else self.end_ids[0])

    @cached_property
    def images(self) -> ImageTokenizer:
        """The image tokenizer, opened at the first access.

        Raises:
            FileNotFoundError: the folder that the card names does not exist.
            ValueError: it is another one than the model was trained with, its ids stand in another order, or the model reads pixels.
        """
        if not self.tokenizer_path:
            kind = "reads pixels" if self.reads_pixels else "was trained without one being named"
            raise ValueError(f"this model has no image tokenizer: it {kind}; name one with --image-tokenizer DIR where it reads ids")
        if not Path(self.tokenizer_path).is_dir():
            raise FileNotFoundError(f"no image tokenizer {self.tokenizer_path}, with which the model was trained; give --image-tokenizer")
        tokenizer = load_tokenizer(self.tokenizer_path).to(self.device)
        check_tokenizer(self.card, fingerprint=tokenizer.fingerprint, layout=tokenizer.layout, path=self.tokenizer_path)
        top = int(tokenizer.row_ids.max())
        if top >= self.vocab_size:
            reason = f"writes ids up to {top}, but the language model has {self.vocab_size} tokens"
            raise ValueError(f"{self.tokenizer_path} {reason}; take the tokenizer whose codebook was made from this model")
        return tokenizer

    def check_store(self, store: Store) -> None:
        """Raise ValueError if the ids of a store are not those that this model reads."""
        if self.reads_pixels:
            raise ValueError(f"{store.path} holds ids, but this model reads pixels; give the folder of the images instead")
        check_tokenizer(self.card, fingerprint=store.spec.tokenizer, layout=store.layout, path=store.path)
        if store.spec.vocab_size > self.vocab_size:
            raise ValueError(f"{store.path} has ids up to {store.spec.vocab_size - 1}, the language model only {self.vocab_size} tokens")

    def check_ids(self, ids: np.ndarray) -> None:
        """Raise ValueError if `ids` is not a whole image for this model."""
        if self.reads_pixels:
            raise ValueError("this model reads pixels; give an image in place of ids")
        if self.layout is not None and ids.shape != (self.layout.num_codes,):
            raise ValueError(f"an image of shape {ids.shape}; {self.layout.describe()} has ({self.layout.num_codes},) ids")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"image ids from {ids.min()} to {ids.max()}; the language model has {self.vocab_size} tokens")

    @cached_property
    def _transform(self) -> tuple[Callable[[Image.Image], Tensor], int]:
        """The transform of an image to (3, S, S) uint8, and S."""
        if self.reads_pixels:
            return self.lm.tower.transform, self.lm.tower.image_size
        side = self.images.config.image_size
        return eval_transform(side), side

    @property
    def image_size(self) -> int:
        """Side of the square images that are read, in pixels."""
        return self._transform[1]

    def picture(self, image: Image.Image | bytes) -> Tensor:
        """Return an image or the content of an image file as (3, S, S) uint8, as it is encoded into a store; may be called from threads.

        Raises:
            UnreadableImageError: not an image, damaged, too large or too thin.
        """
        transform, side = self._transform
        return square_pixels(image, transform=transform, side=side)

    def read_pictures(self, pixels: Tensor) -> list[Content]:
        """Return what the model reads for each of (B, 3, S, S) uint8 images: ids (N,), or the pixels themselves."""
        return list(pixels) if self.reads_pixels else list(self.image_ids(to_float(pixels)).cpu().numpy())

    def image_ids(self, images: Tensor) -> Tensor:
        """Return (B, N) int64 vocabulary ids in id order of (B, 3, H, W) images in [-1, 1], computed in float32 as in a store."""
        with inference_precision("float32", self.device):
            return self.images.to_ids(self.images.encode(images.to(self.device)))

    def prompt(self, turns: Sequence[str | None], contents: Sequence[Content] = ()) -> Prompt:
        """Tokenize a conversation whose last answer is to be written.

        Args:
            turns: human and gpt by turns, ends with a question; an <image> tag for each image.
            contents: what is read for each image, in the order of the tags; see `read_pictures`.

        Raises:
            ValueError: tags that do not fit the images, or ids that are no image.
        """
        if not self.reads_pixels:
            return Prompt(self._builder.build(turns, contents, input_mode=self.card.input_mode))
        places = np.full(self.lm.tower.num_features, self._builder.placeholder)
        example = self._builder.build(turns, [places] * len(contents))
        return Prompt(example, torch.stack([torch.as_tensor(content) for content in contents]) if len(contents) else None)

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return a batch of prompts, padded on the left, for `causal.generate` of transformers.

        Returns:
            attention_mask (B, T) with input_ids (B, T), or with inputs_embeds (B, T, D) where something other than rows of the
            table is read; in that case `generate` returns the new tokens alone.
        """
        batch = collate([prompt.example for prompt in prompts], pad_id=self.pad_id, side="left")
        batch = {name: value.to(self.device) for name, value in batch.items()}
        pixels = [prompt.pixels for prompt in prompts if prompt.pixels is not None]
        with torch.no_grad():
            if pixels:
                at = batch["is_image"].flatten().nonzero().flatten()
                read = {"inputs_embeds": self.lm.embed(batch["input_ids"], pixels=torch.cat(pixels), image_at=at)}
            elif len(batch["extra_at"]):
                read = {"inputs_embeds": sum_inputs(self.lm.get_input_embeddings(), batch)}
            else:
                read = {"input_ids": batch["input_ids"]}
        return {"attention_mask": batch["attention_mask"], **read}

    def read_text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens: images in it as <vistok>...</vistok>, other special tokens left out."""
        encoder = text_encoder(self.text)
        start, end = (self.markers.image_start, self.markers.image_end) if self.markers is not None else (-1, -1)
        parts: list[str] = []
        words: list[int] = []
        image: list[int] | None = None
        for token in ids:
            if token == start:
                image = []
            elif image is None:
                words += [token] if token not in encoder.special_ids else []
            elif token != end:
                image.append(token)
            else:
                parts += [encoder.decode(words), write_run(image)]
                words, image = [], None
        return "".join([*parts, encoder.decode(words)])
