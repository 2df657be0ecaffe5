"""The small language model: text about the shapes world, or of a file -> a small LLaMA and its tokenizer."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from unicode.annotations.captioned import SHORT
from unicode.annotations.templates import TEMPLATES
from unicode.common.distributed import choose_device
from unicode.common.files import lock_folder, name_errors, read_json, read_list, write_json
from unicode.common.logging import get_logger
from unicode.common.schedules import learning_rate
from unicode.images.shapes import ShapesConfig, draw_scene
from unicode.images.shapes_text import typed_caption, world_text

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

log = get_logger(__name__)

# LLaMA's special tokens first, then one for padding and the markers around images and compressed images
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image_start>", "<image_end>", "<compressed_start>", "<compressed_end>")
ALPHABET = [*(chr(code) for code in range(ord("!"), ord("~") + 1)), "Ġ", "Ċ"]

SUMMARY = "base.json"
BRIEF = 0.2  # share of lines whose questions ask for a short answer as LLaVA's mixture does

# turns in the form of the training text, which the base model knows already
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}Question: {{ message['content'] }}"
    "{% else %} Answer: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} Answer:{% endif %}"
)


@dataclass(frozen=True)
class BaseConfig:
    """Settings of the base model."""

    text: str = ""  # file of text to learn from, one line per text; empty: lines about the shapes world
    vocab_size: int = 512  # tokens, the special ones among them
    lowercase: bool = False  # read all text in lower case, which makes capitals a matter of form
    width: int = 128  # width of the embedding table
    hidden: int = 344  # width inside the feed-forward layers
    layers: int = 4
    heads: int = 4
    context: int = 1024  # longest sequence that positions are prepared for
    tokenizer_lines: int = 4000  # lines that the tokenizer is trained on
    instructions: float = 0.1  # share of lines that are a template of the annotations with a caption in it
    row_tokens: int = 256  # tokens in a row of a batch
    batch_size: int = 16  # rows in a batch
    steps: int = 500  # optimizer steps
    warmup_steps: int = 50
    lr: float = 2e-3  # highest learning rate
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        smallest = len(SPECIAL_TOKENS) + len(ALPHABET)
        if self.vocab_size < smallest:
            raise ValueError(f"vocab_size is {self.vocab_size}, expected at least {smallest}: the special tokens and the characters")
        if self.width % (2 * self.heads):
            raise ValueError(f"width is {self.width}, expected a multiple of {2 * self.heads}: two for each of the {self.heads} heads")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected at least 1")


def base_text(*, instructions: float, seed: int, text: str = "") -> Iterator[str]:
    """Yield lines about the shapes world, or of the file `text`, endlessly; a share `instructions` asks for an image, as annotations do."""
    rng = Random(seed)
    templates = [template for group in TEMPLATES.values() for template in group if "{" not in template.replace("{caption}", "")]
    world = ShapesConfig(seed=seed)
    for number, line in enumerate(file_text(text, seed=seed) if text else world_text(seed=seed)):
        if rng.random() < instructions:
            caption = line.partition(" Question: ")[0] if text else typed_caption(draw_scene(world, "train", number), rng)
            yield rng.choice(templates).replace("{caption}", caption.rstrip("."))
        elif rng.random() < BRIEF:
            yield line.replace(" Answer:", f"\n{SHORT} Answer:")
        else:
            yield line


def file_text(path: str | Path, *, seed: int) -> Iterator[str]:
    """Yield the lines of a file endlessly, each pass in another order. FileNotFoundError: no such file; ValueError: it holds no text."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file of text {path}; give one with --text, one line per text")
    lines = [" ".join(line.split()) for line in read_list(path)]
    if not lines:
        raise ValueError(f"{path} holds no text; expected one line per text")
    rng = Random(seed)
    while True:
        yield from rng.sample(lines, len(lines))


def train_tokenizer(lines: Iterable[str], *, vocab_size: int, lowercase: bool = False) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer on `lines`, which then reads all text in lower case if wanted.

    Its alphabet is ASCII; where a line has other characters it is all bytes instead. Elsewhere any other character becomes <unk>.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    lines = list(lines)
    alphabet = ALPHABET if all(map(str.isascii, lines)) else [*ALPHABET, *sorted({*pre_tokenizers.ByteLevel.alphabet()} - {*ALPHABET})]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    start = ("<s>", SPECIAL_TOKENS.index("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[start])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **names)


def packed_rows(tokenizer: PreTrainedTokenizerFast, lines: Iterable[str], *, row_tokens: int) -> Iterator[torch.Tensor]:
    """Yield rows of ids, (row_tokens,) int64: the lines one after another, each between <s> and </s>, cut wherever a row is full."""
    import torch

    end: int = tokenizer.eos_token_id
    ids: list[int] = []
    for line in lines:
        ids += [*tokenizer(line)["input_ids"], end]
        while len(ids) >= row_tokens:
            yield torch.tensor(ids[:row_tokens])
            del ids[:row_tokens]


def build_model(config: BaseConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained LLaMA with tied embeddings and plain attention, which is the fastest at this size on a CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        initializer_range=config.width**-0.5,  # the usual 0.02 suits wide models; at this width attention would stay uniform for long
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    settings._attn_implementation = "eager"
    return LlamaForCausalLM(settings)


def pretrain_(model: LlamaForCausalLM, rows: Iterator[torch.Tensor], config: BaseConfig) -> float:
    """Train `model` to predict the next token, in place, on a GPU where there is one.

    Returns the loss in nats per token, a mean over the last tenth of the steps.
    """
    import torch

    device = choose_device("auto")
    model.to(device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=config.weight_decay)
    losses: list[float] = []
    bar = tqdm(range(config.steps), desc="base model", unit="step", mininterval=2)
    for step in bar:
        # one step more than there are, as version 0.1: the same settings make the same model
        rate = learning_rate(step, peak=config.lr, minimum=config.lr / 10, warmup_steps=config.warmup_steps, steps=config.steps + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = torch.stack([next(rows) for _ in range(config.batch_size)]).to(device)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"the loss of the base model became {losses[-1]} at step {step}")
        if step % 20 == 0:
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def is_made(folder: Path, config: BaseConfig) -> bool:
    """Whether `folder` holds a complete base model of these settings.

    Raises FileNotFoundError, ValueError: as `file_text`. Raises ValueError: it holds one of other settings, or something else.
    """
    wanted = settings_of(config)
    if not folder.exists():
        return False
    if not (folder / SUMMARY).is_file():
        raise ValueError(f"{folder} exists and holds no base model; give another --out")
    made = {"text": "", "lowercase": False, **read_json(folder / SUMMARY)["settings"]}
    other = [f"{name} {made.get(name)}, asked for {value}" for name, value in wanted.items() if made.get(name) != value]
    if other:
        raise ValueError(f"{folder} holds a base model of other settings ({'; '.join(other)}); remove it or give another --out")
    return True


def settings_of(config: BaseConfig) -> dict[str, Any]:
    """The settings as they are saved, with a digest of the file of text in place of its path."""
    settings = asdict(config)
    if config.text:
        next(file_text(config.text, seed=0))  # an error that names the file
        settings["text"] = sha256(Path(config.text).read_bytes()).hexdigest()
    return settings


def make_base_model(folder: Path, config: BaseConfig) -> float:
    """Train the tokenizer and the model, save both to `folder`, which is created last, and return the final loss.

    A model of these settings that is there stays. Raises FileNotFoundError, ValueError: as `file_text`. Raises OSError: the disk is full.
    Raises ValueError: another process makes the model.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        with lock_folder(unfinished, "making the base model"):
            made = is_made(folder, config)
            return float(read_json(folder / SUMMARY)["loss"]) if made else _make(folder, config, unfinished / "model")
    finally:
        with suppress(OSError):  # another process waits for the lock
            unfinished.rmdir()


def _make(folder: Path, config: BaseConfig, partial: Path) -> float:
    lines = base_text(instructions=config.instructions, seed=config.seed, text=config.text)
    shown = (next(lines) for _ in range(config.tokenizer_lines))
    tokenizer = train_tokenizer(shown, vocab_size=config.vocab_size, lowercase=config.lowercase)
    model = build_model(config, tokenizer)
    log.info("base model: %d tokens, %.2f million parameters", len(tokenizer), model.num_parameters() / 1e6)
    loss = pretrain_(model, packed_rows(tokenizer, lines, row_tokens=config.row_tokens), config)
    shutil.rmtree(partial, ignore_errors=True)  # of a start that was killed
    partial.mkdir()
    try:
        with name_errors(folder):
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            write_json(partial / SUMMARY, {"settings": settings_of(config), "loss": loss})
            os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return loss
