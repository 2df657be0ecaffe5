"""Optimizer steps of Muon, by every rank and divided among ranks, with products in bf16 and in float32, by turns -> milliseconds of each.

    torchrun --nproc_per_node 2 tests/bench/muon_step.py

The matrices are those of the emoji model: four layers and the two of the cell head, all of width 192. One thread a rank.
"""

import time
from statistics import median

import torch
import torch.distributed as dist

from unicode.train.llm import MUON, MuonAdamW

LAYER, HEAD_LAYER = [(192, 192)] * 4 + [(512, 192)] * 2 + [(192, 512)], [(576, 192), (192, 192), (768, 192), (192, 768)]
SHAPES, STEPS = LAYER * 4 + HEAD_LAYER * 2, 40


class Undivided(MuonAdamW):
    """Every rank makes all steps."""

    def _owned(self) -> list[tuple[torch.nn.Parameter, int]]:
        return []


def main() -> None:
    """Take the steps and print the medians of rank 0."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    matrices = [torch.nn.Parameter(0.05 * torch.randn(shape)) for shape in SHAPES]
    gradients = [torch.randn(shape) for shape in SHAPES]
    kinds = {"by every rank": Undivided, "divided": MuonAdamW}
    optimizers = {
        f"{name}, {'bf16' if bf16 else 'float32'}": kind([{"params": matrices, "by": MUON, "lr": 0.02, "weight_decay": 0.0}], bf16=bf16)
        for name, kind in kinds.items()
        for bf16 in (True, False)
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in optimizers}
    for _ in range(STEPS):
        for name, optimizer in optimizers.items():
            for matrix, gradient in zip(matrices, gradients, strict=True):
                matrix.grad = gradient.clone()
            dist.barrier()
            cpu, wall = time.process_time(), time.perf_counter()
            optimizer.step()
            spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    for name, times in spent.items() if dist.get_rank() == 0 else ():
        cpu, wall = (1000 * median(values) for values in zip(*times, strict=True))
        print(f"{name}: {cpu:.1f} ms of CPU time a rank, {wall:.1f} ms")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
