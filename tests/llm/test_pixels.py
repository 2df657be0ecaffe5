"""Pictures by key from folders, archives and the generated world; what a batch gets, and what is left out of it."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from unicode.images.decode import UnreadableImageError, eval_transform
from unicode.images.shapes import ShapesConfig, find_scene
from unicode.llm.examples import IGNORED, Example
from unicode.llm.pixels import GREY_LEVEL, Pictures, PixelReader, open_place, square_pixels

SIZE, CELLS = 16, 4


def make_pictures(places: list[str], **options: object) -> Pictures:
    return Pictures(places, transform=eval_transform(SIZE), side=SIZE, **options)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (20 + number, 18), colour).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "torn.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:40])
    return tmp_path


def test_places_are_searched_in_order(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "a").mkdir(parents=True)
    Image.new("RGB", (9, 9), "white").save(other / "a" / "1.png")
    pictures = make_pictures([str(other), str(folder), "shapes"])
    assert pictures.read("a/1.png").tolist() == torch.full((3, SIZE, SIZE), 255).tolist()
    assert pictures.read("a/2.png")[:, 0, 0].tolist() == [0, 0, 255]
    scene = find_scene(ShapesConfig(image_size=SIZE), "val/0000003.png")
    assert torch.equal(pictures.read("val/0000003.png"), torch.from_numpy(scene.pixels()))
    assert "a/9.png" not in pictures
    with pytest.raises(UnreadableImageError, match="missing file"):
        pictures.read("a/9.png")
    with pytest.raises(UnreadableImageError, match="image"):
        pictures.read("a/torn.png")


def test_shards_and_settings_of_the_world(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(folder / "a" / "2.png", "2.png")
    pictures = make_pictures([str(tmp_path / "shard.tar"), "shapes:val"], world=["colours=8"])
    assert pictures.read("shard.tar/2.png")[:, 0, 0].tolist() == [0, 0, 255]
    scene = find_scene(ShapesConfig(image_size=SIZE, colours=8), "val/0000001.png")
    assert torch.equal(pictures.read("val/0000001.png"), torch.from_numpy(scene.pixels()))
    again = pickle.loads(pickle.dumps(pictures))
    assert torch.equal(again.read("shard.tar/2.png"), pictures.read("shard.tar/2.png"))


def test_what_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vision\.images is empty"):
        make_pictures([])
    with pytest.raises(FileNotFoundError, match="no pictures at 'nowhere'"):
        open_place("nowhere", side=SIZE)
    with pytest.raises(ValueError, match="unknown config key 'color'"):
        open_place("shapes", side=SIZE, world=["color=3"])


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
    pictures = make_pictures([str(folder)])
    with pytest.raises(FileNotFoundError, match=r"none of 2 pictures is in .*, as '0.png'; vision.images names where they lie"):
        pictures.check(["0.png", "1.png"])
    pictures.check([])
    with caplog.at_level("WARNING"):
        pictures.check(["a/0.png", "a/9.png"])
    assert "1 of 2 pictures looked for are missing, as 'a/9.png'" in caplog.text


def make_example(*images: str, words: int = 3) -> Example:
    """Each picture in CELLS positions, then words, all of them learned."""
    is_image = torch.tensor([True] * CELLS * len(images) + [False] * words)
    ids = torch.arange(len(is_image)) + 5
    none = torch.zeros(0, dtype=torch.long)
    return Example(ids, torch.where(is_image, IGNORED, ids), is_image, none.view(0, 0), none, torch.zeros_like(ids), images=images)


def test_a_batch_gets_its_pictures_in_order(folder: Path) -> None:
    from unicode.llm.collate import collate

    reader = PixelReader(make_pictures([str(folder)]), CELLS)
    examples = [make_example("a/0.png", "a/2.png"), make_example(words=5), make_example("a/1.png")]
    batch = collate(examples, pad_id=0)
    added = reader(examples, batch)
    assert added["pixels"][:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255], [0, 128, 0]]
    assert torch.equal(added["image_at"], torch.cat([torch.arange(8), 22 + torch.arange(4)]))
    assert reader(examples[1:2], collate(examples[1:2], pad_id=0)) == {}
    assert reader.num_unreadable == 0


@pytest.mark.parametrize("pack", [False, True])
def test_nothing_is_learned_beside_an_unreadable_picture(folder: Path, caplog: pytest.LogCaptureFixture, pack: bool) -> None:
    from unicode.llm.collate import collate

    reader = pickle.loads(pickle.dumps(PixelReader(make_pictures([str(folder)]), CELLS)))
    examples = [make_example("a/0.png"), make_example("a/torn.png"), make_example("a/1.png")]
    batch, expected = collate(examples, pad_id=0, pack=pack), collate(examples, pad_id=0, pack=pack)
    with caplog.at_level("WARNING"):
        added = reader(examples, batch)
    assert reader.num_unreadable == 1
    assert "picture 'a/torn.png' cannot be read" in caplog.text
    assert added["pixels"][1].unique().tolist() == [GREY_LEVEL]
    spoiled = batch["example"] == 1
    assert (batch["labels"][spoiled] == IGNORED).all()
    assert torch.equal(batch["labels"][~spoiled], expected["labels"][~spoiled])
