"""Pictures decoded from ids, in stores and in annotation files, are the tokenizer's reconstructions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.annotations.records import make_turns
from unicode.codebook.codebook import CodebookConfig
from unicode.ids.store import Store
from unicode.ids.text import write_run
from unicode.images.dataset import open_images
from unicode.images.decode import to_float, to_uint8
from unicode.run.decode_ids import main
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.decode import picture_path
from unicode.tokenizer.encode import EncodeConfig, encode_images
from unicode.tokenizer.model import ImageTokenizer

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, ten pictures and their store; the pictures of one stem differ in ending only."""
    path = tmp_path_factory.mktemp("decode")
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(channels=32, multipliers=[1, 1], num_res_blocks=1, latent_channels=32, decoder_attention=[])
    codebook = CodebookConfig(mode="free", num_rows=300)
    tokenizer = ImageTokenizer(TokenizerConfig(image_size=SIZE, code_channels=8, autoencoder=autoencoder, codebook=codebook))
    for level in tokenizer.codebooks:
        level.rows.normal_(std=0.3)
    tokenizer.save_pretrained(path / "tokenizer")
    random = np.random.default_rng(0)
    (path / "photos/sub").mkdir(parents=True)
    for name in ("a.jpg", "a.png", *(f"sub/{number}.jpg" for number in range(8))):
        Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((SIZE, SIZE)).save(path / "photos" / name)
    (path / "photos/sub/7.jpg").write_bytes(b"damaged")
    encode(path, "ids", "whole")
    return path


def encode(path: Path, name: str, *views: str, image_size: int = SIZE) -> None:
    tokenizer = ImageTokenizer.from_pretrained(path / "tokenizer")
    config = EncodeConfig(num_workers=0, views=views, layout=tokenizer.config.layout(image_size, image_size))
    encode_images(tokenizer, open_images(path / "photos", image_size=image_size), path / name, config=config)


def reconstructions(path: Path, *, levels: int | None = None, image_size: int = SIZE) -> dict[str, np.ndarray]:
    """(H, W, 3) uint8 of each readable picture, from the tokenizer itself."""
    tokenizer, dataset = ImageTokenizer.from_pretrained(path / "tokenizer"), open_images(path / "photos", image_size=image_size)
    layout = tokenizer.config.layout(image_size, image_size)
    pictures = {}
    for row in range(len(dataset)):
        pixels = dataset.pixels(row)
        if isinstance(pixels, torch.Tensor):
            decoded = tokenizer.decode(tokenizer.encode(to_float(pixels)[None]), levels=levels, layout=layout)
            pictures[dataset.key(row)] = to_uint8(decoded)[0].permute(1, 2, 0).numpy()
    return pictures


def run(folder: Path, out: Path, *arguments: str, ids: str | Path = "ids") -> int:
    return main(["--ckpt", str(folder / "tokenizer"), "--ids", str(folder / ids), "--out", str(out), "--device", "cpu", *arguments])


def check(out: Path, expected: dict[str, np.ndarray]) -> None:
    """Equal to rounding: the last bit of a float may differ between batches of another size."""
    found = {str(file.relative_to(out)): np.asarray(Image.open(file)).astype(int) for file in out.rglob("*") if file.is_file()}
    assert set(found) == {key if key.endswith(".png") else f"{key}.png" for key in expected}
    for key, pixels in expected.items():
        difference = np.abs(found[key if key.endswith(".png") else f"{key}.png"] - pixels)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_a_store_becomes_pictures_under_their_keys(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, "--batch-size", "4") == 0
    check(tmp_path, reconstructions(folder))
    assert (tmp_path / "sub/3.jpg.png").is_file()
    assert not (tmp_path / "sub/7.jpg.png").exists()


def test_coarse_pictures_and_a_limit(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path, "--levels", "1", "--limit", "3", "--batch-size", "2") == 0
    check(tmp_path, dict(list(reconstructions(folder, levels=1).items())[:3]))


def test_other_sizes_and_views(folder: Path, tmp_path: Path) -> None:
    encode(folder, "large", "whole", "flip", image_size=64)
    assert run(folder, tmp_path / "large", ids="large") == 0
    check(tmp_path / "large", reconstructions(folder, image_size=64))
    assert run(folder, tmp_path / "flip", "--view", "1", ids="large") == 0
    assert Image.open(tmp_path / "flip/a.png").size == (64, 64)
    assert run(folder, tmp_path / "none", "--view", "2", ids="large") == 2


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_runs_inside_an_annotation_file(folder: Path, tmp_path: Path, suffix: str) -> None:
    store = Store(folder / "ids")
    records = []
    for key in store:
        turns = [f"Draw {key}", f"{write_run(store[key])}.", f"again {write_run(store[key][:20])}", "<vistok></vistok> and no more"]
        record = {"id": key, "conversations": [{"from": ("human", "gpt")[turn % 2], "value": text} for turn, text in enumerate(turns)]}
        records.append({**record, "layout": store.layout.describe(), "tokenizer": store.spec.tokenizer})
    path = tmp_path / f"anno{suffix}"
    path.write_text(json.dumps(records) if suffix == ".json" else "\n".join(map(json.dumps, records)))
    assert run(folder, tmp_path / "out", ids=path) == 0
    names = [f"{number:07d}-0.png" for number in range(len(records))]
    check(tmp_path / "out", dict(zip(names, reconstructions(folder).values(), strict=True)))


def talk(answer: str) -> dict:
    return {"conversations": make_turns(["Draw", answer])}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": "none"}, "record 1: no conversations: conversations: 'none'"),
        (talk("<vistok>1-2"), "record 1: malformed ids: turn 1, character 0: <vistok> is never closed"),
        ({**talk("x"), "tokenizer": "feedfeedfeedfeed"}, "record 1: its ids are of the tokenizer feedfeedfeedfeed"),
        (talk(write_run([999] * 80)), "999 is not an image id"),
    ],
)
def test_damaged_annotations_name_the_record(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict, message: str
) -> None:
    (tmp_path / "anno.json").write_text(json.dumps([talk("none"), {"id": "x", **record}]))
    assert run(folder, tmp_path / "out", ids=tmp_path / "anno.json") == 2
    assert message in capsys.readouterr().err


def test_stores_of_another_tokenizer_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = ImageTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.post_quant_conv.weight.data.mul_(2)
    tokenizer.save_pretrained(tmp_path / "other")
    assert main(["--ckpt", str(tmp_path / "other"), "--ids", str(folder / "ids"), "--out", str(tmp_path / "out")]) == 2
    assert "holds ids of the tokenizer" in capsys.readouterr().err
    for wrong in (["--levels", "3"], ["--batch-size", "0"]):
        assert run(folder, tmp_path / "out", *wrong) == 2
    assert run(folder, tmp_path / "out", ids="photos") == 2
    assert run(folder, tmp_path / "out", ids="no.json") == 2
    assert run(folder, tmp_path / "out", "--dry-run") == 0
    assert not (tmp_path / "out").exists()


def test_keys_never_leave_the_folder() -> None:
    with pytest.raises(ValueError, match="no path below"):
        picture_path(Path("out"), "../a.png")
