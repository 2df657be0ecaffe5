"""Metric networks whose weights are available: LPIPS on two trunks, Inception, CLIP."""

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from unicode.common.distributed import all_reduce_sum_, barrier, is_main, world_size
from unicode.metrics.entry import NotComputed
from unicode.metrics.frechet import load_inception
from unicode.tokenizer.losses import TRUNKS, load_lpips, trunk_file

Judge = nn.Module | NotComputed

PATIENCE = 30.0  # seconds without a byte before a download counts as failed; the libraries would wait for ever


@dataclass(frozen=True)
class Judges:
    """The networks of an evaluation, each on the rank's device."""

    lpips: dict[str, Judge]  # by trunk: two (B, 3, H, W) in [-1, 1] -> (B,)
    inception: Judge  # (B, 3, H, W) uint8 -> (B, 2048)


def load_judges(*, device: torch.device, vgg: str = "", alex: str = "", inception: str = "") -> Judges:
    """Load the networks from the named files, else from the libraries' caches, else by their downloads; a collective call.

    Raises:
        FileNotFoundError, ValueError: a named file is not there or holds something else.
    """
    loaded = _load_everywhere(
        {
            "alex": lambda: _load_lpips("alex", alex),
            "vgg": lambda: _load_lpips("vgg", vgg),
            "inception": lambda: load_inception(inception),
        },
        device,
    )
    return Judges(lpips={trunk: loaded[trunk] for trunk in TRUNKS}, inception=loaded["inception"])


def load_inception_everywhere(path: str = "", *, device: torch.device) -> Judge:
    """Load the Inception network alone; a collective call. Arguments and errors as `load_judges`."""
    return _load_everywhere({"inception": lambda: load_inception(path)}, device)["inception"]


def _load_everywhere(makers: Mapping[str, Callable[[], Judge]], device: torch.device) -> dict[str, Judge]:
    """Load networks on all ranks; one that is not there on some rank is there on none."""
    if not is_main():
        barrier()  # the main rank downloads, the others then find the files
    try:
        with _impatience():
            loaded = {name: make() for name, make in makers.items()}
    finally:
        if is_main():
            barrier()
    present = torch.tensor([isinstance(judge, nn.Module) for judge in loaded.values()], dtype=torch.int64)
    everywhere = (all_reduce_sum_(present.clone()) == world_size()).tolist()
    for (name, judge), shared in zip(loaded.items(), everywhere, strict=True):
        if isinstance(judge, nn.Module) and not shared:
            loaded[name] = NotComputed("the weights are not on every machine of the job", "put them in the same place on each machine")
        elif isinstance(judge, nn.Module):
            loaded[name] = judge.to(device)
    return loaded


def missing_files(judges: Judges) -> list[str]:
    """One phrase per network that is not there, with the remedy."""
    named = {f"LPIPS {trunk}": judge for trunk, judge in judges.lpips.items()} | {"rFID": judges.inception}
    return [f"{name} ({judge.remedy})" for name, judge in named.items() if isinstance(judge, NotComputed)]


@contextmanager
def _impatience() -> Iterator[None]:
    """Let sockets that Python opens meanwhile give up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _load_lpips(trunk: str, path: str) -> Judge:
    """LPIPS on one trunk, or why not."""
    try:
        return load_lpips(trunk, path=path, setting=f"--{trunk}")
    except FileNotFoundError:
        if path:
            raise
        place = trunk_file(trunk)
        reason = f"{place.name} is not in {place.parent} and could not be downloaded"
        return NotComputed(reason, f"put torchvision's {place.name} at {place}, or give its path with --{trunk}")
