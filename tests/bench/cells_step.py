r"""Pictures a second of a training step that learns to draw: cells against ids, same model, pictures, words and optimizer.

    OMP_NUM_THREADS=1 python tests/bench/cells_step.py [--batch 2] [--steps 3]
    python tests/bench/cells_step.py --device cuda --precision bf16 --width 4096 --layers 32 --heads 32 --kv-heads 32 --hidden 11008 \
        --batch 8 --gradient-checkpointing

An untrained LLaMA (by default with the shapes of one of 135 M) trains adapters on captions, each answered by a picture of 8x8 + 16x16
codes out of `--rows` ids: 320 positions, or 64 with a cell head of the default size. Steps of both kinds take turns, the median counts.
Exit code 1 where cells are less than 2.5 times as fast.
"""

import argparse
import statistics
import sys
import time
from itertools import islice
from random import Random
from typing import Any

import torch
from llm_step import add_options
from transformers import LlamaConfig, LlamaForCausalLM

from unicode.ids.layout import Layout
from unicode.llm.base_model import base_text, train_tokenizer
from unicode.llm.cell_head import CellHead, CellSettings
from unicode.llm.examples import ExampleBuilder
from unicode.llm.lora import LoraSettings, add_lora_
from unicode.llm.template import get_template
from unicode.llm.vocabulary import Markers
from unicode.train.loss import Collator, combine, prepare_forward_, target_losses

WANTED = 2.5
FIRST_ID = 2048  # the rows before it are those of the words
LAYOUT = Layout("hierarchical", ((8, 8), (16, 16)))
SIZES = {"width": 576, "layers": 30, "hidden": 1536, "heads": 9, "kv-heads": 3, "rows": 32000, "batch": 2, "steps": 3, "rank": 16}


def parse_args() -> argparse.Namespace:
    """Return the arguments of the benchmark."""
    parser = argparse.ArgumentParser(description="Measure a step that learns to draw by cells against one by ids.")
    add_options(parser, SIZES)
    return parser.parse_args()


class Step:
    """One way of writing pictures: a model, a batch, an optimizer."""

    def __init__(self, args: argparse.Namespace, text: Any, *, cells: bool) -> None:
        self.args, self.device = args, torch.device(args.device)
        torch.manual_seed(0)
        markers = Markers(*range(FIRST_ID + args.rows, FIRST_ID + args.rows + 4))
        config = LlamaConfig(
            vocab_size=FIRST_ID + args.rows + 4, hidden_size=args.width, intermediate_size=args.hidden, num_hidden_layers=args.layers,
            num_attention_heads=args.heads, num_key_value_heads=args.kv_heads, max_position_embeddings=2048, tie_word_embeddings=True,
        )  # fmt: skip
        config._attn_implementation = "sdpa"
        with self.device:
            base = LlamaForCausalLM(config).to(torch.bfloat16 if args.precision == "bf16" else torch.float32)
        base.config.use_cache = False
        if args.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model: Any = add_lora_(base, LoraSettings(r=args.rank, alpha=2.0 * args.rank, dropout=0.0), markers)
        row_ids = torch.arange(FIRST_ID, FIRST_ID + args.rows)
        if cells:
            self.model.cell_head = CellHead(CellSettings(), hidden_size=args.width, table_width=args.width, layout=LAYOUT, row_ids=row_ids)
        prepare_forward_(self.model)
        self.model.to(self.device).train()
        mode = "cells" if cells else "ids"
        builder = ExampleBuilder(get_template("vicuna_v1"), text, markers, LAYOUT, config.vocab_size, output_mode=mode)
        words, random = base_text(instructions=0.0, seed=1), Random(0)
        runs = [[random.randrange(FIRST_ID, FIRST_ID + args.rows) for _ in range(LAYOUT.num_codes)] for _ in range(args.batch)]
        examples = [builder.build([next(words).split(".")[0], "<image>"], [run], task="text_to_image") for run in runs]
        self.batch = Collator(pad_id=0, sums=True, layout=LAYOUT, cells=cells, row_ids=row_ids if cells else None)(examples)
        self.learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, lr=1e-4, fused=True)

    def step(self) -> float:
        """Do one step; return its seconds."""
        start = time.perf_counter()
        inputs = {name: value.to(self.device) for name, value in self.batch["inputs"].items()}
        targets = self.batch["targets"].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.precision == "bf16"):
            outputs = self.model(**inputs, logits_at=targets.at, use_cache=False)
        nll = target_losses(outputs.logits, targets, cell_logits=outputs.get("cell_logits"))
        totals = self.batch["targets"].total_weights().float().to(self.device)
        combine(nll, targets, totals=totals, kind_weights=torch.ones(2, device=self.device)).backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def main() -> int:
    """Measure both ways by turns, print."""
    args = parse_args()
    system = get_template("vicuna_v1").render(["draw"])[0].text
    lines = (f"{system} {line}" for line in islice(base_text(instructions=0.2, seed=0), 4000))
    text = train_tokenizer(lines, vocab_size=FIRST_ID)
    ways = {name: Step(args, text, cells=name == "cells") for name in ("ids", "cells")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory = dict.fromkeys(ways, 0)
    for number in range(args.steps + 1):
        for name, way in ways.items():
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            took = way.step()
            memory[name] = torch.cuda.max_memory_allocated() if args.device == "cuda" else 0
            if number:  # the first round warms up
                seconds[name].append(took)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{where}, {args.precision}; batch {args.batch}, {args.rows} image ids, width {args.width}, {args.layers} layers")
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in middle.items():
        peak = f", peak memory {memory[name] / 2**20:.0f} MiB" if memory[name] else ""
        print(
            f"{name:<6}{value:9.3f} s a step  {args.batch / value:8.3f} pictures a second, {ways[name].batch['num_tokens']} positions{peak}"
        )
    ratio = middle["ids"] / middle["cells"]
    print(f"cells: {ratio:.2f} times as many pictures a second as ids (wanted {WANTED:g})")
    return 0 if ratio >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
