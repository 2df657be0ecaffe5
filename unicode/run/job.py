"""The job that a command is part of: joins the other ranks that a launcher started, and picks this rank's device."""

import os
from datetime import timedelta

import torch
from torch import distributed

from unicode.common.ranks import world_size

PATIENCE = timedelta(days=14)  # ranks that wait for the slowest one must not give up on it


def open_job(device: str = "auto") -> torch.device:
    """Join the other ranks, if a launcher (torchrun, deepspeed) started this process with some, and return the device to use.

    The ranks speak through gloo, on CPU tensors; `unicode.run.command` leaves the group at the end.

    Args:
        device: "auto" for this rank's GPU or, without one, the CPU; otherwise a device as torch names it.

    Raises:
        ValueError: no such device.
    """
    if world_size() > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=PATIENCE)
    if device == "auto":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}; give auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen
