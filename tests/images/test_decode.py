"""Image files, odd and broken ones too, become pictures or a reason; pictures become squares."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.images.decode import (
    decode_image,
    eval_transform,
    open_image,
    seeded,
    to_float,
    to_uint8,
    train_transform,
)
from unicode.images.listing import UnreadableImageError, read_bytes


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 64, height: int = 48) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], -1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_usual_formats(kind: str) -> None:
    image = decode_image(encode(photo(), kind))
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert abs(np.asarray(image, int) - np.asarray(photo(), int)).mean() < 8


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB"])
def test_other_colour_models(mode: str) -> None:
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF"}.get(mode, "PNG")
    source = photo().convert("RGB") if mode != "LAB" else Image.new("LAB", (64, 48), (128, 128, 128))
    assert decode_image(encode(source if mode == "LAB" else source.convert(mode), kind)).mode == "RGB"


def test_cmyk_keeps_its_colours() -> None:
    data = encode(Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK"), "JPEG", quality=95)
    assert abs(np.asarray(decode_image(data), int) - (200, 40, 40)).max() < 8


def test_sixteen_bit_keeps_the_high_byte() -> None:
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        picture = np.asarray(decode_image(encode(Image.fromarray(values), kind)))
        assert (picture == (values >> 8)[..., None]).all()


@pytest.mark.parametrize(("top", "dtype"), [(1.0, np.float32), (255, np.int32), (65535, np.int32), (4_000_000_000, np.float32)])
def test_wide_values_keep_their_range(top: float, dtype: type) -> None:
    values = np.linspace(0, top, 64 * 48).reshape(48, 64).astype(dtype)
    picture = np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")))
    assert picture.min() == 0
    assert picture.max() >= 230


def test_transparency_is_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("LA", (8, 8), (0, 128))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 255] * 256)
    assert (np.asarray(decode_image(encode(clear, "PNG"))) == 255).all()
    assert abs(np.asarray(decode_image(encode(half, "PNG")), int) - 127).max() <= 1
    assert (np.asarray(decode_image(encode(palette, "PNG", transparency=0))) == 255).all()
    assert (np.asarray(decode_image(encode(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(photo(), "JPEG", exif=exif))
    assert image.size == ((48, 64) if orientation >= 5 else (64, 48))
    red = np.asarray(image, int)[..., 0]
    across, down = red[:, -1].mean() - red[:, 0].mean(), red[-1].mean() - red[0].mean()
    expected = {1: (1, 0), 2: (-1, 0), 3: (-1, 0), 4: (1, 0), 5: (0, 1), 6: (0, 1), 7: (0, -1), 8: (0, -1)}[orientation]
    assert (np.sign(round(across / 100)), np.sign(round(down / 100))) == expected


def test_damaged_exif_does_not_spoil_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo(), "JPEG", exif=exif)
    start = data.index(b"Exif") + 6
    assert decode_image(data[:start] + b"\xff" * 12 + data[start + 12 :]).mode == "RGB"


def test_draft_decodes_fewer_pixels_and_never_too_few() -> None:
    data = encode(photo(800, 640), "JPEG")
    assert decode_image(data, shorter=160).size == (200, 160)
    assert decode_image(data, shorter=161).size == (400, 320)
    assert decode_image(data).size == (800, 640)
    assert decode_image(encode(photo(800, 640).convert("CMYK"), "JPEG"), shorter=160).mode == "RGB"


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode_image(data))[0, 0].tolist() == [255, 0, 0]


def test_postscript_under_another_name_never_starts_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", refuse)
    (tmp_path / "a.png").write_bytes(encode(photo(), "EPS"))
    with pytest.raises(UnreadableImageError, match="not an image"):
        decode_image(read_bytes(tmp_path / "a.png"))
    with pytest.raises(OSError, match="cannot identify"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404 not found</html>", "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (encode(photo(640, 480), "JPEG")[:3000], "damaged image"),
        (encode(photo(640, 480), "PNG")[:500], "damaged image"),
        (encode(photo(), "PNG")[:20], "not an image|damaged image"),
        (encode(photo(200, 200), "PNG"), "too large: 200x200"),
    ],
)
def test_bad_files_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        decode_image(data, max_pixels=200 * 199 if "too large" in reason else 10**9)


def test_an_enormous_header_is_not_decoded() -> None:
    data = bytearray(encode(photo(), "BMP"))
    data[18:26] = (60000).to_bytes(4, "little") * 2
    with pytest.raises(UnreadableImageError, match="too large"):
        decode_image(bytes(data))


def test_random_damage_never_escapes() -> None:
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encode(photo(), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in random.integers(0, len(data), 8):
                data[place] = random.integers(0, 256)
            with suppress(UnreadableImageError):
                assert decode_image(bytes(data), shorter=8, max_pixels=10**6).mode == "RGB"


def test_read_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert read_bytes(tmp_path / "a") == b"x"
    with pytest.raises(UnreadableImageError, match="missing file"):
        read_bytes(tmp_path / "b")
    with pytest.raises(UnreadableImageError, match="unreadable file"):
        read_bytes(tmp_path)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_float_and_back_is_exact() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = to_float(every)
    assert values.dtype == torch.float32
    assert (values[0], values[-1]) == (-1, 1)
    assert torch.equal(to_uint8(values), every)
    assert to_uint8(torch.tensor([-7.0, 1.5])).tolist() == [0, 255]


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (20, 500), (16, 16), (64, 64)])
@pytest.mark.parametrize("crop", ["random", "resized", "center"])
def test_every_picture_becomes_a_square(size: tuple[int, int], crop: str) -> None:
    for transform in (train_transform(64, crop=crop, flip=True), eval_transform(64)):
        pixels = transform(picture(*size))
        assert pixels.shape == (3, 64, 64)
        assert pixels.dtype == torch.uint8


def test_evaluation_takes_the_middle() -> None:
    image = picture(96, 64)
    expected = torch.from_numpy(np.asarray(image)[:, 16:80].copy()).permute(2, 0, 1)
    assert torch.equal(eval_transform(64)(image), expected)


def test_shrinking_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))).convert("RGB")
    assert abs(eval_transform(16)(stripes).float() - 127.5).max() < 40


def test_chance_comes_from_the_seed_and_leaves_no_trace() -> None:
    transform = train_transform(32, flip=True)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = seeded(transform, 5)(picture(100, 32))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(seeded(transform, 5)(picture(100, 32)), first)
    assert not torch.equal(seeded(transform, 6)(picture(100, 32)), first)
