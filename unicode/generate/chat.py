"""Dialogues: `load_model(path)` for scripts and notebooks, and the terminal chat."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
from PIL import Image

from unicode.common.files import read_json, write_json
from unicode.common.hub import HubMixin, is_hub_name, write_readme
from unicode.common.logging import printable
from unicode.generate.answers import AnswerConfig, answer_questions
from unicode.generate.engine import CachedDecoder
from unicode.generate.images import Drawing, GenerationConfig, ImageSampler, caption_request, decode_pictures
from unicode.generate.interleaved import ChatSampler, answer_parts
from unicode.generate.questions import AskedQuestion, ImageLike
from unicode.generate.sampling import Sampling, merge_sampling
from unicode.images.listing import EXTENSIONS, UnreadableImageError, read_bytes
from unicode.llm.card import FILE, write_card
from unicode.llm.load import ADAPTER_CONFIG, Content, LanguageModel, open_model

IMAGE_TOKENIZER = "image_tokenizer"  # folder of it inside a saved model


class Chat:
    """A conversation in progress.

    `config`: sampling of the pictures; guidance counts for /draw alone. `out`: folder of the pictures that the model draws. `num_tokens`:
    longest answer, pictures included. `word_temperature`: of the words; 0 is greedy. Errors are those of `ImageSampler`.
    """

    def __init__(self, model: LanguageModel, config: GenerationConfig, *, out: Path, num_tokens: int, word_temperature: float) -> None:
        self.model, self.config, self.out = model, config, out
        decoder = CachedDecoder(model.causal)
        self.drawer = ImageSampler(model, sampling=config.sampling(model.card.sampling), decoder=decoder)
        plain, words = replace(self.drawer.sampling, guidance=1.0, candidates=1), Sampling(word_temperature)
        self.sampler = ChatSampler(model, words=words, pictures=plain, num_tokens=num_tokens, decoder=decoder)
        self.turns: list[str] = []
        self.contents: list[Content] = []
        self.count = 0

    def say(self, line: str) -> str:
        """Answer one line; "" for commands that have no answer. ValueError for an image or a prompt that cannot be used."""
        if line == "/new":
            self.turns, self.contents = [], []
            return ""
        if line.startswith("/draw"):
            template = self.config.template or self.model.card.request
            request = caption_request(line.removeprefix("/draw").strip(), seed=self.config.seed + self.count, template=template)
            return self.save(ids_of(self.drawer.draw([request])[0]))
        words, paths = split_line(line)
        contents = [*self.contents, *(self.read(path) for path in paths)]
        turns = [*self.turns, "<image>\n" * len(paths) + words]
        (answer,) = self.sampler.answer([turns], [contents], seeds=[self.config.seed + len(turns)])
        self.turns, self.contents = [*turns, answer], contents
        return self.show(answer)

    def read(self, path: Path) -> Content:
        try:
            return self.model.read_pictures(self.model.picture(read_bytes(path))[None])[0]
        except UnreadableImageError as error:
            raise ValueError(f"{path}: {error}") from error

    def show(self, answer: str) -> str:
        """Return a printable answer with the names of the saved pictures in place of their ids."""
        return printable("".join(part if isinstance(part, str) else f"[{self.save(part)}]" for part in answer_parts(answer, self.model)))

    def save(self, ids: np.ndarray) -> str:
        """Write a picture under the next free number and return its path; a file of another process is never replaced."""
        content = BytesIO()
        Image.fromarray(decode_pictures(self.model, ids[None])[0]).save(content, "PNG")
        self.out.mkdir(parents=True, exist_ok=True)
        while True:
            path = self.out / f"{self.count:04d}.png"
            self.count += 1
            with suppress(FileExistsError), open(path, "xb") as file:
                file.write(content.getvalue())
                return str(path)


def split_line(line: str) -> tuple[str, list[Path]]:
    """Return the words of a line and the image files among them; a path with spaces stands in quotes."""
    try:
        parts = shlex.split(line, posix=True)
    except ValueError:  # an apostrophe, as in "what's this"
        parts = line.split()
    paths = [part for part in parts if Path(part).suffix.lower() in EXTENSIONS]
    for path in paths:
        line = line.replace(shlex.quote(path), "").replace(f'"{path}"', "").replace(path, "")
    return " ".join(line.split()), [Path(path) for path in paths]


class Assistant(HubMixin):
    """Answers questions about images and draws. `model`: what `unicode.llm.load.open_model` gives."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.folder = model, model.folder
        self._decoder = CachedDecoder(model.causal)
        self._sampler = lru_cache(1)(lambda sampling: ImageSampler(model, sampling=sampling, decoder=self._decoder))

    def answer(
        self,
        text: str,
        images: Sequence[ImageLike] | ImageLike = (),
        *,
        history: Sequence[str] = (),
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Answer one question; `unicode.generate.answers.answer_questions` answers many in batches.

        `text`: the question, with an <image> tag where each image stands, or without any: then they stand in front. `images`: pictures,
        paths of them, contents of image files, or arrays of vocabulary ids; one or several. `history`: earlier turns: question, answer,
        question, answer. `temperature`: 0 takes the likeliest token each time. Returns the words of the answer; pictures in it as
        <vistok>...</vistok>. Raises ValueError: an image that cannot be read, tags that do not fit the images, or a prompt longer than the
        context.
        """
        shown = [Path(one) if isinstance(one, str) else one for one in (images if isinstance(images, list | tuple) else [images])]
        config = AnswerConfig(1, max_new_tokens, temperature, top_p, seed)
        question = AskedQuestion(text, tuple(shown), history=tuple(history))  # type: ignore[arg-type]
        ((_, answer),) = answer_questions(self.model, [question], config=config, decoder=self._decoder)
        if answer.error:
            raise ValueError(answer.error)
        return answer.text

    def draw(
        self, caption: str, *, seed: int = 0, guidance: float | None = None, temperature: float | None = None,
        top_k: int | None = None, top_p: float | None = None, candidates: int | None = None,
    ) -> Image.Image:  # fmt: skip
        """Draw one image for a caption; `unicode.generate.images.ImageSampler` draws in batches.

        The same seed and caption give the same picture. With `guidance` above 1 the caption counts for more, at twice the work; of several
        `candidates` the most typical is kept. What is left out is as the model's card has it, else as in `Sampling`. Raises ValueError: an
        empty caption or one longer than the context, or a model that writes no image ids. Raises FileNotFoundError: the image tokenizer is
        not where the training had it.
        """
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance, "candidates": candidates}
        sampler = self._sampler(merge_sampling(self.model.card.sampling, given))
        (drawing,) = sampler.draw([caption_request(caption, seed=seed, template=self.model.card.request)])
        return Image.fromarray(decode_pictures(self.model, ids_of(drawing)[None])[0])

    def save_pretrained(self, path: str | Path, *, base: str = "", image_tokenizer: str = "", license_name: str = "") -> None:
        """Copy the model's files and, unless `image_tokenizer` is given, its image tokenizer into a new folder, with a README.md.

        `base`, `image_tokenizer`: names as org/name, for the card, of the base model, and of image tokenizer or tower. `license_name`: as
        apache-2.0. ValueError: the folder holds a model, weights are pickles, or an adapter's base model is a local folder.
        """
        target, model, card = Path(path), self.model, self.model.card
        pickles = [str(file) for file in model.folder.glob("*.bin") if file.name != "training_args.bin"]
        if any(target.glob("*.safetensors")) or pickles:
            raise ValueError(f"{pickles[0]}: weights must be safetensors" if pickles else f"{target} holds a model; give a new folder")
        if not base and not is_hub_name(card.base) and not (model.folder / "config.json").is_file():
            raise ValueError(f"others do not have {card.base}, which {self.source} needs; name its repository with base='org/name'")
        target.mkdir(parents=True, exist_ok=True)
        for file in model.folder.iterdir():
            if file.suffix in (".safetensors", ".json", ".jinja"):
                copyfile(file, target / file.name)
        base = base or (card.base if is_hub_name(card.base) else Path(card.base).name)
        if (adapter := target / ADAPTER_CONFIG).is_file():
            write_json(adapter, read_json(adapter) | {"base_model_name_or_path": base})
        tokenizer, vision = card.image_tokenizer, card.vision and {**card.vision, "path": image_tokenizer or card.vision["path"]}
        if model.tokenizer_path and not model.reads_pixels:
            tokenizer = {"path": image_tokenizer or IMAGE_TOKENIZER, "fingerprint": model.images.fingerprint}
            if not image_tokenizer:
                model.images.save_pretrained(target / IMAGE_TOKENIZER, readme=False)
        if (model.folder / FILE).is_file():
            config = {key: value for key, value in card.config.items() if key != "merged_from"}
            write_card(target, replace(card, base=base, image_tokenizer=tokenizer, vision=vision, config=config))
        facts = {"base model": f"{base} ({card.base_fingerprint})", "trained": card.kind, "images": card.layout and card.layout.describe()}
        write_readme(target, facts, reads="load_model", source=model.folder, license_name=license_name, base=base)


def ids_of(drawing: Drawing) -> np.ndarray:
    """Return the ids of a drawing. ValueError where there is none, with the reason."""
    if drawing.error:
        raise ValueError(drawing.error)
    return drawing.ids


def load_model(path: str | Path, **options: Any) -> Assistant:
    """Open a trained model to answer and draw with; arguments and errors as `unicode.llm.load.open_model`."""
    return Assistant(open_model(path, **options))
