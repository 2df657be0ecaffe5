"""The processes of one job: who am I, how many are we, and sums over all of us that cost nothing when alone."""

import os

import torch
import torch.distributed as dist


def rank() -> int:
    """Index of this process in the job; 0 when it is alone. Before the process group exists the launcher's word counts."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes in the job; 1 when it is alone."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process writes the files and prints the progress of the job."""
    return rank() == 0


def all_reduce_sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace `tensor` by its sum over the ranks, in place, and return it; alone it stays as it is."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_min_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace `tensor` by its minimum over the ranks, in place, and return it; alone it stays as it is."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return tensor


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
