"""Pictures by key: the order of the sources, archives, the generated world, and keys that lead out of the folders."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from unicode.images.decode import eval_transform
from unicode.images.listing import UnreadableImageError
from unicode.images.lookup import ImageLookup, square_pixels
from unicode.images.shapes import ShapesConfig, find_scene
from unicode.images.shapes_text import scene_caption

SIZE = 16


def read(pictures: ImageLookup, key: str) -> torch.Tensor:
    return square_pixels(pictures.read(key), transform=eval_transform(SIZE), side=SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (20 + number, 18), colour).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "torn.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:40])
    (tmp_path / "a" / "0.txt").write_text("A red thing.\nMore.")
    return tmp_path


def test_places_are_searched_in_order(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "a").mkdir(parents=True)
    Image.new("RGB", (9, 9), "white").save(other / "a" / "1.png")
    pictures = ImageLookup([str(other), folder, "shapes"], side=SIZE)
    assert read(pictures, "a/1.png").tolist() == torch.full((3, SIZE, SIZE), 255).tolist()
    assert read(pictures, "a/2.png")[:, 0, 0].tolist() == [0, 0, 255]
    scene = find_scene(ShapesConfig(image_size=SIZE), "val/0000003.png")
    assert torch.equal(read(pictures, "val/0000003.png"), torch.from_numpy(scene.pixels()))
    assert "a/9.png" not in pictures
    with pytest.raises(UnreadableImageError, match="missing file"):
        read(pictures, "a/9.png")
    with pytest.raises(UnreadableImageError, match="image"):
        read(pictures, "a/torn.png")


def test_shards_and_settings_of_the_world(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(folder / "a" / "2.png", "2.png")
    pictures = ImageLookup([tmp_path / "shard.tar", "shapes:val"], side=SIZE, world=["colours=8"])
    assert read(pictures, "shard.tar/2.png")[:, 0, 0].tolist() == [0, 0, 255]
    scene = find_scene(ShapesConfig(image_size=SIZE, colours=8), "val/0000001.png")
    assert torch.equal(read(pictures, "val/0000001.png"), torch.from_numpy(scene.pixels()))
    again = pickle.loads(pickle.dumps(pictures))
    assert torch.equal(read(again, "shard.tar/2.png"), read(pictures, "shard.tar/2.png"))


def test_unknown_sources_and_settings() -> None:
    with pytest.raises(FileNotFoundError, match="no pictures at 'nowhere'"):
        ImageLookup(["nowhere"])
    with pytest.raises(ValueError, match="unknown config key 'color'"):
        ImageLookup(["shapes"], world=["color=3"])


def test_files_and_pictures_become_the_same_square() -> None:
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    transform = eval_transform(SIZE)
    drawn, read = (square_pixels(source, transform=transform, side=SIZE) for source in (picture, buffer.getvalue()))
    assert torch.equal(drawn, read)
    with pytest.raises(UnreadableImageError, match="too thin"):
        square_pixels(Image.new("RGB", (9_000_000, 1)), transform=transform, side=SIZE)


def test_the_wrong_folder_is_found_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = ImageLookup([folder])
    with pytest.raises(FileNotFoundError, match=r"none of 2 pictures is in .*, as '0.png' \(missing file\); vision.images names"):
        pictures.check(["0.png", "1.png"], setting="vision.images")
    pictures.check([], setting="vision.images")
    with caplog.at_level("WARNING"):
        pictures.check(["a/0.png", "a/9.png"], setting="vision.images")
    assert "1 of 2 pictures looked for are missing, as 'a/9.png'" in caplog.text


def test_pictures_and_captions_for_a_reader(folder: Path) -> None:
    pictures = ImageLookup([folder, "shapes:val"])
    scene = find_scene(ShapesConfig(), "val/0000003.png")
    assert pictures.find("a/0.png").getpixel((0, 0)) == (255, 0, 0) and pictures.find("a/torn.png") is None and pictures.find("no") is None
    assert pictures.find("val/0000003.png").size == (32, 32) and ImageLookup([folder]).find("val/0000003.png") is None
    assert [pictures.caption(key) for key in ("a/0.png", "val/0000003.png", "a/1.png")] == ["A red thing.", scene_caption(scene), ""]


@pytest.mark.parametrize(
    "key", ["{private}/secret.png", "../private/secret.png", "a/../../private/secret.png", "link/secret.png", "secret.png"]
)
def test_no_key_leads_out_of_the_folders(tmp_path: Path, key: str) -> None:
    private, public = tmp_path / "private", tmp_path / "public"
    private.mkdir()
    (public / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(private / "secret.png")
    (private / "secret.txt").write_text("secret")
    os.symlink(private, public / "link")
    os.symlink(private / "secret.png", public / "secret.png")
    os.symlink(private / "secret.txt", public / "secret.txt")
    pictures, key = ImageLookup([public]), key.format(private=private)
    assert key not in pictures and pictures.find(key) is None and pictures.caption(key) == ""
    with pytest.raises(UnreadableImageError, match=r"outside the image folders.*as a source"):
        pictures.read(key)
    with pytest.raises(FileNotFoundError, match="outside the image folders"):
        pictures.check([key], setting="--images")
    if "link" in key:
        assert key in ImageLookup([public, private]), "a link into another source that the user named"
