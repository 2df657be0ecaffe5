"""Fréchet distance of two sets of images in the feature space of Inception v3: uint8 images -> sums -> one number.

The network is torchmetrics' (the weights and the resize of torch-fidelity, which repeat the original TensorFlow graph). The
sums are ours: float64, added over the ranks once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unicode.common.distributed import all_reduce_sum_
from unicode.common.files import read_tensors
from unicode.metrics import NotComputed, entry

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


class Inception(nn.Module):
    """Inception v3 of the FID: (B, 3, H, W) uint8 -> (B, 2048) float32 pool features; frozen, always in evaluation mode."""

    num_features = 2048

    def __init__(self, weights_path: str | Path | None) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3  # seconds to import, and only needed when the weights are there

        source = None if weights_path is None else str(weights_path)
        self.network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"], feature_extractor_weights_path=source)
        # the resize of the original Inception graph, which published figures were computed with; older versions know no other
        self.network.use_antialias = False
        self.source = Path(weights_path).name if weights_path else INCEPTION_FILE

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Resize to 299 x 299 (bilinear as in TensorFlow 1, no antialiasing) and return the pool features."""
        return self.network(images)

    @property
    def class_weight(self) -> Tensor:
        """Rows of the 1008 classes (1008, 2048), without bias as the inception score takes them."""
        return self.network.fc.weight


def load_inception(path: str | Path = "") -> Inception | NotComputed:
    """Load the Inception network of the FID from a file, else from torch's cache folder, else by the library's download.

    Raises FileNotFoundError: `path` is given and there is no such file. Raises ValueError: the file does not hold this network's weights.
    """
    if path:
        read_tensors(path, wanted=f"torch-fidelity's {INCEPTION_FILE} (--inception)")  # the library itself would run a pickle's code
        try:
            return Inception(path)
        except RuntimeError as error:  # load_state_dict lists every missing key; one line is enough
            raise ValueError(f"{path} does not hold the Inception weights of torch-fidelity ({INCEPTION_FILE})") from error
    place = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    try:
        return Inception(None)
    except (OSError, RuntimeError, ModuleNotFoundError) as error:
        reason = f"the Inception weights are not in {place.parent} and could not be downloaded ({error})"
        return NotComputed(reason=reason, remedy=f"put {INCEPTION_FILE} of torch-fidelity at {place}, or give its path with --inception")


class FeatureSums:
    """Running sums of the features of a set of images, in float64: number, sum (D,), sum of outer products (D, D)."""

    def __init__(self, num_features: int, *, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(num_features, dtype=torch.float64, device=device)
        self.outer = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)

    def update_(self, features: Tensor) -> None:
        """Add the features (B, D) of a batch."""
        features = features.double()
        self.count += features.shape[0]
        self.total += features.sum(0)
        self.outer += features.T @ features

    @classmethod
    def pair(cls, inception: nn.Module | NotComputed, *, device: torch.device | str) -> "tuple[FeatureSums, FeatureSums]":
        """Sums for two sets of images and the features of a network; of width 1 where there is none."""
        width = 1 if isinstance(inception, NotComputed) else int(inception.num_features)  # type: ignore[arg-type]
        return cls(width, device=device), cls(width, device=device)

    def tensors(self) -> list[Tensor]:
        """The sums themselves, for an all-reduce in place."""
        return [self.count, self.total, self.outer]

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D) of the images so far; needs two of them."""
        mean = self.total / self.count
        return mean, (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet_distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians (mean (D,), covariance (D, D)), in float64.

    The trace of the root is taken from the symmetric S1^(1/2) S2 S1^(1/2), which has the same eigenvalues, all real and not
    negative, also where fewer images than features leave the covariances without full rank (Heusel et al. 2017, eq. 6).
    """
    (mean1, cov1), (mean2, cov2) = first, second
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp_min(0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross)


def reduce_sums_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the ranks, in one all-reduce (a collective call); counts stay exact in float64."""
    flat = all_reduce_sum_(torch.cat([tensor.double().reshape(-1) for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.reshape(tensor.shape))


def frechet_entry(
    inception: nn.Module | NotComputed, real: FeatureSums, fake: FeatureSums, *, compared: str, remedy: str
) -> dict[str, Any]:
    """Return the entry of the distance of two sets of images, or why there is none.

    `compared`: both sets with their numbers, in words. `remedy`: what to do where a set has fewer than the 2 images that a covariance
    needs.
    """
    if isinstance(inception, NotComputed):
        return inception.to_dict()
    number = int(min(real.count, fake.count))
    if number < 2:
        return NotComputed(f"{compared}; a covariance needs 2 of each", remedy).to_dict()
    source = getattr(inception, "source", type(inception).__name__)
    few = "" if number > real.total.numel() else "; fewer images than features, so only comparable at these numbers"
    how = f"{compared}; features {source}, resize to 299 px as in torch-fidelity{few}"
    return entry(frechet_distance(real.gaussian(), fake.gaussian()), unit="", protocol=how)
