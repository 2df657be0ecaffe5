"""The LLaVA baseline: vision tower, projector and a language model that reads projected features; folders that LLaVA's code wrote."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from transformers import AutoConfig, AutoModel

from unicode.common.files import atomic_write, read_json, read_tensors, stable_bytes
from unicode.images.decode import eval_transform, to_float
from unicode.llm.vocabulary import open_pretrained
from unicode.tokenizer.load import load_tokenizer

PROJECTOR_FILE, LLAVA_FILE = "projector.safetensors", "mm_projector.bin"
_MLP = re.compile(r"mlp([1-9])x_gelu")
_LLAVA_NAME = re.compile(r"(?:.*\.)?mm_projector\.(.+)")


def build_projector(kind: str, in_width: int, out_width: int) -> nn.Sequential:
    """Return a projector: `linear`, or `mlpNx_gelu` with N layers and GELU between them; its tensors have LLaVA's names.

    Raises ValueError: an unknown kind.
    """
    match = _MLP.fullmatch(kind)
    if kind != "linear" and match is None:
        raise ValueError(f"vision.projector is '{kind}'; choose linear, mlp2x_gelu or another mlpNx_gelu")
    layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
    for _ in range(1, int(match[1]) if match else 1):
        layers += [nn.GELU(), nn.Linear(out_width, out_width)]
    return nn.Sequential(*layers)


def save_projector(folder: str | Path, state: dict[str, torch.Tensor]) -> None:
    """Write the state dict of a projector to projector.safetensors in a folder, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(Path(folder) / PROJECTOR_FILE, "wb") as file:
        file.write(stable_bytes(tensors, {"format": "pt"}))


def load_projector_(projector: nn.Module, path: str | Path) -> None:
    """Fill a projector from a folder or a file of one, this project's or LLaVA's.

    Raises FileNotFoundError: there is none. Raises ValueError: the file is damaged, or holds a projector of another kind or width.
    """
    state, expected = read_projector(path), projector.state_dict()
    if {name: tensor.shape for name, tensor in state.items()} != {name: tensor.shape for name, tensor in expected.items()}:
        reason = f"it holds {_layers(state)}, but vision.projector and the two models ask for {_layers(expected)}"
        raise ValueError(f"the projector of {path} does not fit: {reason}")
    projector.load_state_dict(state)


def read_projector(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict, by the names that `build_projector` gives, of a folder or a file of this project or of LLaVA.

    Raises FileNotFoundError: there is none. Raises ValueError: it is damaged or holds no projector.
    """
    places = [Path(path), Path(path) / PROJECTOR_FILE, Path(path) / LLAVA_FILE]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        expected = f"{PROJECTOR_FILE} or {LLAVA_FILE} expected"
        raise FileNotFoundError(f"no projector at '{path}': {expected}; scripts/pretrain_llava.sh trains one")
    state: dict[str, torch.Tensor] = read_tensors(file, wanted="a projector")
    return state if file.suffix == ".safetensors" else pick_projector(state, source=str(file))


def pick_projector(tensors: dict[str, torch.Tensor], *, source: str) -> dict[str, torch.Tensor]:
    """Return the projector among tensors with LLaVA's names, float32; ValueError naming `source` if there is none."""
    matches = [(_LLAVA_NAME.fullmatch(name), tensor) for name, tensor in (tensors.items() if isinstance(tensors, dict) else ())]
    state = {match[1]: tensor.float() for match, tensor in matches if match}
    if not state:
        raise ValueError(f"{source} holds no projector; names with mm_projector in them are expected")
    # a linear projector of LLaVA is no Sequential, so its names have no number
    return {name if name[0].isdigit() else f"0.{name}": tensor for name, tensor in state.items()}


def describe_projector(state: dict[str, torch.Tensor]) -> tuple[str, int, int]:
    """Return kind, input width and output width of a projector's state dict."""
    weights = [state[name] for name in sorted(state, key=lambda name: int(name.split(".")[0])) if name.endswith(".weight")]
    kind = "linear" if len(weights) == 1 else f"mlp{len(weights)}x_gelu"
    return kind, weights[0].shape[1], weights[-1].shape[0]


def _layers(state: dict[str, torch.Tensor]) -> str:
    layers = [f"{tensor.shape[1]} -> {tensor.shape[0]}" for name, tensor in sorted(state.items()) if tensor.ndim == 2]
    return f"{len(layers)} layer{'s' if len(layers) != 1 else ''} ({', '.join(layers) or 'none'})"


FITS = ("auto", "pad", "crop", "squash")
FEATURES = {"clip": ("patch", "cls_patch"), "tokenizer": ("quantized", "latent")}  # the first is the default
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the published CLIP models
GREY = (0.5, 0.5, 0.5)
DTYPES = ("auto", "float32", "bfloat16", "float16")
DIGEST_VALUES = 64  # values of each tensor in a tower's fingerprint


@dataclass
class VisionSettings:
    """The LLaVA baseline: a vision tower whose features a projector brings into the language model's embedding space."""

    enabled: bool = False  # Read images through a tower and a projector; otherwise images are ids of the vocabulary, this project's own way
    kind: str = "clip"
    """`clip` (CLIP, SigLIP, DINOv2 or another vision transformer of transformers) or `tokenizer` (an image tokenizer of this project)."""
    path: str = ""  # Folder of the vision model, or of the image tokenizer
    feature: str = ""
    """`clip`: `patch` (default) or `cls_patch`, with the class token in front. `tokenizer`: `latent`, before quantization, or
    `quantized` (default), what its decoder gets."""
    layer: int = -2  # `clip`: the hidden layer whose output is taken, counted as transformers counts them; LLaVA's is the last but one
    fit: str = "auto"
    """How an image becomes square: `pad` with the tower's mean colour, `crop` the middle, `squash`; auto: pad for clip, crop for
    a tokenizer, as it was trained."""
    dtype: str = "auto"
    """Of the tower, independent of the language model: a frozen tower is no part of mixed precision or of ZeRO. `float32`, `bfloat16`,
    `float16`, or `auto`: bfloat16 for a `clip` tower on a GPU, else float32, on which the codes of a tokenizer depend."""
    projector: str = "mlp2x_gelu"  # `linear`, `mlp2x_gelu` (LLaVA-1.5), or any other `mlpNx_gelu`
    projector_path: str = ""
    """A projector to begin with: a run folder, projector.safetensors or LLaVA's mm_projector.bin; empty: begin anew."""
    projector_only: bool = False  # Train the projector alone, the language model frozen: LLaVA's first stage
    images: list[str] = field(default_factory=list)
    """Where the images of the annotation files are: folders that their paths start from, LMDB folders, tar shards, or "shapes"."""
    world: list[str] = field(default_factory=list)
    """Settings of the generated world of "shapes" that differ from the default one, as colours=8."""

    def __post_init__(self) -> None:
        if self.kind not in TOWERS:
            raise ValueError(f"vision.kind is '{self.kind}'; choose one of {', '.join(TOWERS)}")
        for name, allowed in (("feature", ("", *FEATURES[self.kind])), ("fit", FITS), ("dtype", DTYPES)):
            if (value := getattr(self, name)) not in allowed:
                choices = ", ".join(filter(None, allowed))
                raise ValueError(f"vision.{name} is '{value}'; with vision.kind={self.kind} one of {choices}")
        if self.enabled and not self.path:
            raise ValueError(f"vision.enabled=true needs vision.path, the folder of the {self.kind} tower")
        if self.projector_only and not self.enabled:
            raise ValueError("vision.projector_only=true trains nothing without vision.enabled=true")

    @property
    def chosen_feature(self) -> str:
        """`feature`, or the default of the kind."""
        return self.feature or FEATURES[self.kind][0]


class Tower(nn.Module, ABC):
    """A frozen vision model."""

    image_size: int  # Side S of the square images
    num_features: int  # Features n of an image
    width: int  # Width of each
    fingerprint: str  # 16 hexadecimal digits that tell towers apart
    transform: Callable[[Image.Image], Tensor]  # RGB image -> (3, S, S) uint8, the same in training and inference
    auto_dtype: bool = False  # Whether `place_` chooses the dtype

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """Return (B, n, width) features of (B, 3, S, S) images in [-1, 1], on the tower's device and of its dtype."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, n, width) features in the tower's dtype, without gradient, of (B, 3, S, S) uint8 or floats in [-1, 1]."""
        assert pixels.shape[1:] == (3, self.image_size, self.image_size), (pixels.shape, self.image_size)
        weight = next(self.parameters())
        pixels = pixels.to(weight.device)
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            return self.features((to_float(pixels) if pixels.dtype == torch.uint8 else pixels).to(weight.dtype))

    def place_(self, device: torch.device) -> None:
        """Move to a device; with `auto_dtype` in bfloat16 on a GPU that has it, float32 elsewhere."""
        if next(self.parameters()).device != device:
            half = device.type == "cuda" and torch.cuda.is_bf16_supported()
            self.to(device, dtype=(torch.bfloat16 if half else torch.float32) if self.auto_dtype else None)

    def train(self, mode: bool = True) -> "Tower":
        return super().train(False)


class VisionModelTower(Tower):
    """Patch features of a hidden layer of a vision transformer.

    Raises FileNotFoundError: there is no such folder. Raises ValueError: it holds no vision model that opens, or has no such layer.
    """

    def __init__(self, settings: VisionSettings) -> None:
        super().__init__()
        folder = Path(settings.path)
        self.model = open_vision_model(folder, setting="vision.path")
        config = self.model.config
        if not -config.num_hidden_layers - 1 <= settings.layer <= config.num_hidden_layers:
            raise ValueError(f"vision.layer is {settings.layer}, but the tower {folder} has {config.num_hidden_layers} layers")
        self.layer, self.with_class = settings.layer, settings.chosen_feature == "cls_patch"
        self.image_size, self.width = int(config.image_size), int(config.hidden_size)
        self.num_patches = (self.image_size // int(config.patch_size)) ** 2
        self.num_features = self.num_patches + int(self.with_class)
        processor = read_json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
        mean, std = (tuple(processor.get(f"image_{name}") or default) for name, default in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
        colours = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        # on the device: a copy in each forward would make the host wait
        self.mean, self.std = (nn.Buffer(values, persistent=False) for values in colours)
        fit = "pad" if settings.fit == "auto" else settings.fit
        self.transform = square_transform(self.image_size, fit=fit, colour=mean)
        self.fingerprint = digest_weights(self.model, repr((config.to_dict().get("model_type"), mean, std)))

    def features(self, pixels: Tensor) -> Tensor:
        hidden = self.model(pixel_values=((pixels + 1) / 2 - self.mean) / self.std, output_hidden_states=True).hidden_states[self.layer]
        patches = hidden[:, -self.num_patches :]  # behind a class token and registers, where the model has them
        if not self.with_class:
            return patches
        if hidden.shape[1] == self.num_patches:
            raise ValueError("vision.feature is 'cls_patch', but the tower has no class token; set vision.feature=patch")
        return torch.cat((hidden[:, :1], patches), dim=1)


class TokenizerTower(Tower):
    """Features of an image tokenizer on its finest grid, raster order: latents, or the quantized vectors that its decoder gets.

    Raises FileNotFoundError, ValueError: see `unicode.tokenizer.load.load_tokenizer`.
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
        latents = self.quant_conv(self.encoder(pixels))
        return rearrange(latents if self.stack is None else self.stack(latents).features, "b c h w -> b (h w) c")


TOWERS: dict[str, Callable[[VisionSettings], Tower]] = {"clip": VisionModelTower, "tokenizer": TokenizerTower}


def build_tower(settings: VisionSettings) -> Tower:
    """Return the frozen tower that the settings name, on the CPU.

    Build it before training arguments with ZeRO-3 exist: from then on transformers splits every model that it opens over the ranks, and the
    tower, which needs no optimizer, is kept complete on each of them. Raises FileNotFoundError: there is no such folder. Raises ValueError:
    the folder does not hold a model of `vision.kind`.
    """
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    assert not is_deepspeed_zero3_enabled(), "build the tower before the training arguments"
    tower = TOWERS[settings.kind](settings)
    tower.auto_dtype = settings.dtype == "auto" and settings.kind == "clip"
    if settings.dtype != "auto":
        tower.to(getattr(torch, settings.dtype))
    return tower.requires_grad_(False).eval()


def square_transform(image_size: int, *, fit: str, colour: tuple[float, ...]) -> Callable[[Image.Image], Tensor]:
    """Return a transform of RGB images of any shape to (3, S, S) uint8, with an antialiased bicubic kernel.

    `fit`: `pad` the shorter side with `colour` (0 to 1 each), `crop` the middle square, or `squash`.
    """
    if fit == "crop":
        return eval_transform(image_size)
    steps: list[Any] = [v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC, antialias=True), v2.PILToTensor()]
    return v2.Compose([partial(pad_to_square, colour=colour), *steps] if fit == "pad" else steps)


def pad_to_square(picture: Image.Image, *, colour: tuple[float, ...]) -> Image.Image:
    """Centre an image on a square of its longer side, the rest in `colour` (0 to 1 each)."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * part) for part in colour))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def digest_weights(module: nn.Module, description: str) -> str:
    """Return 16 hexadecimal digits of a description, the names and shapes of all tensors and the first values of each."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:DIGEST_VALUES].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_vision_model(folder: Path, *, setting: str, patches: bool = True) -> Any:
    """Open a vision model in float32; of a model of images and text (CLIP, SigLIP) the vision part.

    `setting`: what names the folder, for messages. `patches`: take vision transformers only. Raises FileNotFoundError: no such folder.
    Raises ValueError: it holds no vision model that opens, or an incomplete one.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{setting} '{folder}' has no config.json; give a folder with a vision model, downloaded beforehand")
    fault = f"{setting} '{folder}' holds no vision model that opens"
    config = open_pretrained(AutoConfig, folder, fault)
    vision = getattr(config, "vision_config", config)
    if not hasattr(vision, "patch_size") if patches else hasattr(vision, "vocab_size"):
        raise ValueError(f"{fault} (a {config.model_type} model does not read images)")
    loaded, found = open_pretrained(AutoModel, folder, fault, dtype=torch.float32, output_loading_info=True)
    prefix = "vision_model." if hasattr(loaded, "vision_model") else ""
    missing = sorted(name for name in found["missing_keys"] if name.startswith(prefix))
    if missing:
        raise ValueError(f"{setting} '{folder}' holds no complete vision model: it lacks {len(missing)} weights, as {missing[0]}")
    return loaded.vision_model if prefix else loaded


class LlavaModel(nn.Module):
    """A language model that reads images through a tower and a projector.

    `lm`: a causal language model of transformers, or a PEFT model of one. `projector`: (..., tower.width) -> (..., D). The tower is frozen
    and deliberately no submodule: it is in no state dict and no optimizer, and DDP, ZeRO and casts do not change it. Every rank has a
    complete copy, which moves to the device of the language model.
    """

    tower: Tower

    def __init__(self, lm: nn.Module, tower: Tower, projector: nn.Module) -> None:
        super().__init__()
        self.lm, self.projector = lm, projector
        self.__dict__["tower"] = tower  # around nn.Module's registration

    def embed(self, input_ids: Tensor, *, pixels: Tensor | None = None, image_at: Tensor | None = None) -> Tensor:
        """Return the embeddings (B, T, D) of a batch, those of placeholders replaced by features, in the embedding layer's dtype.

        `input_ids`: (B, T); any id of the vocabulary at the placeholders. `pixels`: (m, 3, S, S) uint8 or in [-1, 1], the images in the
        order of their positions. `image_at`: (m n) int64 positions in the flattened batch (b T + t). Every call runs the embedding layer
        and the projector once. Without images a black one is read and none of its rows used, so that ranks with and without images run the
        same collective operations.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        tower = self.tower
        tower.place_(embeddings.device)
        if pixels is None or not len(pixels):
            pixels = torch.zeros(1, 3, tower.image_size, tower.image_size, dtype=torch.uint8, device=embeddings.device)
            image_at = torch.zeros(0, dtype=torch.long, device=embeddings.device)
        assert image_at is not None, "pixels without image_at"
        features = self.project(tower(pixels)).flatten(0, 1)
        assert len(image_at) in (0, len(features)), f"{len(image_at)} placeholders for {len(features)} features"
        return embeddings.flatten(0, 1).index_copy(0, image_at, features[: len(image_at)].to(embeddings.dtype)).view_as(embeddings)

    def project(self, features: Tensor) -> Tensor:
        """(m, n, width) -> (m, n, D) through the projector, in its own dtype."""
        return self.projector(features.to(next(self.projector.parameters()).dtype))  # type: ignore[no-any-return]

    def forward(self, input_ids: Tensor, *, pixels: Tensor | None = None, image_at: Tensor | None = None, **kwargs: Any) -> Any:
        """Return what the language model makes of a batch, see `embed`; `kwargs` are for it: attention_mask, position_ids, labels, ..."""
        return self.lm(inputs_embeds=self.embed(input_ids, pixels=pixels, image_at=image_at), **kwargs)

    # attributes that Trainer and generation loops read

    @property
    def config(self) -> Any:
        return self.lm.config

    @property
    def device(self) -> torch.device:
        return self.lm.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        return self.lm.dtype  # type: ignore[return-value]

    def get_input_embeddings(self) -> nn.Module:
        return self.lm.get_input_embeddings()  # type: ignore[operator, no-any-return]

    def save_pretrained(self, folder: str | Path, *, state_dict: dict[str, Tensor] | None = None, **kwargs: Any) -> None:
        """Write projector.safetensors and what was trained of the language model: an adapter, all its weights, or nothing.

        `state_dict`: weights of this module, gathered over the ranks (ZeRO-3); None: its own. `kwargs`: for `lm.save_pretrained`.
        """
        state = self.state_dict() if state_dict is None else state_dict
        if hasattr(self.lm, "peft_config") or any(parameter.requires_grad for parameter in self.lm.parameters()):
            self.lm.save_pretrained(folder, state_dict=part_of(state, "lm."), **kwargs)  # type: ignore[operator]
        save_projector(folder, part_of(state, "projector."))

    def load_trained_(self, folder: str | Path) -> None:
        """Load what `save_pretrained` wrote, to resume a training.

        Raises FileNotFoundError, ValueError: there is no projector, or one that does not fit.
        """
        load_projector_(self.projector, folder)
        lm: Any = self.lm
        if hasattr(lm, "peft_config"):
            lm.load_adapter(str(folder), lm.active_adapters[0], is_trainable=True)
        for file in sorted(Path(folder).glob("model*.safetensors")):
            self.lm.load_state_dict(load_file(file), strict=False)


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
