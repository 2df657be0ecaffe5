"""Tokens/s of a language model's training step: images as ids against the same step with the image tokenizer running inside it.

    python tests/bench/llm_step.py                                                                   # tiny LLaMA, HQ-VAE of 32 px, CPU
    python tests/bench/llm_step.py --model models/vicuna-7b --tokenizer outputs/hqvae --device cuda --precision bf16 --batch 8
    python tests/bench/llm_step.py --width 2048 --layers 22 --hidden 5632 --vocab 32000 --image-size 256 --device cuda --precision bf16

Both steps train the same adapters on the same conversations: made-up questions and answers about one picture each. `ids` reads the
picture as vocabulary ids, found beforehand. `tower` is LLaVA's way: the tokenizer's encoder and codebooks run in every step, a projector
brings their features into the sequence. The tower gives one feature per fine cell (16x16 = 256 positions), ids are coarse and fine codes
(320): tokens and conversations per second are both printed. Padding: the share of positions without a token.
Operations are counted by torch.utils.flop_counter in one step; the share of the card's matrix peak is of dense bf16.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unicode.llm.base_model import SPECIAL_TOKENS, base_text, train_tokenizer
from unicode.llm.examples import Example, ExampleBuilder
from unicode.llm.llava import LlavaModel, VisionSettings, build_projector, build_tower
from unicode.llm.lora import LoraSettings, add_lora_, count_parameters
from unicode.llm.model import open_base, table_rows
from unicode.llm.template import get_template
from unicode.llm.vocabulary import Markers, choose_markers
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.load import load_tokenizer
from unicode.tokenizer.model import ImageTokenizer
from unicode.train.loss import Collator, combine, prepare_forward_, target_losses
from unicode.train.samplers import ConversationSampler

MATRIX_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16 operations/s of the data sheets
WARM_UP = 2
SIZES = {"width": 128, "layers": 4, "hidden": 344, "heads": 4, "vocab": 512, "image-size": 32, "batch": 8, "steps": 10, "rank": 16}


def add_options(parser: argparse.ArgumentParser, sizes: dict[str, int]) -> None:
    """Add an option for each size, and how the step runs."""
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="default: %(default)s")
    parser.add_argument("--gradient-checkpointing", action="store_true")


def parse_args() -> argparse.Namespace:
    """Return the arguments of the benchmark."""
    parser = argparse.ArgumentParser(description="Measure a training step that reads ids against one with a vision tower inside.")
    parser.add_argument("--model", help="folder of a language model (default: a random LLaMA of the sizes below)")
    parser.add_argument("--tokenizer", help="folder of an image tokenizer (default: a random HQ-VAE)")
    add_options(parser, SIZES)
    return parser.parse_args()


@dataclass
class Parts:
    """What both steps share."""

    folder: Path
    text: Any
    markers: Markers
    tokenizer: Path
    conversations: list[tuple[str, str]]


def prepare(args: argparse.Namespace, folder: Path) -> Parts:
    """Save the random models where none were named, and make up conversations."""
    torch.manual_seed(0)
    if args.model is None:
        text = train_tokenizer(islice(base_text(instructions=0.2, seed=0), 2000), vocab_size=512)
        save_random_llama(args, folder / "llm", text)
    place = Path(args.model) if args.model else folder / "llm"
    _, text = open_base(place)
    if args.tokenizer is None:
        config = TokenizerConfig(image_size=args.image_size)
        config.codebook.mode, config.codebook.num_rows = "free", min(400, args.vocab - 100)
        config.autoencoder.decoder_attention = []
        if args.image_size < 128:
            config.autoencoder.channels, config.autoencoder.multipliers = 40, [1, 2, 2]
        ImageTokenizer(config).save_pretrained(folder / "tokenizer")
    markers = choose_markers(text, table_rows=args.vocab)
    lines = base_text(instructions=0.0, seed=1)
    random = Random(0)
    pairs = [(" ".join(next(lines) for _ in range(random.choice([1, 1, 2, 4]))), next(lines).split(".")[0]) for _ in range(512)]
    return Parts(place, text, markers, Path(args.tokenizer) if args.tokenizer else folder / "tokenizer", pairs)


def save_random_llama(args: argparse.Namespace, folder: Path, text: PreTrainedTokenizerFast) -> None:
    """Write an untrained LLaMA of the sizes asked for."""
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.width,
        intermediate_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    with torch.device(args.device):
        model = LlamaForCausalLM(config).to(torch.bfloat16 if args.precision == "bf16" else torch.float32)
    model.save_pretrained(folder)
    text.save_pretrained(folder)


class Step:
    """One way of reading pictures: a model, its batches, an optimizer."""

    def __init__(self, args: argparse.Namespace, parts: Parts, *, tower: bool) -> None:
        self.args, self.device = args, torch.device(args.device)
        torch.manual_seed(0)
        dtype = "bfloat16" if args.precision == "bf16" else "float32"
        base, _ = open_base(parts.folder, dtype=dtype, device=args.device)
        if args.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.config.use_cache = False
        lora = LoraSettings(r=args.rank, alpha=2 * args.rank, dropout=0.0)
        model: Any = add_lora_(base, lora, parts.markers)
        prepare_forward_(model)
        images = 2 * torch.rand(args.batch, 3, args.image_size, args.image_size) - 1
        self.images: torch.Tensor | None = None
        self.positions = 0
        if tower:
            seeing = build_tower(VisionSettings(enabled=True, kind="tokenizer", path=str(parts.tokenizer), dtype=dtype))
            width = int(base.config.get_text_config().hidden_size)
            model = LlavaModel(model, seeing, build_projector("mlp2x_gelu", seeing.width, width))
            self.images, self.positions = images.to(self.device), seeing.num_features
            runs = [np.full(self.positions, len(SPECIAL_TOKENS))] * args.batch
        else:
            tokenizer = load_tokenizer(parts.tokenizer)
            ids = tokenizer.encode(images) % (table_rows(base) - 100) + 100  # a random tokenizer knows no rows of this model
            runs = list(ids.numpy())
        self.model = model.to(self.device).train()
        self.examples = self._examples(parts, runs)
        self.learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, lr=1e-4, fused=True)
        self.collator = Collator(pad_id=0)
        self.order = self._order("length", args.steps + WARM_UP + 1)
        self.batches = [self.collator([self.examples[index] for index in batch]) for batch in self.order]
        self.done = 0

    def _examples(self, parts: Parts, runs: list[np.ndarray]) -> list[Example]:
        builder = ExampleBuilder(get_template("vicuna_v1"), parts.text, parts.markers)
        return [
            builder.build([f"<image>\n{question}", answer], [runs[number % len(runs)]], task="image_to_text")
            for number, (question, answer) in enumerate(parts.conversations)
        ]

    def _order(self, group_by: str, steps: int) -> list[list[int]]:
        lengths = [len(example) for example in self.examples]
        return list(ConversationSampler(lengths, batch_size=self.args.batch, group_by=group_by, stop_step=steps))

    def padding(self, group_by: str) -> float:
        """Share of positions without a token in an epoch of the run's order."""
        lengths = np.array([len(example) for example in self.examples])
        batches = self._order(group_by, len(lengths) // self.args.batch)
        return 1 - sum(lengths[batch].sum() for batch in batches) / sum(len(batch) * lengths[batch].max() for batch in batches)

    def step(self) -> float:
        """Do one step; return its seconds."""
        batch = self.batches[self.done]
        self._synchronize()
        start = time.perf_counter()
        inputs = {name: value.to(self.device) for name, value in batch["inputs"].items()}
        targets = batch["targets"].to(self.device)
        if self.images is not None:
            places = torch.cat([self.examples[index].is_image.nonzero().flatten() for index in self.order[self.done]])
            rows = torch.arange(len(self.images)).repeat_interleave(self.positions)
            inputs |= {"pixels": self.images, "image_at": (rows * batch["inputs"]["input_ids"].shape[1] + places).to(self.device)}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.precision == "bf16"):
            logits = self.model(**inputs, logits_at=targets.at, use_cache=False).logits
        nll = target_losses(logits, targets)
        totals = batch["targets"].total_weights().float().to(self.device)
        combine(nll, targets, totals=totals, kind_weights=torch.ones(2, device=self.device)).backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._synchronize()
        self.done += 1
        return time.perf_counter() - start

    def measure(self) -> dict[str, float]:
        """Return seconds of the median step, tokens and operations of it, and peak memory."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        for _ in range(WARM_UP):
            self.step()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        first = self.done
        seconds = [self.step() for _ in range(self.args.steps)]
        tokens = [self.batches[first + number]["num_tokens"] for number in range(self.args.steps)]
        memory = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        return {
            "seconds": statistics.median(seconds),
            "tokens_per_second": sum(tokens) / sum(seconds),
            "conversations_per_second": self.args.batch * self.args.steps / sum(seconds),
            "operations": float(counter.get_total_flops()),
            "memory": float(memory),
        }

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def show(name: str, step: Step, found: dict[str, float], peak: float) -> None:
    """Print the figures of one way."""
    learned, total = count_parameters(step.model)
    lengths = [len(example) for example in step.examples]
    print(f"{name}: {total / 1e6:.1f} M parameters, {learned / 1e6:.2f} M learned, {np.mean(lengths):.0f} tokens a conversation")
    print(f"  tokens/s           {found['tokens_per_second']:12.1f}   ({found['seconds'] * 1e3:.1f} ms the median step)")
    print(f"  conversations/s    {found['conversations_per_second']:12.2f}")
    print(f"  operations/s       {found['operations'] / found['seconds'] / 1e12:12.3f} T")
    if peak:
        print(f"  share of the peak  {found['operations'] / found['seconds'] / peak:12.1%}   (of {peak / 1e12:.0f} T/s, dense bf16)")
    if found["memory"]:
        print(f"  peak memory        {found['memory'] / 2**20:12.0f} MiB")


def main() -> int:
    """Measure both ways, print."""
    args = parse_args()
    card = torch.cuda.get_device_name() if args.device == "cuda" else ""
    peak = next((value for name, value in MATRIX_PEAKS.items() if name in card), 0.0)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        parts = prepare(args, Path(folder))
        print(f"batch {args.batch}, LoRA rank {args.rank}, {args.precision}, {card or f'{torch.get_num_threads()} CPU threads'}")
        for name in ("ids", "tower"):
            step = Step(args, parts, tower=name == "tower")
            results[name] = step.measure()
            show(name, step, results[name], peak)
            if name == "ids":
                print(f"  padding            {step.padding('none'):12.1%} ungrouped, {step.padding('length'):.1%} grouped by length")
            del step
    for unit in ("conversations", "tokens"):
        print(f"ids / tower, {unit}/s: {results['ids'][f'{unit}_per_second'] / results['tower'][f'{unit}_per_second']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
