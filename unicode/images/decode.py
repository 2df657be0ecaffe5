"""Bytes of an image file -> an upright RGB picture -> a square uint8 tensor."""

import warnings
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from unicode.images.listing import UnreadableImageError

ORIENTATION = 0x0112  # the EXIF tag
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no other decoder runs: Pillow opens EPS with Ghostscript


def open_image(source: bytes | str | Path) -> Image.Image:
    """Open the content or the path of an image file of unknown origin, whatever its name; pixels are decoded when first used.

    Raises OSError: there is no such file, or it is no image of one of `FORMATS`. Raises Image.DecompressionBombError: the image has more
    pixels than Pillow reads.
    """
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def decode_image(data: bytes, *, shorter: int = 0, max_pixels: int = 89_478_485) -> Image.Image:
    """Decode an image file and return it upright and in RGB.

    Transparency is composited on white, 16-bit grey becomes 8-bit by its high byte, palettes and CMYK are converted, the EXIF orientation
    is applied, of an animation the first frame is taken. `shorter`: JPEGs are decoded at the smallest scale (1, 1/2, 1/4, 1/8) that leaves
    the shorter side at least so long; 0: full size. `max_pixels`: larger images are refused before they are decoded. Raises
    UnreadableImageError: empty, not an image, damaged or truncated, or too large.
    """
    if not data:
        raise UnreadableImageError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd tags, once a file and worker
        try:
            image = open_image(data)
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableImageError(f"too large: {width}x{height} pixels, data.max_pixels is {max_pixels}")
            if shorter and image.format == "JPEG":
                image.draft(None, (shorter, shorter))
            image.load()
            return _to_rgb(_upright(image))
        except UnreadableImageError:
            raise
        except UnidentifiedImageError as error:
            raise UnreadableImageError("not an image") from error
        except Image.DecompressionBombError as error:
            raise UnreadableImageError("too large: more pixels than Pillow reads") from error
        except Exception as error:  # decoders raise errors of many kinds on damaged files
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UnreadableImageError(f"damaged image: {reason}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # a damaged EXIF block does not spoil the picture
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):  # 32-bit values become grey: the range is the smallest usual one that holds them
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
        top = next((limit for limit in (1.0, 255.0, 65535.0) if values.max() <= limit), float(2**32 - 1))
        return Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


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


def pad_small(picture: Image.Image, *, size: int) -> Image.Image:
    """Put an RGB picture that fits into a square of `size` pixels in the middle of a black one; a larger one stays as it is."""
    return v2.functional.center_crop(picture, [size, size]) if max(picture.size) <= size else picture


def train_transform(
    image_size: int, *, crop: str = "random", flip: bool = False, resize: str = "bicubic", pad: bool = False
) -> PictureTransform:
    """Return the training transform; it draws from torch's CPU generator (see `seeded`).

    `crop`: "random" = shorter side to `image_size`, then a random square; "resized" = a random square of 75 to 100 % of the area, resized;
    "center" = shorter side to `image_size`, then the middle. `flip`: mirror half. `resize`: the kernel, one of RESIZES; always antialiased.
    `pad`: first `pad_small`.
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
    return v2.Compose([*([v2.Lambda(partial(pad_small, size=image_size))] if pad else []), *steps, v2.PILToTensor()])


def eval_transform(image_size: int, *, resize: str = "bicubic", pad: bool = False) -> PictureTransform:
    """Return the evaluation transform: shorter side to `image_size` with an antialiased kernel, then the middle square; `pad` as above."""
    return train_transform(image_size, crop="center", resize=resize, pad=pad)


def seeded(transform: PictureTransform, seed: int) -> PictureTransform:
    """Return a transform that draws from torch's CPU generator at `seed` and puts the generator back as it was."""

    def apply(picture: Image.Image) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return transform(picture)

    return apply


def make_square(picture: Image.Image, transform: PictureTransform, *, side: int, max_pixels: int) -> Tensor:
    """Return a picture as (3, side, side) uint8.

    Raises UnreadableImageError: it is so thin that its shorter side at `side` pixels would give more than `max_pixels`.
    """
    width, height = picture.size
    if max(width, height) * side**2 > max_pixels * min(width, height):
        raise UnreadableImageError(f"too thin: {width}x{height} pixels")
    return transform(picture)
