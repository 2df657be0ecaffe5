"""Distributed helpers: rank, device and reductions; no-ops on one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def process_group() -> ModuleType | None:
    """Return `torch.distributed` if this process is in a process group, else None.

    A process that has not imported torch is in no group; torch takes seconds to import and is not imported to find that out.
    """
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_initialized() else None


def _peers() -> ModuleType | None:
    dist = process_group()
    return dist if dist and dist.get_world_size() > 1 else None


def rank() -> int:
    """Index of this process in the job; 0 when it is alone. Before the process group exists, the launcher's RANK."""
    dist = process_group()
    return dist.get_rank() if dist else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes in the job; 1 when it is alone. Before the process group exists, the launcher's WORLD_SIZE."""
    dist = process_group()
    return dist.get_world_size() if dist else int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process writes the files and prints the progress of the job."""
    return rank() == 0


def all_reduce_sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace `tensor` by its sum over the ranks, in place, and return it; alone it stays as it is."""
    if dist := _peers():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_min_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace `tensor` by its minimum over the ranks, in place, and return it."""
    if dist := _peers():
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return tensor


def broadcast_(tensor: torch.Tensor, source: int) -> None:
    """Replace `tensor` by that of rank `source`, in place."""
    if dist := _peers():
        dist.broadcast(tensor, source)


def ranks_agree(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether all ranks hold the same bits in float32 or int32 tensors, by a checksum; a collective call that waits for the device."""
    if _peers() is None:
        return True
    import torch

    sums = []
    for tensor in tensors:
        bits = tensor.detach().flatten().view(torch.int32).long()
        sums.append((bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum())
    checksum = torch.stack(sums)
    smallest, largest = all_reduce_min_(torch.stack([checksum, -checksum]))
    return bool((smallest == -largest).all())


def barrier() -> None:
    """Wait for every rank."""
    if dist := _peers():
        dist.barrier()


def on_main(compute: Callable[[], T]) -> T:
    """Call `compute` on the main rank only; return its result, or raise its error, on every rank."""
    if (dist := _peers()) is None:
        return compute()
    box: list[Any] = [None, None]
    if is_main():
        try:
            box[0] = compute()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]  # type: ignore[no-any-return]


def open_job(device: str = "auto") -> torch.device:
    """Join the other ranks, if a launcher (torchrun, deepspeed) started this process with some, and return the device to use.

    The ranks exchange CPU tensors through gloo; `unicode.run.command` leaves the group at the end. `device`: "auto" for this rank's GPU or,
    without one, the CPU; otherwise a device as torch names it. Raises ValueError: no such device.
    """
    import torch
    import torch.distributed as dist

    if world_size() > 1 and process_group() is None:
        dist.init_process_group("gloo", timeout=timedelta(days=1))  # a rank may work for hours between two exchanges
    if device == "auto":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    chosen = choose_device(device, option="--device")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def choose_device(device: str | torch.device, *, option: str = "device") -> torch.device:
    """Return a device; "auto" is a GPU where there is one. ValueError, which names the option, where there is none of that name."""
    import torch

    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{option} {device}: {str(error).splitlines()[0]}; give auto, cpu, cuda or cuda:N") from error
    return chosen
