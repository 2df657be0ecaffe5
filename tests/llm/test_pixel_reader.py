"""The pixels of a batch for the LLaVA baseline: their order, and what an unreadable picture leaves out."""

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from unicode.images.decode import eval_transform
from unicode.images.lookup import ImageLookup
from unicode.llm.collate import GREY_LEVEL, PixelReader, collate
from unicode.llm.examples import IGNORED, Example

SIZE, CELLS = 16, 4


def make_reader(folder: Path) -> PixelReader:
    return PixelReader(ImageLookup([folder]), transform=eval_transform(SIZE), side=SIZE, positions=CELLS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (20 + number, 18), colour).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "torn.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:40])
    return tmp_path


def make_example(*images: str, words: int = 3) -> Example:
    """Each picture in CELLS positions, then words, all of them learned."""
    is_image = torch.tensor([True] * CELLS * len(images) + [False] * words)
    ids = torch.arange(len(is_image)) + 5
    none = torch.zeros(0, dtype=torch.long)
    return Example(ids, torch.where(is_image, IGNORED, ids), is_image, none.view(0, 0), none, torch.zeros_like(ids), images=images)


def test_a_batch_gets_its_pictures_in_order(folder: Path) -> None:
    reader = make_reader(folder)
    examples = [make_example("a/0.png", "a/2.png"), make_example(words=5), make_example("a/1.png")]
    batch = collate(examples, pad_id=0)
    added = reader(examples, batch)
    assert added["pixels"][:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255], [0, 128, 0]]
    assert torch.equal(added["image_at"], torch.cat([torch.arange(8), 22 + torch.arange(4)]))
    assert reader(examples[1:2], collate(examples[1:2], pad_id=0)) == {}
    assert reader.num_unreadable == 0


@pytest.mark.parametrize("pack", [False, True])
def test_nothing_is_learned_beside_an_unreadable_picture(folder: Path, caplog: pytest.LogCaptureFixture, pack: bool) -> None:
    reader = pickle.loads(pickle.dumps(make_reader(folder)))
    examples = [make_example("a/0.png"), make_example("a/torn.png"), make_example("a/1.png")]
    batch, expected = collate(examples, pad_id=0, pack=pack), collate(examples, pad_id=0, pack=pack)
    with caplog.at_level("WARNING"):
        added = reader(examples, batch)
    assert reader.num_unreadable == 1
    assert "image 'a/torn.png' cannot be read" in caplog.text
    assert added["pixels"][1].unique().tolist() == [GREY_LEVEL]
    spoiled = batch["example"] == 1
    assert (batch["labels"][spoiled] == IGNORED).all()
    assert torch.equal(batch["labels"][~spoiled], expected["labels"][~spoiled])


def test_a_private_picture_is_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    (tmp_path / "public").mkdir()
    reader = make_reader(tmp_path / "public")
    for key in ("../secret.png", str(tmp_path / "secret.png")):
        example = make_example(key)
        added = reader([example], collate([example], pad_id=0))
        assert added["pixels"].unique().tolist() == [GREY_LEVEL]
    assert reader.num_unreadable == 2
