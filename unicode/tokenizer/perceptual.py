"""LPIPS, the perceptual distance of Zhang et al. 2018 (arXiv 1801.03924): two batches of images -> one distance per image.

The network is the `lpips` library's; this module finds the weights of its trunk (a local file, else torchvision's cache or
download) and keeps the network out of everything that is trained or saved.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, VGG16_Weights

from unicode.common.tensors import read_tensors

# the library's name of a trunk -> torchvision's weights of it
TRUNKS: dict[str, Any] = {"vgg": VGG16_Weights.IMAGENET1K_V1, "alex": AlexNet_Weights.IMAGENET1K_V1}


@dataclass
class PerceptualConfig:
    """The perceptual part of the reconstruction loss."""

    weight: float = 1.0  # factor of the LPIPS distance in the loss; 0 = off, nothing is loaded
    vgg_path: str = ""  # torchvision's VGG16 state dict (vgg16-397923af.pth); empty = torchvision's cache, else its download
    random: bool = False  # the same network with random weights: for benchmarks and tests, no use as a loss

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"objective.perceptual.weight is {self.weight}; it has to be 0 (off) or a positive number, for example 1.0")


class PerceptualLoss(nn.Module):
    """LPIPS between images; frozen, always in evaluation mode, invisible to optimizers and checkpoints.

    The network is not registered as a submodule, so `parameters()`, `state_dict()` and `train()` do not reach it, while
    `.to()` and its relatives do. Precision is the caller's: float32 as it is, or whatever autocast is in force.
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "network", network.eval().requires_grad_(False))

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances of two batches of images (B, 3, H, W) in [-1, 1] -> (B,), 0 where they are equal; H and W at least 32."""
        return self.network(images, targets).flatten()

    def _apply(self, fn: Any, recurse: bool = True) -> "PerceptualLoss":
        """Let `.to()`, `.cuda()` and `.float()` reach the network."""
        super()._apply(fn, recurse)
        self.network._apply(fn, recurse)
        return self


def build_perceptual(config: PerceptualConfig) -> PerceptualLoss | None:
    """Return the VGG-based LPIPS loss of a config, or None where its weight is 0. Errors as `load_lpips`."""
    if config.weight == 0:
        return None
    return load_lpips("vgg", path=config.vgg_path, random=config.random, setting="objective.perceptual.vgg_path")


def load_lpips(trunk: str, *, path: str | Path = "", random: bool = False, setting: str = "path") -> PerceptualLoss:
    """Build LPIPS on the trunk "vgg" or "alex".

    Args:
        path: a file with torchvision's state dict of the trunk; empty = torchvision's cache folder, else its download.
        random: random weights, the same on every rank; nothing is read. The global random state stays as it is.
        setting: what the caller's user sets to give `path`, for the error messages.

    Raises:
        FileNotFoundError: the weights are neither at `path` nor in the cache, and cannot be downloaded.
        ValueError: an unknown trunk, the `lpips` package is not installed, or the file holds something else.
    """
    if trunk not in TRUNKS:
        raise ValueError(f"no LPIPS trunk '{trunk}'; there are: {', '.join(TRUNKS)}")
    try:
        import lpips  # an optional dependency that takes seconds to import
    except ModuleNotFoundError as error:
        raise ValueError("LPIPS needs the package lpips: `pip install lpips`, or set objective.perceptual.weight=0") from error
    state = None if random else _trunk_state(trunk, path, setting)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library calls torchvision in a deprecated way
        torch.manual_seed(0)
        network = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
    if state is not None:
        _load_trunk_(network.net, state, source=str(path) or "the weights in torchvision's cache")
    return PerceptualLoss(network)


def trunk_file(trunk: str) -> Path:
    """Where torchvision keeps the weights of a trunk, or would put them after its download."""
    return Path(torch.hub.get_dir()) / "checkpoints" / TRUNKS[trunk].url.rsplit("/", 1)[-1]


def _trunk_state(trunk: str, path: str | Path, setting: str) -> dict[str, Tensor]:
    """Read the state dict of a trunk from `path`, or from torchvision's cache or download."""
    place = trunk_file(trunk)
    if path:
        return read_tensors(path, wanted=f"torchvision's {place.name} ({setting})")
    try:
        return TRUNKS[trunk].get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"LPIPS needs {place.name}, torchvision's ImageNet weights: not in {place.parent}, and the download failed ({error}); "
            f"put the file at {place} or name it in {setting}"
        ) from error


def _load_trunk_(trunk: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Copy torchvision's `features.N.weight` into the library's `sliceK.N.weight`."""
    wanted = trunk.state_dict()
    renamed = {key: f"features.{key.split('.', 1)[1]}" for key in wanted}
    for key, name in renamed.items():
        found = state.get(name) if isinstance(state, dict) else None
        if not isinstance(found, Tensor) or found.shape != wanted[key].shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else "nothing"
            expected = f"{name} of shape {tuple(wanted[key].shape)}"
            raise ValueError(f"{source}: expected {expected}, found {shape}; this is not torchvision's file")
    trunk.load_state_dict({key: state[name] for key, name in renamed.items()})
