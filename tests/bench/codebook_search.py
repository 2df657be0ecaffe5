"""One quantizer training step (search, statistics, update, backward) beside vector-quantize-pytorch's `VectorQuantize`.

    python tests/bench/codebook_search.py [--vectors 4096] [--rows 32000] [--width 256] [--repeats 5] [--device cpu]

Both do one whole step in train mode in this process on the same latents and the same table: codes, quantized values with a
straight-through gradient, commitment loss, backward to the latents, new averages, new table. Ours also looks for dead rows and
restarts them, which the library leaves off unless asked. The library's rotation trick is off: we have none, and it would cost the
library time. Neither normalizes anything.

Seconds: median of `--repeats` steps of each, by turns, after one step of each that does not count.
Extra memory on a CPU: the operating system's high-water mark of resident memory (VmHWM of /proc/self/status, set back through
/proc/self/clear_refs) during one step, less the resident memory right before it, freed memory given back first; so the tables
themselves do not count and everything that a step makes does. Nothing is sampled and no peak is missed. On CUDA: the allocator's
peak less what was allocated before. Exit code 1 below 4 times the speed, above 1/4 of the extra memory, or with other codes.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from vector_quantize_pytorch import VectorQuantize

from unicode.codebook.codebook import CodebookConfig, build_codebooks, update_codebooks_
from unicode.codebook.quantizers import commitment_loss, straight_through

WANTED_SPEED, WANTED_MEMORY = 4.0, 0.25
Step = Callable[[torch.Tensor], torch.Tensor]


def make_ours(table: torch.Tensor) -> Step:
    """Return a step of our codebook: latents (N, E) in, codes (N,) out."""
    config = CodebookConfig(mode="free", num_rows=len(table))
    codebook = build_codebooks(config, None, channels=[table.shape[1]])[0].to(table.device).train()
    codebook.rows.copy_(table)
    codebook.ema.average.copy_(table)  # type: ignore[operator, union-attr]

    def step(latents: torch.Tensor) -> torch.Tensor:
        rows = codebook.training_rows()
        codes = codebook.search(latents, rows)
        codebook.accumulate(latents.detach(), codes)
        vectors = codebook.lookup(codes, rows)
        values = straight_through(latents, vectors)
        (values.mean() + commitment_loss(latents, vectors, beta=1.0)).backward()  # type: ignore[no-untyped-call]
        update_codebooks_([codebook])
        return codes

    return step


def make_theirs(table: torch.Tensor) -> Step:
    """Return the same step of the library."""
    quantizer = VectorQuantize(dim=table.shape[1], codebook_size=len(table), decay=0.99, rotation_trick=False).to(table.device).train()
    quantizer.codebook = table
    quantizer._codebook.embed_avg.copy_(table[None])

    def step(latents: torch.Tensor) -> torch.Tensor:
        values, codes, loss = quantizer(latents[None])
        (values.mean() + loss.sum()).backward()
        return codes[0]  # type: ignore[no-any-return]

    return step


def seconds_of(step: Step, latents: torch.Tensor) -> float:
    """Return how long one step takes."""
    latents.grad = None
    synchronize(latents.device)
    start = time.perf_counter()
    step(latents)
    synchronize(latents.device)
    return time.perf_counter() - start


def extra_memory_of(step: Step, latents: torch.Tensor) -> int:
    """Return by how many bytes one step raises the memory at its worst moment."""
    latents.grad = None
    gc.collect()
    if latents.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(latents)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present level
    step(latents)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def codes_agree(latents: torch.Tensor, table: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether the codes are the same, up to rows that are equally close within rounding; ours must be the closer ones."""
    other = (ours != theirs).nonzero().flatten()
    exact = latents.detach()[other].double()
    distances = [(exact - table[codes[other]].double()).square().sum(1) for codes in (ours, theirs)]
    relative = (distances[0] - distances[1]).div(distances[1])
    worst = f", at most {float(relative.abs().max()):.1e} apart in squared distance" if len(other) else ""
    print(f"codes that differ  {len(other)} of {len(latents)}{worst}")
    return len(other) <= 0.001 * len(latents) and not (relative.abs() > 1e-5).any()


def main() -> int:
    """Measure both by turns and compare."""
    parser = argparse.ArgumentParser(description="Time and memory of a quantizer training step beside vector-quantize-pytorch.")
    for name, default in {"vectors": 4096, "rows": 32000, "width": 256, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()
    torch.manual_seed(0)
    table = torch.randn(args.rows, args.width, device=args.device)
    latents = torch.randn(args.vectors, args.width, device=args.device).requires_grad_()
    steps = [make_ours(table), make_theirs(table)]
    agree = codes_agree(latents, table, *(step(latents) for step in steps))
    memory = [extra_memory_of(step, latents) / 2**20 for step in steps]
    rounds = [[seconds_of(step, latents) for step in steps] for _ in range(args.repeats)]
    seconds = [statistics.median(column) for column in zip(*rounds, strict=True)]
    speed, share = seconds[1] / seconds[0], memory[0] / memory[1]
    print(f"{torch.get_num_threads()} threads, {args.device}, N {args.vectors}, K {args.rows}, D {args.width}, float32")
    print(f"ours               {seconds[0]:8.3f} s  {memory[0]:8.0f} MiB extra")
    print(f"VectorQuantize     {seconds[1]:8.3f} s  {memory[1]:8.0f} MiB extra")
    print(f"ratio              {speed:8.2f} x  {share:8.1%} of the memory  (wanted: {WANTED_SPEED} x, {WANTED_MEMORY:.0%})")
    return 0 if agree and speed >= WANTED_SPEED and share <= WANTED_MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())
