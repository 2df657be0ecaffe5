"""What a tokenizer is trained against: pixels, perception, commitment, codebook entropy and the discriminator's opinion."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from unicode.tokenizer.discriminator import DiscriminatorConfig, adaptive_weight, generator_loss
from unicode.tokenizer.model import Reconstruction
from unicode.tokenizer.perceptual import PerceptualConfig, build_perceptual


@dataclass
class ObjectiveConfig:
    """Weights of the parts of the loss."""

    l1: float = 0.0
    """Weight of the mean absolute difference of pixels."""
    l2: float = 1.0
    """Weight of the mean squared difference of pixels."""
    commitment: float = 1.0
    """Weight of the commitment loss, the mean over the levels (beta is in the codebook's config)."""
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    """LPIPS."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The adversarial part."""

    def __post_init__(self) -> None:
        """Reject an objective without pixels."""
        if min(self.l1, self.l2, self.commitment) < 0 or self.l1 + self.l2 == 0:
            given = f"l1 ({self.l1}), l2 ({self.l2}) and commitment ({self.commitment})"
            raise ValueError(f"objective.{given} must be 0 or more, and l1 or l2 above 0")


@dataclass
class Losses:
    """The generator's loss and its parts, scalars: `total` with gradient, the others to be logged."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class Objective(nn.Module):
    """The generator's loss of a reconstruction.

    Args:
        config: weights.
        entropy_weight: weight of the codebook's entropy term.
    """

    def __init__(self, config: ObjectiveConfig, *, entropy_weight: float) -> None:
        super().__init__()
        self.config, self.entropy_weight = config, entropy_weight
        self.perceptual = build_perceptual(config.perceptual)

    def forward(
        self,
        reconstruction: Reconstruction,
        images: torch.Tensor,
        *,
        discriminator: nn.Module | None,
        adversarial_weight: float,
        last_weight: torch.Tensor,
    ) -> Losses:
        """Return the losses of one batch.

        Args:
            reconstruction: what the tokenizer made of `images`.
            images: (B, 3, H, W) in [-1, 1].
            discriminator: judge of the reconstruction, its own parameters frozen by the caller; may be None when the weight is 0.
            adversarial_weight: scheduled weight of the judge's opinion, 0 before it has a say.
            last_weight: weight of the decoder's last layer, where the adaptive weight compares gradients.
        """
        config, made = self.config, reconstruction.images.float()
        parts = {"l1": F.l1_loss(made, images), "l2": F.mse_loss(made, images)}
        total = config.l1 * parts["l1"] + config.l2 * parts["l2"]
        if self.perceptual is not None:
            parts["lpips"] = self.perceptual(made, images).mean()
            total = total + config.perceptual.weight * parts["lpips"]
        if discriminator is not None and adversarial_weight > 0:
            opinion = generator_loss(discriminator(made).float())
            parts["adversarial"] = opinion
            bounds = config.discriminator
            if bounds.adaptive:
                balance = adaptive_weight(total, opinion, last_weight, maximum=bounds.adaptive_maximum, minimum=bounds.adaptive_minimum)
                parts["adaptive_weight"] = balance
                opinion = balance * opinion
            total = total + adversarial_weight * opinion
        for level, commitment in enumerate(reconstruction.commitment):
            parts[f"commitment_{level}"] = commitment
        total = total + config.commitment * reconstruction.commitment.mean()
        if self.entropy_weight > 0:
            parts["entropy"] = reconstruction.entropy
            total = total + self.entropy_weight * reconstruction.entropy
        return Losses(total, {name: part.detach() for name, part in parts.items()} | {"loss": total.detach()})


def image_psnr(made: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return (B,) the PSNR in dB of (B, 3, H, W) images in [-1, 1] against their originals, after clamping to that range."""
    error = (made.float().clamp(-1, 1) - images).square().flatten(1).mean(1)
    return 10 * torch.log10(4.0 / error.clamp_min(1e-12))
