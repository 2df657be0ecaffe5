"""The adversarial part of tokenizer training: PatchGAN, hinge losses, LeCam, the adaptive weight and its schedule."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from unicode.common.distributed import all_reduce_sum_, world_size

NORMS = ("group", "none")


@dataclass
class DiscriminatorConfig:
    """Architecture and schedule of the discriminator. Steps are optimizer steps of the generator.

    The discriminator first trains alone, then its weight rises from 0: at full weight from the start it ruins a good generator.
    """

    enabled: bool = True  # False: reconstruction losses only, no discriminator is built
    start: int = 10000  # first step at which the discriminator itself trains
    alone_steps: int = 1000  # steps it then trains before the adversarial loss enters the generator's
    ramp_steps: int = 2000  # steps over which its weight in the generator's loss then rises from 0 to `weight`
    weight: float = 0.75  # final factor of the adversarial loss, on top of the adaptive weight
    adaptive: bool = True  # balance the adversarial gradient against the reconstruction's at the last layer
    adaptive_minimum: float = 0.01  # lower clamp of the adaptive weight: keeps the adversarial loss in force
    adaptive_maximum: float = 100.0  # upper clamp: for steps where the adversarial gradient is tiny
    norm: str = "group"  # "group" | "none"; no batch normalization, its statistics would differ from rank to rank
    num_layers: int = 2  # convolutions of stride 2; more = larger patches
    channels: int = 64  # channels of the first convolution, doubled by each layer up to eightfold
    lecam_weight: float = 0.0  # factor of the LeCam regularizer in the discriminator's loss; 0 = off, 0.001-0.05 usual
    lecam_decay: float = 0.999  # decay of LeCam's running means of the logits

    def __post_init__(self) -> None:
        for name in ("start", "alone_steps", "ramp_steps", "weight", "lecam_weight", "adaptive_minimum"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"objective.discriminator.{name} is {value}; it has to be a finite number, 0 or above")
        if not self.adaptive_minimum <= self.adaptive_maximum:
            raise ValueError(f"objective.discriminator.adaptive_maximum is {self.adaptive_maximum}, below adaptive_minimum")
        if self.norm not in NORMS:
            raise ValueError(f"objective.discriminator.norm is '{self.norm}'; it has to be one of {', '.join(NORMS)}")
        if self.num_layers < 1 or self.channels < 1:
            raise ValueError(f"objective.discriminator.num_layers ({self.num_layers}) and channels ({self.channels}) have to be at least 1")
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"objective.discriminator.lecam_decay is {self.lecam_decay}; it has to be in [0, 1), for example 0.999")


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv 1611.07004) with the key layout of the published tokenizers' discriminators.

    `main.0` convolution, then per layer a convolution, a norm and an activation (`main.2`, `main.3`, `main.5`, `main.6`, ...),
    at the end one convolution to a single channel. With norm "none" the norm's place in the sequence stays, empty.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.channels * min(2**layer, 8) for layer in range(config.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if index < config.num_layers else 1
            layers.append(nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=config.norm == "none"))
            layers.append(nn.GroupNorm(math.gcd(32, after), after, eps=1e-6) if config.norm == "group" else nn.Identity())
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        for layer in layers:  # normal weights of deviation 0.02, as in PatchGAN
            if isinstance(layer, nn.Conv2d | nn.GroupNorm):
                nn.init.normal_(layer.weight, 1.0 if isinstance(layer, nn.GroupNorm) else 0.0, 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of images (B, 3, H, W) in [-1, 1]; high for real images. 256 px and two layers give 62 x 62."""
        return self.main(images)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator, (mean relu(1 - D(x)) + mean relu(1 + D(x'))) / 2: a scalar from logits of any shape."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Hinge loss of the generator, -mean D(x'): a scalar from logits of any shape."""
    return -fake.mean()


class LeCam(nn.Module):
    """LeCam regularizer (Tseng et al. 2021, arXiv 2104.03310, eq. 3): a penalty on logits beyond the running mean of the other kind."""

    def __init__(self, *, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.real_mean, self.fake_mean = nn.Buffer(torch.zeros(())), nn.Buffer(torch.zeros(()))

    @torch.no_grad()
    def update_(self, real: Tensor, fake: Tensor) -> None:
        """Move the running means towards the logits of this step's images on all ranks; a collective call."""
        means = all_reduce_sum_(torch.stack([real.detach().float().mean(), fake.detach().float().mean()])) / world_size()
        self.real_mean.lerp_(means[0].to(self.real_mean), 1 - self.decay)
        self.fake_mean.lerp_(means[1].to(self.fake_mean), 1 - self.decay)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean relu(D(x) - mean fake)^2 + mean relu(mean real - D(x'))^2, a scalar; changes nothing."""
        return F.relu(real - self.fake_mean).square().mean() + F.relu(self.real_mean - fake).square().mean()


def adaptive_weight(
    features: Tensor, reconstruction: Tensor, adversarial: Tensor, conv: nn.Conv2d, *, maximum: float, minimum: float = 0.0
) -> Tensor:
    """||grad L_rec|| / (||grad L_adv|| + 1e-4) at the decoder's last layer, clamped (Esser et al. 2021, arXiv 2012.09841, eq. 7).

    The gradients of the layer's weight follow from its input `features` (B, C, H, W) and the gradients of both losses at the images
    (B, 3, H, W). They are averaged over the ranks, so the weight, a float32 scalar, is that of the whole batch and equal everywhere:
    a collective call.
    """
    size, padding = conv.weight.shape, conv.padding
    weights = [
        conv2d_weight(features, size, gradient.to(features.dtype), padding=padding).float()  # type: ignore[arg-type]
        for gradient in (reconstruction, adversarial)
    ]
    of_reconstruction, of_adversarial = all_reduce_sum_(torch.stack(weights)) / world_size()
    return (of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)).clamp(minimum, maximum)


def discriminator_trains(step: int, config: DiscriminatorConfig) -> bool:
    """Whether the discriminator is updated at this optimizer step."""
    return config.enabled and step >= config.start


def generator_weight(step: int, config: DiscriminatorConfig) -> float:
    """Factor of the adversarial loss at this optimizer step: 0 up to `start + alone_steps`, then a ramp up to `weight`."""
    since = step - config.start - config.alone_steps
    if not config.enabled or since < 0:
        return 0.0
    return config.weight * min(1.0, since / config.ramp_steps) if config.ramp_steps else config.weight
