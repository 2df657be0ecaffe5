"""Bytes of an image file -> an upright RGB picture, or the reason why not. Every kind of odd or broken file is settled here."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ORIENTATION = 0x0112  # the EXIF tag


class UnreadableImageError(Exception):
    """An image that cannot be used. The message is "kind" or "kind: detail"; reports count by kind."""


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a file.

    Raises:
        UnreadableImageError: there is no such file, or it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise UnreadableImageError("missing file") from error
    except OSError as error:
        raise UnreadableImageError(f"unreadable file: {error.strerror}") from error


def decode_image(data: bytes, *, shorter: int = 0, max_pixels: int = 89_478_485) -> Image.Image:
    """Decode an image file and return it upright and in RGB.

    Transparency is composited on white, 16-bit grey becomes 8-bit by its high byte, palettes and CMYK are converted, the
    EXIF orientation is applied, of an animation the first frame is taken.

    Args:
        shorter: JPEGs are decoded at the smallest scale (1, 1/2, 1/4, 1/8) that leaves the shorter side at least so long; 0: full size.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        UnreadableImageError: empty, not an image, damaged or truncated, or too large.
    """
    if not data:
        raise UnreadableImageError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd tags would fill the log, once a file and worker
        return _decode(data, shorter, max_pixels)


def _decode(data: bytes, shorter: int, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(BytesIO(data))
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("too large: more pixels than Pillow reads") from error
    except Exception as error:  # decoders raise errors of many kinds on damaged headers
        raise UnreadableImageError(f"damaged image: {_first_line(error)}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableImageError(f"too large: {width}x{height} pixels, data.max_pixels is {max_pixels}")
    try:
        if shorter and image.format == "JPEG":
            image.draft(None, (shorter, shorter))
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:
        raise UnreadableImageError(f"damaged image: {_first_line(error)}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # a damaged EXIF block does not spoil the picture
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return _wide_to_rgb(np.asarray(image, np.float64))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _wide_to_rgb(values: np.ndarray) -> Image.Image:
    """Map 32-bit values (H, W) to grey: the range is the smallest usual one (1, 8 bits, 16 bits, 32 bits) that holds them."""
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    top = next((limit for limit in (1.0, 255.0, 65535.0) if values.max() <= limit), float(2**32 - 1))
    return Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8)).convert("RGB")


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()
    return text[0][:200] if text else type(error).__name__
