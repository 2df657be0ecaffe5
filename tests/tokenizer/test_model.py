"""The tokenizer as users see it: shapes, round trips, gradients of every level, folders on disk."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch

from unicode import load_tokenizer
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.model import CONFIG_FILE, WEIGHTS_FILE, ImageTokenizer

MODES = ("free", "frozen", "language", "projected")
Make = Callable[..., ImageTokenizer]


def of_mode(mode: str) -> dict[str, object]:
    return {"mode": mode, "num_rows": 40, "width": 6 if mode == "projected" else 0}


def random_images(count: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize(("mode", "kind"), list(product(MODES, ("hqvae", "rqvae"))))
def test_forward_is_decode_of_encode_and_every_level_commits(make: Make, mode: str, kind: str) -> None:
    tokenizer = make(of_mode(mode), type=kind)
    for seed in range(2):
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        made = tokenizer(images)
        tokenizer.stack.update_()
    made = tokenizer(random_images())
    weight = tokenizer.quant_conv.weight
    for commitment in made.commitment:
        assert torch.autograd.grad(commitment, weight, retain_graph=True)[0].norm() > 0
    tokenizer.eval()
    with torch.no_grad():
        assert torch.equal(tokenizer(random_images()).images, tokenizer.decode(tokenizer.encode(random_images())))


@pytest.mark.parametrize(("resample", "combine", "levels"), list(product(("pixelshuffle", "average", "conv"), ("concat", "sum"), (2, 3))))
def test_every_stack_of_levels_encodes_and_decodes(make: Make, resample: str, combine: str, levels: int) -> None:
    tokenizer = make(resample=resample, combine=combine, levels=levels).eval()
    codes = tokenizer.encode(random_images())
    assert codes.shape == (3, sum(4**level for level in range(3 - levels, 3)))
    assert codes.dtype == torch.int64
    assert torch.equal(tokenizer(random_images()).images, tokenizer.decode(codes))
    coarse = tokenizer.decode(codes, levels=1)
    assert coarse.shape == (3, 3, 16, 16)
    assert not torch.equal(coarse, tokenizer.decode(codes))


@pytest.mark.parametrize("kind", ["hqvae", "rqvae"])
def test_ids_are_vocabulary_ids_and_invert(make: Make, kind: str) -> None:
    tokenizer = make(type=kind).eval()
    codes = tokenizer.encode(random_images())
    ids = tokenizer.to_ids(codes)
    assert ids.min() >= 10
    assert torch.equal(tokenizer.from_ids(ids), codes)
    ids[0, 0] = 3
    with pytest.raises(ValueError, match="3 is not an image id"):
        tokenizer.from_ids(ids)


def test_codes_of_an_image_are_its_own(make: Make) -> None:
    tokenizer = make().eval()
    images = random_images(16)
    together = tokenizer.encode(images)
    assert torch.equal(together, torch.cat([tokenizer.encode(image[None]) for image in images]))
    assert torch.equal(tokenizer.train().encode(images), together)


def test_other_sizes_that_the_stride_divides(make: Make) -> None:
    tokenizer = make().eval()
    images = torch.zeros(1, 3, 24, 32)
    layout = tokenizer.config.layout(24, 32)
    codes = tokenizer.encode(images)
    assert codes.shape == (1, layout.num_codes)
    assert tokenizer.decode(codes, layout=layout).shape == images.shape
    assert torch.equal(tokenizer.from_ids(tokenizer.to_ids(codes, layout=layout), layout=layout), codes)
    with pytest.raises(ValueError, match=r"20 pixels is not a multiple of this tokenizer's stride 8; the nearest is"):
        tokenizer.encode(torch.zeros(1, 3, 20, 16))


def test_codes_out_of_range_are_refused(make: Make) -> None:
    tokenizer = make().eval()
    with pytest.raises(ValueError, match="rows 0 to 79"):
        tokenizer.decode(torch.full((1, 20), 80))


@pytest.mark.parametrize("mode", MODES)
def test_saved_and_loaded_it_is_the_same(make: Make, mode: str, tmp_path: Path) -> None:
    tokenizer = make(of_mode(mode))
    tokenizer(random_images())
    tokenizer.stack.update_()
    tokenizer.eval()
    tokenizer.save_pretrained(tmp_path / "a")
    loaded = load_tokenizer(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    for other in (loaded, load_tokenizer(tmp_path / "b")):
        assert other.fingerprint == tokenizer.fingerprint
        assert torch.equal(other.encode(random_images()), tokenizer.encode(random_images()))
        assert torch.equal(other.decode(other.encode(random_images())), tokenizer.decode(tokenizer.encode(random_images())))
    assert make(of_mode(mode), image_size=32).fingerprint != tokenizer.fingerprint


def test_damaged_and_foreign_folders_are_named(make: Make, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    weights = tmp_path / WEIGHTS_FILE
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_tokenizer(tmp_path)
    make(levels=3).save_pretrained(tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / WEIGHTS_FILE).read_bytes())
    with pytest.raises(ValueError, match="another architecture"):
        load_tokenizer(tmp_path)
    config = tmp_path / CONFIG_FILE
    content = json.loads(config.read_text())
    content["tokenizer"]["autoencoder"]["channels"] = 2**34
    (tmp_path / "other" / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no tokenizer of its config can be built: .*memory"):
        load_tokenizer(tmp_path / "other")
    config.write_text(config.read_text().replace('"levels"', '"lewels"'))
    with pytest.raises(ValueError, match="lewels"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="train_hqvae"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_tokenizer(tmp_path / "empty")


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "vae"},
        {"levels": 1},
        {"resample": "x"},
        {"combine": "x"},
        {"image_size": 20},
        {"type": "rqvae", "depth": 0},
        {"order": "raster"},
    ],
)
def test_configs_without_sense_are_refused(make: Make, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make(**changes)


def test_default_grids_are_those_of_the_paper() -> None:
    assert TokenizerConfig().layout(256, 256).level_sizes == (64, 256)
