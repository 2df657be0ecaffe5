"""Emoji -> square pictures on white: those of Twemoji, and a second style rendered with a colour font."""

from collections.abc import Callable, Iterable
from pathlib import Path

from catalogue import SPLITS, Emoji
from PIL import Image, ImageDraw, ImageFont, features

from unicode.images.decode import decode_image
from unicode.images.listing import read_bytes

FONT_SIZES = (109, 128, 136, 160, 96, 72)  # bitmap fonts have one size: 109 pixels for Noto Color Emoji
FACE, HEART, UNKNOWN = "\U0001f600", "\u2764\ufe0f", "\U0010fffd"  # two emoji that every font has, a character that none has
Render = Callable[[Emoji], Image.Image | None]


class ColourFont:
    """A font that draws emoji in colour.

    Raises FileNotFoundError: no such file. Raises ValueError: it cannot be opened, has no colour, or sequences cannot be joined here.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no font {path}; Debian and Ubuntu have one: apt-get install fonts-noto-color-emoji")
        self.path = path
        self.font = self._open()
        if not features.check("raqm"):
            raise ValueError("this Pillow is built without Raqm, which joins the parts of an emoji; install Pillow from PyPI")
        self.style = self.font.getname()[0] or Path(path).stem
        if not any(_is_coloured(self._draw(text)) for text in (FACE, HEART)):
            raise ValueError(f"{path} is a font without colour; give one of emoji, as NotoColorEmoji.ttf")
        self._unknown = self._draw(UNKNOWN).tobytes()
        self._width = self.font.getlength(FACE)

    def _open(self) -> ImageFont.FreeTypeFont:
        reason = ""
        for size in FONT_SIZES:
            try:
                return ImageFont.truetype(str(self.path), size)
            except OSError as error:
                reason = str(error)
        raise ValueError(f"{self.path} is no font that opens: {reason}")

    def _draw(self, text: str) -> Image.Image:
        left, top, right, bottom = map(round, self.font.getbbox(text))
        picture = Image.new("RGBA", (max(1, right - left), max(1, bottom - top)), (255, 255, 255, 0))
        ImageDraw.Draw(picture).text((-left, -top), text, font=self.font, embedded_color=True, fill="black")
        return picture

    def render(self, one: Emoji) -> Image.Image | None:
        """Return the picture of an emoji as RGB on white, None where the font does not have it as one sign."""
        if self.font.getlength(one.text) > 1.5 * self._width:
            return None
        picture = self._draw(one.text)
        if picture.getbbox() is None or picture.tobytes() == self._unknown:
            return None
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")


def _is_coloured(picture: Image.Image) -> bool:
    """Whether any pixel that is not clear has a hue."""
    saturation, alpha = picture.convert("RGB").convert("HSV").getchannel("S"), picture.getchannel("A")
    return max((s for s, a in zip(saturation.tobytes(), alpha.tobytes(), strict=True) if a > 128), default=0) > 60


def from_files(files: dict[str, Path]) -> Render:
    """Return what reads an emoji's picture from its file, as RGB on white."""
    return lambda one: decode_image(read_bytes(files[one.code]))


def make_square(picture: Image.Image, size: int) -> Image.Image:
    """Return a whole picture (W, H) in a white square of `size` pixels."""
    scale = size / max(picture.size)
    inside = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS, reducing_gap=3)
    square = Image.new("RGB", (size, size), "white")
    square.paste(inside, ((size - inside.width) // 2, (size - inside.height) // 2))
    return square


def write_squares(emoji: Iterable[Emoji], render: Render, folder: Path, *, size: int) -> list[Emoji]:
    """Write the square of every emoji below `folder`; those of this size stay, those in the folder of another split are removed.

    Returns the emoji that have a picture.
    """
    made = []
    for one in emoji:
        path = folder / one.key
        if not has_size(path, size):
            picture = render(one)
            if picture is None:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")  # without syncing each of thousands of files, as atomic_write does
            make_square(picture, size).save(partial, format="PNG")
            partial.replace(path)
        made.append(one)
        inside = one.key.partition("/")[2]
        for split in SPLITS:
            if split != one.split:
                (folder / split / inside).unlink(missing_ok=True)
    return made


def has_size(path: Path, size: int) -> bool:
    """Whether there is a square of this size at `path`."""
    if not path.is_file():
        return False
    with Image.open(path) as square:
        return square.size == (size, size)
