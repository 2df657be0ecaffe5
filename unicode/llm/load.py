"""Language models for inference: a folder -> `LanguageModel`, which turns conversations into batches and tokens into text.

Models of this project read an image as ids of their vocabulary, in `input_ids`; models of the LLaVA kind read pixels through a tower
and a projector. The difference is confined to `read_pictures`, `prompt` and `inputs`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from unicode.common.distributed import choose_device
from unicode.common.hub import find_folder
from unicode.ids.layout import Layout
from unicode.ids.store import Store
from unicode.ids.text import write_run
from unicode.images.decode import eval_transform, to_float
from unicode.images.lookup import square_pixels
from unicode.llm.card import FILE as CARD_FILE
from unicode.llm.card import Card, check_base, check_tokenizer, fingerprint_base, read_card
from unicode.llm.cell_head import CellHead, open_cell_head
from unicode.llm.collate import collate, sum_inputs
from unicode.llm.examples import Example, ExampleBuilder
from unicode.llm.llava import PROJECTOR_FILE, LlavaModel, VisionSettings, build_projector, build_tower, load_projector_
from unicode.llm.llava_folder import is_llava_folder, open_llava_folder
from unicode.llm.model import add_adapter, context_length, fit_embeddings_, open_base, open_description, table_rows
from unicode.llm.template import CHAT, Template, get_template, text_encoder
from unicode.llm.vocabulary import Markers, choose_markers, open_text_tokenizer
from unicode.tokenizer.load import load_tokenizer
from unicode.tokenizer.model import ImageTokenizer, inference_precision

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SAMPLES, SAMPLE_BYTES = 64, 4096  # of each file of weights that go into a fingerprint
Content = np.ndarray | Tensor  # What is read for one image: ids (n,) int64, or pixels (3, S, S) uint8


@dataclass(frozen=True)
class Prompt:
    """The tokens of a conversation whose last answer is to be written."""

    example: Example
    pixels: Tensor | None = None  # (m, 3, S, S) uint8, the images at the placeholders, where the model reads pixels

    def __len__(self) -> int:
        return len(self.example)


@dataclass
class LanguageModel:
    """A language model in evaluation mode with its prompts and its image tokenizer; made by `open_model`."""

    card: Card  # Content of unicode.json
    lm: Any  # A causal language model of transformers, a PEFT model of one, or a `LlavaModel` around one
    text: Any  # Its text tokenizer
    device: torch.device  # Where it computes
    fingerprint: str  # 16 hexadecimal digits that tell trained models apart
    tokenizer_path: str = ""  # Folder of the image tokenizer; empty: there is none
    folder: Path = Path()  # That it was read from
    cell_head: CellHead | None = None  # Writes the ids of a cell; None for output_mode "ids"
    markers: Markers | None = field(init=False)  # Ids of the tokens around images; None for a model that reads none
    template: Template = field(init=False)  # How turns are written as text
    layout: Layout | None = field(init=False)  # Of the ids of an image; None where the model reads pixels or knows no image ids

    def __post_init__(self) -> None:
        self.markers, self.layout = self.card.markers, self.card.layout
        self.template = get_template(self.card.template, self.text)
        bare = self.reads_pixels and self.markers is None
        known = (self.template, self.text, self.markers, self.layout, self.vocab_size)
        self._builder = ExampleBuilder(*known, bare, output_mode=self.card.output_mode)

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

        Raises FileNotFoundError: the folder that the card names does not exist. Raises ValueError: it is another one than the model was
        trained with, its ids stand in another order, or the model reads pixels.
        """
        if not self.tokenizer_path:
            kind = "reads pixels" if self.reads_pixels else "was trained without one being named"
            raise ValueError(f"this model has no image tokenizer: it {kind}; name one with --image-tokenizer DIR where it reads ids")
        if not (folder := find_folder(self.tokenizer_path, otherwise="give --image-tokenizer")).is_dir():
            raise FileNotFoundError(f"no image tokenizer {self.tokenizer_path}, with which the model was trained; give --image-tokenizer")
        tokenizer = load_tokenizer(folder).to(self.device)
        check_tokenizer(self.card, fingerprint=tokenizer.fingerprint, layout=tokenizer.layout, path=self.tokenizer_path)
        if (top := int(tokenizer.row_ids.max())) >= self.vocab_size:
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

        Raises UnreadableImageError: not an image, damaged, too large or too thin.
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

        `turns`: human and gpt by turns, ends with a question; an <image> tag for each image. `contents`: what is read for each image, in
        the order of the tags; see `read_pictures`. Raises ValueError: tags that do not fit the images, or ids that are no image.
        """
        if not self.reads_pixels:
            return Prompt(self._builder.build(turns, contents, input_mode=self.card.input_mode))
        places = np.full(self.lm.tower.num_features, self._builder.placeholder)
        example = self._builder.build(turns, [places] * len(contents))
        return Prompt(example, torch.stack([torch.as_tensor(content) for content in contents]) if len(contents) else None)

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return a batch of prompts, padded on the left, for `causal.generate` of transformers.

        Returns attention_mask (B, T) with input_ids (B, T), or with inputs_embeds (B, T, D) where something other than rows of the table is
        read; in that case `generate` returns the new tokens alone.
        """
        laid = collate([prompt.example for prompt in prompts], pad_id=self.pad_id, side="left")
        batch = {name: value.to(self.device) for name, value in laid.items()}
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
        start, end = self.markers.ids()[:2] if self.markers is not None else (-1, -1)
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


def open_model(
    path: str | Path,
    *,
    base: str = "",
    image_tokenizer: str = "",
    device: str | torch.device = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    merge: bool = False,
) -> LanguageModel:
    """Open a language model for inference.

    `path`: a run folder of `unicode.run.train_llm`, a folder of `unicode.run.merge_lora`, one that LLaVA's code wrote, or a plain model,
    which then answers text; or org/name@revision of a hub. `base`: the model that an adapter was trained on, if it has moved since the
    training. `image_tokenizer`: the same for the image tokenizer, or for the tower of a model that reads pixels. `device`: "auto" is a GPU
    where there is one. `dtype`: "float32", "bfloat16", "float16", or "auto": bfloat16 on a GPU, float32 elsewhere. `attention`: as
    `unicode.llm.model.open_base`. `merge`: add an adapter to the weights: answers are faster, logits differ by rounding. Raises
    FileNotFoundError: nothing there, or the base model or a file of weights is missing. Raises ValueError: an adapter of another base
    model, a damaged file, parts that do not fit each other.
    """
    folder, chosen = find_folder(path, otherwise="give a run folder of train_llm"), choose_device(device)
    if dtype == "auto":
        dtype = "float32" if chosen.type != "cuda" else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    options = {"dtype": dtype, "attention": attention, "device": chosen.type}
    tokenizer_path, cell_head = image_tokenizer, None
    if (folder / CARD_FILE).is_file():
        card = read_card(folder)
        lm, text = _open_weights(folder, card, base=base, merge=merge, options=options)
        if card.output_mode == "cells":
            cell_head = open_cell_head(folder, card, lm).to(device=chosen, dtype=lm.dtype).eval()
        if card.vision is not None:
            lm = _add_vision(lm, card.vision, folder, tower=image_tokenizer)
        tokenizer_path = image_tokenizer or _locate((card.image_tokenizer or {}).get("path", ""), folder)
    elif is_llava_folder(folder):
        lm, text, card = open_llava_folder(folder, base=base, tower=image_tokenizer, options=options)
        tokenizer_path = ""
    else:
        lm, text, card = _open_plain(folder, image_tokenizer=image_tokenizer, options=options)
    causal: Any = lm.lm if isinstance(lm, LlavaModel) else lm
    for part in (causal, causal.get_base_model() if hasattr(causal, "peft_config") else causal):
        part.generation_config = GenerationConfig()  # sampling depends on the arguments of a call, not on defaults of the base model
    if not getattr(lm, "is_quantized", False):
        lm = lm.to(chosen)
    fingerprint = digest_folder(folder, "" if card.base == str(folder) else card.base_fingerprint)
    return LanguageModel(card, lm.eval(), text, chosen, fingerprint, tokenizer_path, folder, cell_head)


def open_without_weights(path: str | Path, *, image_tokenizer: str = "", device: str | torch.device = "auto") -> LanguageModel:
    """Open what turns conversations into ids and ids into pictures; the weights of the language model are read by an engine elsewhere.

    `path`: a folder of `unicode.run.merge_lora`. Errors as `open_model`; ValueError also where the folder holds an adapter.
    """
    folder = find_folder(path, otherwise="give a folder of merge_lora")
    card = read_card(folder)
    if not (folder / "config.json").is_file() or card.kind == "llava":
        raise ValueError(f"{folder} is no merged model that reads ids, which engines serve; make one: python -m unicode.run.merge_lora")
    config, text = open_description(folder)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    path = image_tokenizer or _locate((card.image_tokenizer or {}).get("path", ""), folder)
    return LanguageModel(card, lm, text, choose_device(device), digest_folder(folder, card.base_fingerprint), path, folder)


def open_merged(path: str | Path, *, base: str = "", dtype: str = "auto") -> tuple[Any, Any, Card]:
    """Open a run folder's base model with its adapter added to the weights, whose "auto" `dtype` is the base model's.

    Returns the plain language model on the CPU, its text tokenizer, and the card. Errors as `open_model`; ValueError also where there is no
    adapter.
    """
    folder = Path(path)
    card = read_card(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds no adapter ({ADAPTER_CONFIG}); its weights need no merging")
    lm, text = _open_weights(folder, card, base=base, merge=True, options={"dtype": dtype, "device": "cpu"})
    if card.output_mode == "cells":
        open_cell_head(folder, card, lm)  # raises where it is not the one of the card
    return lm, text, card


def _open_weights(folder: Path, card: Card, *, base: str, merge: bool, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the language model of a folder with a card, its adapter included, and the text tokenizer."""
    own_weights, has_adapter = (folder / "config.json").is_file(), (folder / ADAPTER_CONFIG).is_file()
    if own_weights:
        model, _ = open_base(folder, **options)
    elif has_adapter or card.kind == "llava":
        source = find_folder(base or _locate(card.base, folder), otherwise=f"give the base model of {folder} with --base DIR")
        if not source.exists():
            raise FileNotFoundError(f"no base model {source}, on which {folder} was trained; give its folder with --base DIR")
        check_base(card, source)
        model, _ = open_base(source, **options)
        if card.markers is not None:
            fit_embeddings_(model, card.markers)
    else:
        raise FileNotFoundError(f"{folder} has neither {ADAPTER_CONFIG} nor config.json; start its training again, which resumes")
    rows = table_rows(model)
    if card.markers is not None and max(card.markers.ids()) >= rows:
        reason = f"the markers of {CARD_FILE} reach id {max(card.markers.ids())}, but the model has {rows} embedding rows"
        raise ValueError(f"{folder}: {reason}; it is another base model, or its table was not grown for the markers")
    if has_adapter and not (folder / ADAPTER_FILE).is_file():
        raise FileNotFoundError(f"{folder} has {ADAPTER_CONFIG} but no {ADAPTER_FILE}; the copy is incomplete")
    return add_adapter(model, folder, merge=merge) if has_adapter else model, open_text_tokenizer(folder)


def _locate(named: str, folder: Path) -> str:
    """Return the path of what a card names in the model's own folder, if it is there; else the name, of a folder elsewhere or of a hub."""
    return str(folder / named) if named and (folder / named).exists() else named


def _add_vision(lm: Any, vision: dict[str, Any], folder: Path, *, tower: str) -> LlavaModel:
    """Put the tower that a card describes, or the one in the folder `tower`, and the trained projector around a language model."""
    settings = VisionSettings(**{name: value for name, value in vision.items() if name != "fingerprint"})
    settings.path = str(find_folder(tower or _locate(settings.path, folder), otherwise="give the tower with --image-tokenizer DIR"))
    built = build_tower(settings)
    expected = vision.get("fingerprint", built.fingerprint)
    if built.fingerprint != expected:
        raise ValueError(f"the tower {settings.path} is {built.fingerprint}, but {folder} was trained with {expected}; give the right one")
    projector = build_projector(settings.projector, built.width, lm.get_input_embeddings().weight.shape[1])
    load_projector_(projector, folder / PROJECTOR_FILE)
    return LlavaModel(lm, built, projector)


def _open_plain(folder: Path, *, image_tokenizer: str, options: dict[str, Any]) -> tuple[Any, Any, Card]:
    """Open a model that was not trained here: it answers text, and reads images if a tokenizer of its vocabulary is named."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds an adapter without {CARD_FILE}; give the run folder of the training that wrote it")
    if any(folder.glob("checkpoint-*")):
        raise FileNotFoundError(f"{folder} holds checkpoints of a training that has not ended; start the same command again to end it")
    model, text = open_base(folder, **options)
    markers = choose_markers(text, table_rows=table_rows(model))
    fit_embeddings_(model, markers)
    template = CHAT if getattr(text, "chat_template", None) else "vicuna_v1"
    layout = load_tokenizer(image_tokenizer).layout if image_tokenizer else None
    return model, text, Card("full", str(folder), fingerprint_base(folder), template, markers=markers, layout=layout)


def digest_folder(folder: Path, base_fingerprint: str = "") -> str:
    """Return 16 hexadecimal digits of what was trained: samples of every file of weights in a folder, and the base's fingerprint."""
    digest = hashlib.sha256(base_fingerprint.encode())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name}{size}".encode())
        with open(file, "rb") as content:
            for sample in range(SAMPLES):
                content.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
