"""Pictures -> square uint8 tensors, for training (random crops) and for evaluation (centre crop), and uint8 <-> [-1, 1]."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

CROPS = ("auto", "random", "resized", "center")
RESIZES = ("bilinear", "bicubic", "lanczos")
SMALLEST_AREA = 0.75  # of a "resized" crop, as the HQ-VAE's FFHQ recipe has it

PictureTransform = Callable[[Image.Image], Tensor]  # RGB picture -> (3, S, S) uint8


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 (...) to float32 in [-1, 1]: 0 to -1 and 255 to 1, exactly."""
    return pixels.to(torch.float32).mul_(2 / 255).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Map floats in about [-1, 1] to uint8, rounding to the nearest and clamping; inverts `to_float` exactly."""
    return images.detach().float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def train_transform(image_size: int, *, crop: str = "random", flip: bool = False, resize: str = "bicubic") -> PictureTransform:
    """Return the training transform; it draws from torch's CPU generator (see `seeded`).

    Args:
        crop: "random" = shorter side to `image_size`, then a random square; "resized" = a random square of 75 to 100 % of the
            area, resized; "center" = shorter side to `image_size`, then the middle.
        flip: mirror half of the pictures.
        resize: the kernel, one of RESIZES; always antialiased.
    """
    kernel = InterpolationMode(resize)
    if crop == "resized":
        area, ratio = (SMALLEST_AREA, 1.0), (1.0, 1.0)
        steps: list[torch.nn.Module] = [v2.RandomResizedCrop(image_size, scale=area, ratio=ratio, interpolation=kernel, antialias=True)]
    else:
        cut = v2.RandomCrop(image_size) if crop == "random" else v2.CenterCrop(image_size)
        steps = [v2.Resize(image_size, interpolation=kernel, antialias=True), cut]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose([*steps, v2.PILToTensor()])


def eval_transform(image_size: int, *, resize: str = "bicubic") -> PictureTransform:
    """Return the evaluation transform: shorter side to `image_size` with an antialiased kernel, then the middle square."""
    return train_transform(image_size, crop="center", resize=resize)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with torch's CPU generator at `seed`, and put the generator back as it was; devices are not touched."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
