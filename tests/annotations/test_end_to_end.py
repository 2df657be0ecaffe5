"""From pictures to pictures: encode, make annotations, decode the ids that stand in the annotation file."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from unicode.annotations.build import open_image_ids
from unicode.annotations.instructions import get_llava_uni_anno
from unicode.annotations.text_to_image import get_decompression_anno, get_t2v_anno
from unicode.codebook.codebook import CodebookConfig
from unicode.ids.text import split_runs
from unicode.images.dataset import ImageDataset, ShapesImages, open_images
from unicode.images.shapes import ShapesConfig
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.encode import EncodeConfig, encode_images
from unicode.tokenizer.model import ImageTokenizer

SIZE, COUNT = 64, 5


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    """An untrained HQ-VAE for 64 px whose images have many different codes."""
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(channels=32, multipliers=[1, 1, 2], num_res_blocks=1, latent_channels=32, decoder_attention=[])
    config = TokenizerConfig(image_size=SIZE, code_channels=8, autoencoder=autoencoder, codebook=CodebookConfig(mode="free", num_rows=300))
    made = ImageTokenizer(config).eval()
    for codebook in made.codebooks:
        codebook.rows.normal_(std=0.3)
    return made


@pytest.fixture(params=["generated", "files"])
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> ImageDataset:
    """The shapes world as it is generated, and the same saved as JPEG files of another size."""
    world = ShapesImages(ShapesConfig(image_size=SIZE, max_objects=3), split="val", limit=COUNT)
    if request.param == "generated":
        return world
    for index, key in enumerate(world.keys):
        path = (tmp_path / "photos" / key).with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(world.scene(index).pixels().transpose(1, 2, 0)).resize((150, 100)).save(path)
    return open_images(tmp_path / "photos", image_size=SIZE)


def runs(turn: dict[str, str]) -> list[torch.Tensor]:
    return [torch.from_numpy(piece.ids.copy()) for piece in split_runs(turn["value"]) if piece.ids is not None]


@torch.inference_mode()
def test_pictures_out_of_the_annotation_file(pictures: ImageDataset, tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    encode_images(tokenizer, pictures, tmp_path / "ids", config=EncodeConfig(num_workers=0, batch_size=2))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Some shapes."}]
    records = [{"id": key, "image": key, "conversations": turns} for key in pictures.keys]
    (tmp_path / "anno.json").write_text(json.dumps(records))
    images = open_image_ids([tmp_path / "ids"])
    get_t2v_anno(tmp_path, images, tmp_path, anno="anno.json", parts=tokenizer.layout.coarse_rows)
    get_llava_uni_anno(tmp_path, images, tmp_path, anno="anno.json")
    get_decompression_anno(tmp_path, images, tmp_path)

    by_key = {key: pictures[index].image for index, key in enumerate(pictures.keys)}
    expected = {key: tokenizer.decode(tokenizer.encode(image[None])) for key, image in by_key.items()}
    assert len({picture.numpy().tobytes() for picture in expected.values()}) == COUNT
    for name, turn in (("anno_t2v_full", 1), ("anno_uni", 0), ("images_decompression", 0), ("images_decompression", 1)):
        made = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert len(made) == COUNT
        for record in made:
            (ids,) = runs(record["conversations"][turn])
            assert torch.equal(tokenizer.decode(tokenizer.from_ids(ids[None])), expected[record["id"]])

    parts = json.loads((tmp_path / "anno_t2v_part.json").read_text(encoding="utf-8"))
    rows: dict[str, list[torch.Tensor]] = {key: [torch.empty(0)] * tokenizer.layout.coarse_rows for key in by_key}
    for record in parts:
        given = runs(record["conversations"][0])
        rows[record["id"]][tokenizer.layout.rows_of(len(given[0])) if given else 0] = runs(record["conversations"][1])[0]
    for key, pieces in rows.items():
        assert torch.equal(tokenizer.decode(tokenizer.from_ids(torch.cat(pieces)[None])), expected[key])
