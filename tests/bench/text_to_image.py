r"""Seconds per picture, id by id and cell by cell, beside transformers' own guided generation: same model, prompts, sampling and mask.

    OMP_NUM_THREADS=1 python tests/bench/text_to_image.py [--vocab 32000] [--rows 8192] [--batch-size 4] [--repeats 5]
    OMP_NUM_THREADS=1 python tests/bench/text_to_image.py --vocab 32768 --rows 32000 --repeats 3 \
        --width 576 --layers 30 --heads 9 --kv-heads 3
    python tests/bench/text_to_image.py --device cuda --width 2048 --layers 16 --dtype bfloat16 --cache static --compiled

An untrained LLaMA with a head of `--vocab` rows draws pictures of 8x8 + 16x16 codes (320 ids) for a batch of prompts, guided. Cells are
64 positions of 5 ids, by an untrained cell head of `--cells-width` (0: its default). Theirs is `generate(guidance_scale=...)` with a mask
of the image ids and the same temperature and top-k. Rounds of all kinds take turns, the median counts. Exit code 1 where ids are less
than 3 times as fast as theirs, guided takes more than 1.4 times the unguided time, or cells are less than 3 times as fast as ids.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from unicode.generate.engine import CachedDecoder, ImageHead, sample_image_tokens
from unicode.generate.sampling import Sampling
from unicode.ids.layout import Layout
from unicode.llm.cell_head import CellHead, CellSettings
from unicode.llm.vocabulary import Markers

WANTED, WANTED_GUIDED, WANTED_CELLS = 3.0, 1.4, 3.0
GUIDANCE, TEMPERATURE, TOP_K = 3.0, 1.0, 100
PROMPT, WARM_UP = 64, 20
LAYOUT = Layout("hierarchical", ((8, 8), (16, 16)))


class OnlyImageIds(LogitsProcessor):
    """Leaves the logits of image ids as they are."""

    def __init__(self, row_ids: Tensor, args: argparse.Namespace) -> None:
        self._mask = torch.full((args.vocab,), -torch.inf, device=args.device).index_fill_(0, row_ids.to(args.device), 0.0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) -> (B, V)."""
        return scores + self._mask


def main() -> int:
    """Measure, print seconds per picture and ratios and whether they suffice."""
    args = parse_args()
    torch.manual_seed(0)
    markers = Markers(*range(args.vocab - 4, args.vocab))
    lm = build_model(args)
    row_ids = torch.arange(args.rows)
    prompts = torch.randint(1000, (2 * args.batch_size, PROMPT), device=args.device)
    prompts[:, -1] = markers.image_start
    decoder = CachedDecoder(lm, cache=args.cache, compiled=args.compiled)
    head = ImageHead(decoder, row_ids, LAYOUT, markers=markers)
    by_cells = ImageHead(decoder, row_ids, LAYOUT, markers=markers, cells=build_cell_head(args, row_ids))
    count = args.ids or LAYOUT.num_codes

    def ours(head: ImageHead, guidance: float, count: int) -> None:
        given = prompts if guidance != 1 else prompts[: args.batch_size]
        features = decoder.start(torch.ones_like(given), input_ids=given, max_new=head.num_positions)
        places, seeds = torch.zeros(args.batch_size, dtype=torch.int64), torch.arange(args.batch_size)
        ids = sample_image_tokens(
            decoder, features, head, places=places.to(args.device), count=count // head.position_ids,
            sampling=Sampling(TEMPERATURE, TOP_K, guidance=guidance), seeds=seeds.to(args.device), step=0,
        )  # fmt: skip
        ids.sum().item()

    def theirs(guidance: float, count: int) -> None:
        given = prompts[: args.batch_size]
        tokens: Tensor = lm.generate(
            given, attention_mask=torch.ones_like(given), do_sample=True, temperature=TEMPERATURE, top_k=TOP_K, max_new_tokens=count,
            guidance_scale=guidance if guidance != 1 else None, negative_prompt_ids=prompts[args.batch_size :] if guidance != 1 else None,
            logits_processor=LogitsProcessorList([OnlyImageIds(row_ids, args)]), pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        tokens.sum().item()

    kinds: dict[str, Callable[[int], None]] = {
        "cells, guided": partial(ours, by_cells, GUIDANCE),
        "cells, unguided": partial(ours, by_cells, 1.0),
        "ids, guided": partial(ours, head, GUIDANCE),
        "ids, unguided": partial(ours, head, 1.0),
        "transformers, guided": partial(theirs, GUIDANCE),
        "transformers, unguided": partial(theirs, 1.0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for round_number in range(args.repeats + 1):
        for name, work in kinds.items():
            start = time.perf_counter()
            work(count if round_number else WARM_UP)
            if round_number:  # the first round warms up, and compiles
                seconds[name].append(time.perf_counter() - start)
    return report(seconds, args, count)


def report(seconds: dict[str, list[float]], args: argparse.Namespace, count: int) -> int:
    """Print the medians and the ratios; return the exit code."""
    where = f"{args.device}, {torch.get_num_threads()} threads, {args.dtype}, {args.cache} cache{', compiled' if args.compiled else ''}"
    print(f"{where}; batch {args.batch_size}, {count} ids, {args.rows} image ids of {args.vocab}, width {args.width}, {args.layers} layers")
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in middle.items():
        print(f"{name:<24}{value / args.batch_size:9.4f} s per picture  {args.batch_size / value:8.3f} pictures a second")
    faster = middle["transformers, guided"] / middle["ids, guided"]
    costs = middle["ids, guided"] / middle["ids, unguided"]
    cells = middle["ids, guided"] / middle["cells, guided"]
    print(f"ids: {faster:.2f} times as fast as transformers (wanted {WANTED:g}); {costs:.2f} times unguided (at most {WANTED_GUIDED:g})")
    print(f"cells: {cells:.2f} times as fast as ids (wanted {WANTED_CELLS:g}), {cells * faster:.2f} times as fast as transformers")
    return 0 if faster >= WANTED and costs <= WANTED_GUIDED and cells >= WANTED_CELLS else 1


def build_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """An untrained model with a head of its own."""
    heads = args.heads or max(1, args.width // 64)
    config = LlamaConfig(
        vocab_size=args.vocab, hidden_size=args.width, intermediate_size=args.width * 8 // 3, num_hidden_layers=args.layers,
        num_attention_heads=heads, num_key_value_heads=args.kv_heads or heads, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = "sdpa" if args.device != "cpu" or args.width >= 512 else "eager"
    return LlamaForCausalLM(config).eval().to(args.device, getattr(torch, args.dtype))


def build_cell_head(args: argparse.Namespace, row_ids: Tensor) -> CellHead:
    """An untrained cell head for it."""
    head = CellHead(CellSettings(width=args.cells_width), hidden_size=args.width, table_width=args.width, layout=LAYOUT, row_ids=row_ids)
    return head.eval().to(args.device, getattr(torch, args.dtype))


def parse_args() -> argparse.Namespace:
    """Return the arguments of the benchmark."""
    parser = argparse.ArgumentParser()
    sizes = {"vocab": 32000, "rows": 8192, "batch-size": 4, "width": 256, "layers": 4, "heads": 0, "kv-heads": 0, "cells-width": 0}
    for name, default in (sizes | {"repeats": 5, "ids": 0}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cache", default="dynamic")
    parser.add_argument("--compiled", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
