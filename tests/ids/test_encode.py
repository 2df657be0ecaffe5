"""Encoding: the same ids for any batch size and number of ranks, whatever stopped the run before."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from warm import run_ranks, start

from unicode.codebook.codebook import CodebookConfig
from unicode.common.distributed import rank
from unicode.ids.store import Store
from unicode.images.dataset import AugmentedIndex, DataConfig, ImageDataset, build_dataset, open_images
from unicode.images.decode import to_float
from unicode.run.encode_images import main
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.encode import EncodeConfig, choose_shard_size, encode_images
from unicode.tokenizer.model import ImageTokenizer

SIZE = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained HQ-VAE for 32 px with 2x2 + 4x4 codes."""
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(0).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures in folders whose names collide without their paths; three of them damaged."""
    path, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(36):
        (path / f"part{number % 2}").mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((40 + number % 5, 36), Image.Resampling.BICUBIC)
        picture.save(path / f"part{number % 2}" / f"{number // 2:03d}.jpg", quality=90)
    for name in ("part0/000.jpg", "part1/008.jpg"):
        (path / name).write_bytes((path / name).read_bytes()[:300])
    (path / "part1/017.jpg").write_bytes(b"")
    return path


def make_tokenizer(seed: int) -> ImageTokenizer:
    torch.manual_seed(seed)
    autoencoder = AutoencoderConfig(channels=32, multipliers=[1, 1, 2], num_res_blocks=1, latent_channels=32, decoder_attention=[])
    config = TokenizerConfig(image_size=SIZE, code_channels=8, autoencoder=autoencoder, codebook=CodebookConfig(mode="free", num_rows=300))
    tokenizer = ImageTokenizer(config).eval()
    for codebook in tokenizer.codebooks:  # untrained rows lie far from the latents: bring them near, so that many are used
        codebook.rows.normal_(std=0.3)
    return tokenizer


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def encode(checkpoint: Path, photos: Path, out: Path, **changes: object) -> Store:
    config = replace(EncodeConfig(num_workers=0, shard_size=8), **changes)
    encode_images(ImageTokenizer.from_pretrained(checkpoint), open_images(photos, image_size=SIZE), out, config=config)
    return Store(out)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an uninterrupted run of one rank."""
    path = tmp_path_factory.mktemp("stores") / "whole"
    encode(checkpoint, photos, path)
    return path


def image_of(dataset: ImageDataset, item: int | AugmentedIndex) -> torch.Tensor:
    pixels = dataset.pixels(item)
    assert isinstance(pixels, torch.Tensor)
    return to_float(pixels)


def test_ids_are_the_tokenizers(checkpoint: Path, photos: Path, whole: Path) -> None:
    tokenizer, dataset, store = ImageTokenizer.from_pretrained(checkpoint), open_images(photos, image_size=SIZE), Store(whole)
    store.check_tokenizer(tokenizer.fingerprint, tokenizer.layout)
    store.verify()
    used = set()
    for key in store:
        expected = tokenizer.to_ids(tokenizer.encode(image_of(dataset, dataset.keys.index(key))[None]))[0]
        np.testing.assert_array_equal(store[key], expected.numpy())
        used |= set(store[key].tolist())
    assert len(used) > 50  # a collapsed codebook would make this test empty


def test_damaged_images_are_recorded(whole: Path) -> None:
    store = Store(whole)
    assert len(store) == 33
    assert set(store.skipped) == {"part0/000.jpg", "part1/008.jpg", "part1/017.jpg"}
    assert store.skipped["part1/017.jpg"] == "empty file"
    assert store.manifest.skipped == 3


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 5, "num_workers": 2}, {"batch_size": 16}])
def test_batch_size_and_workers_change_nothing(checkpoint: Path, photos: Path, whole: Path, tmp_path: Path, changes: dict) -> None:
    encode(checkpoint, photos, tmp_path, **changes)
    assert content(tmp_path) == content(whole)


def test_two_ranks_fill_the_same_store(checkpoint: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    arguments = ["--ckpt", checkpoint, "--images", photos, "--out", tmp_path / "out", "--shard-size", 8, "--workers", 1]
    printed = run_ranks("encode_images", *arguments, logs=tmp_path / "logs")
    assert "36 images encoded" in printed[0]
    assert "rank 0 of 2" in printed[0]
    assert content(tmp_path / "out") == content(whole)


def test_killed_and_started_again(checkpoint: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL at shard after shard; the same command again ends with the bytes of the uninterrupted run."""
    out, arguments = tmp_path / "out", ["--ckpt", checkpoint, "--images", photos, "--out", tmp_path / "out"]
    arguments += ["--shard-size", 8, "--batch-size", 1, "--workers", 0]
    for wanted in (1, 3):
        run = start("encode_images", *arguments, log=tmp_path / "killed.log")
        while run.process.is_alive() and len(list(out.glob("shards/*.npy"))) < wanted:
            time.sleep(0.001)
        run.process.kill()
        assert run.wait() == -signal.SIGKILL, "the run was over before it could be killed"
        with pytest.raises(ValueError, match="not finished"):
            Store(out)
    kept = {file.name: file.stat().st_mtime_ns for file in out.glob("shards/*.npy")}
    last = start("encode_images", *arguments, log=tmp_path / "last.log")
    assert last.wait() == 0, last.printed
    assert "images exist already" in last.printed
    (out / ".lock").unlink(missing_ok=True)
    assert content(out) == content(whole)
    assert {name: (out / "shards" / name).stat().st_mtime_ns for name in kept} == kept


def test_two_starts_on_one_folder(checkpoint: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    """The second start ends with one line that names the first; the first finishes the store."""
    arguments = ["--ckpt", checkpoint, "--images", photos, "--out", tmp_path / "out", "--shard-size", 8, "--batch-size", 1, "--workers", 0]
    runs = [start("encode_images", *arguments, log=tmp_path / f"{number}.log") for number in range(2)]
    codes = [run.wait() for run in runs]
    if 2 in codes:
        assert "is in use: encoding by process" in runs[codes.index(2)].printed.splitlines()[-1]
    assert 0 in codes
    assert content(tmp_path / "out") == content(whole)


def test_a_finished_store_is_left_alone(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    encode(checkpoint, photos, tmp_path)
    before = content(tmp_path)
    report = encode_images(
        ImageTokenizer.from_pretrained(checkpoint),
        open_images(photos, image_size=SIZE),
        tmp_path,
        config=EncodeConfig(num_workers=0, shard_size=8),
    )
    assert (report.images, report.already, report.skipped) == (0, 36, 3)
    assert content(tmp_path) == before


def test_views(checkpoint: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    data = DataConfig(name="folder", root=str(photos), flip=True)
    dataset = build_dataset(data, image_size=SIZE, train=True)
    tokenizer = ImageTokenizer.from_pretrained(checkpoint)
    config = EncodeConfig(num_workers=0, shard_size=8, batch_size=7, views=("flip", "crop", "whole", "crop"))
    encode_images(tokenizer, dataset, tmp_path, config=config)
    store, plain, different = Store(tmp_path), Store(whole), 0
    assert store.spec.transform["crop"] == "random"
    assert set(store.skipped) == set(plain.skipped)
    for row, key in enumerate(dataset.keys):
        if key in store.skipped:
            continue
        np.testing.assert_array_equal(store.ids(key, view=2), plain[key])
        mirrored = tokenizer.to_ids(tokenizer.encode(image_of(dataset, row)[None].flip(-1)))[0]
        np.testing.assert_array_equal(store.ids(key, view=0), mirrored.numpy())
        for view in (1, 3):
            augmented = image_of(dataset, AugmentedIndex(row, row * 4 + view))
            np.testing.assert_array_equal(store.ids(key, view=view), tokenizer.to_ids(tokenizer.encode(augmented[None]))[0].numpy())
        different += not np.array_equal(store.ids(key, view=1), store.ids(key, view=3))
    assert different > 15


@pytest.mark.parametrize("settings", [[], ["crop=resized", "flip=true"]])
def test_crops_of_a_folder(checkpoint: Path, photos: Path, tmp_path: Path, settings: list[str]) -> None:
    """What --images names is cropped as the same pictures named by settings are."""
    common = ["--ckpt", str(checkpoint), "--views", "whole,crop", "--device", "cpu", "--workers", "0", *settings]
    assert main([*common, "--images", str(photos / "part0"), "--out", str(tmp_path / "images")]) == 0
    assert main([*common, "--out", str(tmp_path / "settings"), "name=folder", f"root={photos / 'part0'}"]) == 0
    assert content(tmp_path / "images") == content(tmp_path / "settings")
    store = Store(tmp_path / "images")
    assert store.spec.transform["crop"] == ("resized, mirrored at random" if settings else "random")
    assert sum(not np.array_equal(store.ids(key), store.ids(key, view=1)) for key in store) > 8


def test_bf16_is_recorded(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    assert encode(checkpoint, photos, tmp_path, precision="bf16").spec.precision == "bf16"
    with pytest.raises(ValueError, match="another precision: bf16 there, float32 now"):
        encode(checkpoint, photos, tmp_path)


def test_another_tokenizer_transform_or_list_is_refused(
    checkpoint: Path, photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer(1).save_pretrained(tmp_path / "other")
    before = content(whole)
    base = {"--ckpt": str(checkpoint), "--images": str(photos), "--out": str(whole), "--shard-size": "8", "--device": "cpu"}
    for changes, setting, message in (
        ({"--ckpt": str(tmp_path / "other")}, "", "another tokenizer"),
        ({}, "resize=bilinear", "another transform"),
        ({"--image-size": "64"}, "", "another layout"),
        ({"--views": "whole,flip"}, "", "another views"),
        ({"--images": str(photos / "part0")}, "", "another num_images"),
    ):
        arguments = [word for pair in {**base, **changes}.items() for word in pair]
        assert main([*arguments, *([setting] if setting else [])]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"error: {whole} holds ids of {message}")
    assert content(whole) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt", "nowhere", "--images", "shapes:val"], "no folder 'nowhere'"),
        (["--ckpt", "CKPT", "--images", "nowhere"], "nowhere"),
        (["--ckpt", "CKPT"], "no images named; give --images"),
        (["--ckpt", "CKPT", "--images", "shapes:val", "--views", "mirror"], "views are mirror; known: whole, flip, crop"),
        (["--ckpt", "CKPT", "--images", "shapes:val", "--image-size", "33"], "not a multiple"),
        (["--ckpt", "CKPT", "--images", "shapes:val", "--batch-size", "-1"], "too small"),
        (["--ckpt", "CKPT", "--images", "shapes:val", "limt=3"], "did you mean 'limit'"),
        (["--ckpt", "CKPT", "--images", "shapes:val", "--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_mistakes_end_in_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    arguments = [str(checkpoint) if word == "CKPT" else word for word in arguments]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["--ckpt", str(checkpoint), "--images", "shapes:val", "--out", str(tmp_path / "out"), "data.limit=100", "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()


def test_another_world_of_shapes_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--ckpt", str(checkpoint), "--images", "shapes:val", "--out", str(tmp_path), "--device", "cpu", "limit=10"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert main([*arguments, "shapes.noise=0.1"]) == 2
    assert "another transform" in capsys.readouterr().err


def test_paths_that_leave_the_root_are_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "anno.json").write_text(json.dumps([{"id": "1", "image": "../secret.jpg", "conversations": []}]))
    images = ["--images", str(tmp_path / "anno.json"), "--root", str(tmp_path / "root")]
    assert main(["--ckpt", str(checkpoint), *images, "--out", str(tmp_path / "out")]) == 2
    assert "'../secret.jpg' leaves the image root" in capsys.readouterr().err


def test_nothing_readable_is_an_error(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"no picture")
    assert main(["--ckpt", str(checkpoint), "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "0"]) == 2
    assert "none of the 1 images could be read" in capsys.readouterr().err


def test_shard_sizes() -> None:
    assert [choose_shard_size(number) for number in (1, 200, 4096, 4097, 10_000, 665_000, 10**8)] == [64, 64, 64, 128, 192, 2048, 2048]
    assert rank() == 0
