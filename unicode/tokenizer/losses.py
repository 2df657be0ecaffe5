"""Pixel, LPIPS, commitment, entropy and adversarial losses of a tokenizer."""

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, VGG16_Weights

from unicode.common.files import read_tensors
from unicode.tokenizer.discriminator import DiscriminatorConfig, adaptive_weight, generator_loss
from unicode.tokenizer.model import Reconstruction

# the library's name of a trunk -> torchvision's weights of it
TRUNKS: dict[str, Any] = {"vgg": VGG16_Weights.IMAGENET1K_V1, "alex": AlexNet_Weights.IMAGENET1K_V1}


@dataclass
class PerceptualConfig:
    """The perceptual part of the reconstruction loss."""

    weight: float = 1.0  # factor of the LPIPS distance in the loss; 0: off, nothing is loaded
    vgg_path: str = ""  # torchvision's VGG16 state dict (vgg16-397923af.pth); empty = torchvision's cache, else its download
    random: bool = False  # the same network with random weights, for benchmarks and tests only

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"objective.perceptual.weight is {self.weight}; it has to be 0 (off) or a positive number, for example 1.0")


class PerceptualLoss(nn.Module):
    """LPIPS between images, frozen and in evaluation mode.

    The network is not registered as a submodule: `.to()` reaches it, `parameters()`, `state_dict()` and `train()` do not.
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "network", network.eval().requires_grad_(False))

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances of two batches of images (B, 3, H, W) in [-1, 1] -> (B,), 0 where they are equal; H and W at least 32."""
        return self.network(images, targets).flatten()

    def _apply(self, fn: Any, recurse: bool = True) -> "PerceptualLoss":
        super()._apply(fn, recurse)
        self.network._apply(fn, recurse)
        return self


def load_lpips(trunk: str, *, path: str | Path = "", random: bool = False, setting: str = "path") -> PerceptualLoss:
    """Build LPIPS on the trunk "vgg" or "alex".

    `path`: a file with torchvision's state dict of the trunk; empty = torchvision's cache folder, else its download. `random`: random
    weights, the same on every rank; nothing is read. The global random state stays as it is. `setting`: what the user sets to give `path`,
    for the messages. Raises FileNotFoundError: the weights are neither at `path` nor in the cache, and cannot be downloaded. Raises
    ValueError: the `lpips` package is not installed, or the file holds something else.
    """
    try:
        import lpips  # an optional dependency that takes seconds to import
    except ModuleNotFoundError as error:
        raise ValueError("LPIPS needs the package lpips: `pip install lpips`, or set objective.perceptual.weight=0") from error
    place, state = trunk_file(trunk), None
    if path and not random:
        state = read_tensors(path, wanted=f"torchvision's {place.name} ({setting})")
    elif not random:
        try:
            state = TRUNKS[trunk].get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            fault = f"LPIPS needs {place.name}, torchvision's ImageNet weights: not in {place.parent}, and the download failed ({error})"
            raise FileNotFoundError(f"{fault}; put the file at {place} or name it in {setting}") from error
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library calls torchvision in a deprecated way
        torch.manual_seed(0)
        network = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
    if state is not None:
        _load_trunk_(network.net, state, source=str(path) or "the weights in torchvision's cache")
    return PerceptualLoss(network)


def trunk_file(trunk: str) -> Path:
    """Return the path in torchvision's cache of the weights of a trunk."""
    return Path(torch.hub.get_dir()) / "checkpoints" / TRUNKS[trunk].url.rsplit("/", 1)[-1]


def _load_trunk_(trunk: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Copy torchvision's `features.N.weight` into the library's `sliceK.N.weight`."""
    wanted = trunk.state_dict()
    renamed = {key: f"features.{key.split('.', 1)[1]}" for key in wanted}
    for key, name in renamed.items():
        found = state.get(name) if isinstance(state, dict) else None
        if not isinstance(found, Tensor) or found.shape != wanted[key].shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else "nothing"
            raise ValueError(f"{source} is not torchvision's file: expected {name} of shape {tuple(wanted[key].shape)}, found {shape}")
    trunk.load_state_dict({key: state[name] for key, name in renamed.items()})


@dataclass
class SemanticTermConfig:
    """What both semantic terms have."""

    weight: float = 0.0  # Weight in the loss; 0: off
    start: int = 0  # Step at which the term begins
    ramp_steps: int = 0  # Steps over which its weight rises
    levels: list[int] = field(default_factory=lambda: [0])  # Levels (RQ-VAE: passes) whose codes it reads, 0 the coarsest

    def __post_init__(self) -> None:
        if min(self.weight, self.start, self.ramp_steps, *self.levels) < 0 or not self.levels:
            given = f"weight ({self.weight}), start ({self.start}), ramp_steps ({self.ramp_steps}) and levels ({list(self.levels)})"
            raise ValueError(f"{given} of a term of objective.semantic cannot be negative, and it reads at least one level")

    def weight_at(self, step: int) -> float:
        """Return the weight of a step, counted from 0."""
        return self.weight * min(1.0, max(0, step + 1 - self.start) / max(1, self.ramp_steps))


@dataclass
class WordsConfig(SemanticTermConfig):
    """The term that pulls an image's codes, as words, to the words of its caption."""

    model: str = ""  # Folder of the language model of `model.codebook.table`, or its GGUF file: its tokenizer splits captions into words
    neighbours: int = 32  # Rows near a latent over which its gradient goes to the words
    temperature: float = 0.1  # Temperature of their shares, in mean squared lengths of a row

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight > 0 and not self.model:
            raise ValueError("objective.semantic.words.model is empty; name the folder of the language model of model.codebook.table")
        if self.neighbours < 2 or self.temperature <= 0:
            raise ValueError("objective.semantic.words.neighbours must be at least 2 and temperature positive")


@dataclass
class TeacherConfig(SemanticTermConfig):
    """The term that predicts features of a frozen vision model from the codes."""

    path: str = ""  # Folder of a vision model (CLIP, SigLIP, DINOv2, or a CNN of transformers), or file of the weights of `network`
    network: str = ""  # For a file: the network that it belongs to, by torchvision's name, as resnet50
    image_size: int = 0  # Side in pixels at which it gets the pictures; 0: the model's own, or 224
    width: int = 512  # Width of the hidden layer of the small network that predicts
    cache: str = ""
    """File of features (.safetensors) by the key of a picture; it is made before the first step, and later runs need no teacher. For
    pictures that are always cropped alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight > 0 and not (self.path or self.cache):
            raise ValueError("objective.semantic.teacher needs a path, the folder of a vision model, or a cache of its features")
        if self.image_size < 0 or self.width < 1:
            raise ValueError("objective.semantic.teacher.image_size cannot be negative, and width must be positive")


@dataclass
class SemanticConfig:
    """Supervision by meaning, after the published finding that it helps understanding most (UniTok, VILA-U)."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)  # Codes against the features of a frozen vision model
    words: WordsConfig = field(default_factory=WordsConfig)  # Codes as words against the words of captions


@dataclass
class ObjectiveConfig:
    """Weights of the parts of the loss."""

    l1: float = 0.0  # Weight of the mean absolute difference of pixels
    l2: float = 1.0  # Weight of the mean squared difference of pixels
    commitment: float = 1.0  # Weight of the commitment loss, the mean over the levels (beta is in the codebook's config)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)  # LPIPS
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)  # The adversarial part
    semantic: SemanticConfig = field(default_factory=SemanticConfig)  # Supervision by a teacher's features and by captions

    def __post_init__(self) -> None:
        if min(self.l1, self.l2, self.commitment) < 0 or self.l1 + self.l2 == 0:
            given = f"l1 ({self.l1}), l2 ({self.l2}) and commitment ({self.commitment})"
            raise ValueError(f"objective.{given} must be 0 or more, and l1 or l2 above 0")


class Objective(nn.Module):
    """The generator's loss of a reconstruction; `entropy_weight` is that of the codebook's entropy term."""

    def __init__(self, config: ObjectiveConfig, *, entropy_weight: float) -> None:
        super().__init__()
        self.config, self.entropy_weight, self.perceptual = config, entropy_weight, None
        if config.perceptual.weight > 0:
            path, random = config.perceptual.vgg_path, config.perceptual.random
            self.perceptual = load_lpips("vgg", path=path, random=random, setting="objective.perceptual.vgg_path")

    def forward(
        self,
        reconstruction: Reconstruction,
        images: torch.Tensor,
        *,
        discriminator: nn.Module | None,
        adversarial_weight: float,
        last_layer: nn.Conv2d,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a surrogate of the loss of (B, 3, H, W) images in [-1, 1], and its parts, detached scalars for the log; `loss` is all.

        The surrogate is a scalar whose gradient, not whose value, is that of the loss: <images, dL/d images> + codebook losses. The
        gradients of the reconstruction loss and of the adversarial loss are taken at the images, once each; the adaptive weight follows
        from both at the decoder's last layer. `discriminator`: with parameters frozen by the caller; may be None when the weight is 0.
        `adversarial_weight`: scheduled weight of the adversarial loss; at 0 the discriminator is not called.
        """
        config, made = self.config, reconstruction.images.float()
        pixels = made.detach().requires_grad_()
        parts = {"l1": F.l1_loss(pixels, images), "l2": F.mse_loss(pixels, images)}
        total = config.l1 * parts["l1"] + config.l2 * parts["l2"]
        if self.perceptual is not None:
            parts["lpips"] = self.perceptual(pixels, images).mean()
            total = total + config.perceptual.weight * parts["lpips"]
        gradient = _gradient_at_(pixels, total)
        if discriminator is not None and adversarial_weight > 0:
            parts["adversarial"] = generator_loss(discriminator(pixels).float())
            adversarial = _gradient_at_(pixels, parts["adversarial"])
            weight: torch.Tensor | float = adversarial_weight
            if (options := config.discriminator).adaptive:
                features = reconstruction.features.to(reconstruction.images.dtype)
                bounds = {"maximum": options.adaptive_maximum, "minimum": options.adaptive_minimum}
                parts["adaptive_weight"] = adaptive_weight(features, gradient, adversarial, last_layer, **bounds)
                weight = adversarial_weight * parts["adaptive_weight"]
            gradient = gradient + weight * adversarial
            total = total + weight * parts["adversarial"]
        codebooks = config.commitment * reconstruction.commitment.mean()
        parts |= {f"commitment_{level}": commitment for level, commitment in enumerate(reconstruction.commitment)}
        if self.entropy_weight > 0:
            parts["entropy"] = reconstruction.entropy
            codebooks = codebooks + self.entropy_weight * reconstruction.entropy
        parts["loss"] = total + codebooks
        return (made * gradient).sum() + codebooks, {name: part.detach() for name, part in parts.items()}


def _gradient_at_(pixels: Tensor, loss: Tensor) -> Tensor:
    """Return the gradient of a loss at a leaf, whose `grad` it uses: FlopCounterMode does not allow `autograd.grad` there."""
    loss.backward(inputs=[pixels])  # type: ignore[no-untyped-call]
    gradient, pixels.grad = pixels.grad, None
    assert gradient is not None
    return gradient


def image_psnr(made: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return (B,) the PSNR in dB of (B, 3, H, W) images in [-1, 1] against their originals, after clamping to that range."""
    return 10 * torch.log10(4.0 / (made.float().clamp(-1, 1) - images).square().flatten(1).mean(1).clamp_min(1e-12))
