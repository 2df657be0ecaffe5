"""Vision towers of the LLaVA baseline: square pictures (B, 3, S, S) in [-1, 1] -> features (B, n, width), frozen.

Two kinds: `clip` is a CLIP vision model in a local folder of transformers, as LLaVA uses it; `tokenizer` is the encoder of an image
tokenizer of this project, before or after its quantization, so that both ways of reading an image can be compared on one backbone.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from unicode.common.records import read_json
from unicode.images.transforms import eval_transform, to_float
from unicode.llm.vocabulary import first_line
from unicode.tokenizer.load import load_tokenizer

FITS = ("auto", "pad", "crop", "squash")
FEATURES = {"clip": ("patch", "cls_patch"), "tokenizer": ("quantized", "latent")}  # the first is the default
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the published models
GREY = (0.5, 0.5, 0.5)
DTYPES = ("float32", "bfloat16", "float16")
DIGEST_VALUES = 64  # of each tensor that go into a tower's fingerprint


@dataclass
class VisionSettings:
    """The LLaVA baseline: a vision tower whose features a projector brings into the language model's embedding space."""

    enabled: bool = False
    """Read images through a tower and a projector; otherwise images are ids of the vocabulary, this project's own way."""
    kind: str = "clip"
    """`clip` or `tokenizer`."""
    path: str = ""
    """Folder of the CLIP model, or of the image tokenizer."""
    feature: str = ""
    """`clip`: `patch` (default) or `cls_patch`, with the class token in front. `tokenizer`: `latent`, before quantization, or
    `quantized` (default), what its decoder gets."""
    layer: int = -2
    """`clip`: the hidden layer whose output is taken, counted as transformers counts them; LLaVA's is the last but one."""
    fit: str = "auto"
    """How a picture becomes square: `pad` with the tower's mean colour, `crop` the middle, `squash`; auto: pad for clip, crop for
    a tokenizer, as it was trained."""
    dtype: str = "float32"
    """Arithmetic of the tower, whatever the language model's: a frozen tower is no part of mixed precision or of ZeRO."""
    projector: str = "mlp2x_gelu"
    """`linear`, `mlp2x_gelu` (LLaVA-1.5), or any other `mlpNx_gelu`."""
    projector_path: str = ""
    """A projector to begin with: a run folder, projector.safetensors or LLaVA's mm_projector.bin; empty: begin anew."""
    projector_only: bool = False
    """Train the projector alone, the language model frozen: LLaVA's first stage."""
    images: list[str] = field(default_factory=list)
    """Where the pictures of the annotation files lie: folders that their paths start from, LMDB folders, tar shards, or "shapes"."""
    world: list[str] = field(default_factory=list)
    """Settings of the generated world of "shapes" that differ from the default one, as colours=8."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        if self.kind not in TOWERS:
            raise ValueError(f"vision.kind is '{self.kind}'; choose one of {', '.join(TOWERS)}")
        for name, allowed in (("feature", ("", *FEATURES[self.kind])), ("fit", FITS), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"vision.{name} is '{getattr(self, name)}'; with vision.kind={self.kind} one of {', '.join(filter(None, allowed))}"
                )
        if self.enabled and not self.path:
            raise ValueError(f"vision.enabled=true needs vision.path, the folder of the {self.kind} tower")
        if self.projector_only and not self.enabled:
            raise ValueError("vision.projector_only=true trains nothing without vision.enabled=true")

    @property
    def chosen_feature(self) -> str:
        """`feature`, or the default of the kind."""
        return self.feature or FEATURES[self.kind][0]


class Tower(nn.Module, ABC):
    """A frozen picture reader.

    Attributes:
        image_size: side S of the square pictures.
        num_features: features n of a picture.
        width: width of each.
        fingerprint: 16 hexadecimal digits that tell towers apart.
        transform: RGB picture -> (3, S, S) uint8, the same in training and in use.
    """

    image_size: int
    num_features: int
    width: int
    fingerprint: str
    transform: Callable[[Image.Image], Tensor]

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1], on the tower's device and of its dtype -> (B, n, width)."""

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) uint8, or floats in [-1, 1] -> (B, n, width) in the tower's dtype, without gradient."""
        expected = (3, self.image_size, self.image_size)
        assert pixels.shape[1:] == expected, (pixels.shape, expected)
        pixels = pixels.to(self.device)
        if pixels.dtype == torch.uint8:
            pixels = to_float(pixels)
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            return self.features(pixels.to(self.dtype))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def train(self, mode: bool = True) -> "Tower":
        """Stay in evaluation mode: a frozen tower has nothing to train."""
        return super().train(False)

    def freeze_(self) -> None:
        """End the construction: nothing requires gradient, evaluation mode."""
        self.requires_grad_(False)
        self.train(False)


class ClipTower(Tower):
    """Patch features of a hidden layer of a CLIP vision model.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no CLIP model that opens, or has no such layer.
    """

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        folder = Path(settings.path)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"vision.path '{folder}' has no config.json; give a folder with a CLIP model, downloaded beforehand")
        self.model = _open_clip(folder)
        config = self.model.config
        if not -config.num_hidden_layers - 1 <= settings.layer <= config.num_hidden_layers:
            raise ValueError(f"vision.layer is {settings.layer}, but the tower {folder} has {config.num_hidden_layers} layers")
        self.layer, self.with_class = settings.layer, settings.chosen_feature == "cls_patch"
        self.image_size, self.width = int(config.image_size), int(config.hidden_size)
        self.num_features = (self.image_size // int(config.patch_size)) ** 2 + int(self.with_class)
        processor = read_json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
        self.mean = tuple(processor.get("image_mean") or CLIP_MEAN)
        self.std = tuple(processor.get("image_std") or CLIP_STD)
        fit = "pad" if settings.fit == "auto" else settings.fit
        self.transform = square_transform(self.image_size, fit=fit, colour=self.mean)
        self.fingerprint = digest_weights(self.model, repr((config.to_dict().get("model_type"), self.mean, self.std)))

    def features(self, pixels: Tensor) -> Tensor:
        """See `Tower.features`."""
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        hidden = self.model(pixel_values=((pixels + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states[self.layer]
        return hidden if self.with_class else hidden[:, 1:]


class TokenizerTower(Tower):
    """Features of an image tokenizer on its finest grid, raster order: latents, or the quantized vectors that its decoder gets.

    Raises:
        FileNotFoundError, ValueError: see `unicode.tokenizer.load.load_tokenizer`.
    """

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        tokenizer = load_tokenizer(settings.path)
        self.encoder, self.quant_conv = tokenizer.encoder, tokenizer.quant_conv
        self.stack = None if settings.chosen_feature == "latent" else tokenizer.stack
        self.image_size = tokenizer.config.image_size
        self.num_features = (self.image_size // tokenizer.config.autoencoder.stride) ** 2
        self.width = tokenizer.stack.out_channels if self.stack is not None else tokenizer.config.map_channels
        self.transform = square_transform(self.image_size, fit="crop" if settings.fit == "auto" else settings.fit, colour=GREY)
        self.fingerprint = tokenizer.fingerprint

    def features(self, pixels: Tensor) -> Tensor:
        """See `Tower.features`."""
        latents = self.quant_conv(self.encoder(pixels))
        return rearrange(latents if self.stack is None else self.stack(latents).features, "b c h w -> b (h w) c")


TOWERS: dict[str, Callable[[VisionSettings], Tower]] = {"clip": ClipTower, "tokenizer": TokenizerTower}


def build_tower(settings: VisionSettings) -> Tower:
    """Return the frozen tower that the settings name, on the CPU.

    Build it before training arguments with ZeRO-3 exist: transformers divides every model that it opens from then on among the ranks,
    and the tower, which needs no optimizer, stays whole on each of them.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder does not hold what `vision.kind` says.
    """
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    assert not is_deepspeed_zero3_enabled(), "build the tower before the training arguments"
    tower = TOWERS[settings.kind](settings)
    tower.to(getattr(torch, settings.dtype))
    tower.freeze_()
    return tower


def square_transform(image_size: int, *, fit: str, colour: tuple[float, ...]) -> Callable[[Image.Image], Tensor]:
    """Return the way of an RGB picture of any shape to (3, S, S) uint8, resized with an antialiased bicubic kernel.

    Args:
        fit: `pad` the shorter side with `colour` (0 to 1 each), `crop` the middle square, or `squash`.
    """
    if fit == "crop":
        return eval_transform(image_size)
    steps: list[Any] = [v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC, antialias=True), v2.PILToTensor()]
    return v2.Compose([PadToSquare(colour), *steps] if fit == "pad" else steps)


@dataclass(frozen=True)
class PadToSquare:
    """Centre a picture on a square of its longer side, the rest in `colour` (0 to 1 each)."""

    colour: tuple[float, ...]

    def __call__(self, picture: Image.Image) -> Image.Image:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), tuple(int(255 * part) for part in self.colour))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return square


def digest_weights(module: nn.Module, description: str) -> str:
    """16 hexadecimal digits from a description, the names and shapes of all tensors and the first values of each."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:DIGEST_VALUES].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _open_clip(folder: Path) -> Any:
    from transformers import CLIPVisionModel

    try:
        loaded: Any = CLIPVisionModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # transformers fails in many ways on a folder of another model
        raise ValueError(f"vision.path '{folder}' holds no CLIP vision model that opens ({first_line(error)})") from error
    model, found = loaded
    if found["missing_keys"]:
        first = sorted(found["missing_keys"])[0]
        raise ValueError(f"vision.path '{folder}' holds no CLIP vision model: it lacks {len(found['missing_keys'])} weights, as {first}")
    return model
