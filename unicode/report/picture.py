"""Pictures inside a page: pixels or image files -> `<img>` with the bytes in it and a text for those who do not see it."""

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from unicode.images.decode import open_image

SMALL = 96  # up to this side a picture is shown with hard pixels
MAX_SIDE = 512
JPEG_QUALITY = 86


def data_uri(picture: Image.Image, *, max_side: int = MAX_SIDE) -> str:
    """Return a picture as a data URI: PNG where that is smaller or the picture has transparency, otherwise JPEG.

    Args:
        picture: of any mode; larger ones are shrunk.
        max_side: the longer side in the page, in pixels.
    """
    if max(picture.size) > max_side:
        scale = max_side / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS)
    if picture.mode not in ("RGB", "RGBA", "L"):
        picture = picture.convert("RGBA" if "transparency" in picture.info or picture.mode in ("LA", "PA") else "RGB")
    png = _bytes(picture, "PNG", optimize=True)
    if picture.mode == "RGBA" or max(picture.size) <= SMALL:
        return _uri("png", png)
    jpeg = _bytes(picture, "JPEG", quality=JPEG_QUALITY)
    return _uri("jpeg", jpeg) if len(jpeg) < len(png) else _uri("png", png)


def image_tag(picture: Image.Image | np.ndarray | str | Path, alt: str, *, kind: str = "", max_side: int = MAX_SIDE) -> str:
    """Return an `<img>` that holds its own bytes.

    Args:
        picture: a PIL image, (H, W, 3 or 4) uint8, or the path of an image file.
        alt: what the picture shows, in words.
        kind: further CSS classes.

    Raises:
        ValueError: an empty text.
        OSError: the file is not there or is no image.
    """
    if not alt.strip():
        raise ValueError("a picture of the report has no text for those who do not see it")
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    elif not isinstance(picture, Image.Image):
        with open_image(picture) as opened:
            picture = opened.copy()
    classes = " ".join(part for part in (kind, "pixels" if max(picture.size) <= SMALL else "") if part)
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img class="{classes}" src="{data_uri(picture, max_side=max_side)}" alt="{escape(alt, quote=True)}" {size}>'


def figure(image: str, caption: str) -> str:
    """Return an `<img>` with a caption, both HTML."""
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _bytes(picture: Image.Image, form: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _uri(form: str, content: bytes) -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode('ascii')}"
