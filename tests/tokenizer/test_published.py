"""Published formats: the golden checkpoints reproduce what their own codebases computed."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unicode import load_tokenizer
from unicode.tokenizer.load import find_published, load_published

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("hq_pixelshuffle", "uc_hq_rela", "rq_shared")


@pytest.mark.parametrize("name", NAMES)
def test_codes_and_reconstructions_are_theirs(name: str) -> None:
    tokenizer, data = load_tokenizer(GOLDEN / name), load_file(GOLDEN / name / "io.safetensors")
    codes = tokenizer.encode(data["x"])
    expected = torch.cat([data["code_t"], data["code_b"]], dim=1) if "code_t" in data else data["code"].flatten(1)
    assert torch.equal(codes, expected)
    assert (tokenizer.decode(codes) - data["rec"]).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_codes_do_not_depend_on_the_batch_and_forward_is_decode_of_encode(name: str) -> None:
    tokenizer, images = load_tokenizer(GOLDEN / name), load_file(GOLDEN / name / "io.safetensors")["x"]
    codes = tokenizer.encode(images)
    alone = torch.cat([tokenizer.encode(image[None]) for image in images])
    assert torch.equal(codes, alone)
    with torch.no_grad():
        assert torch.equal(tokenizer(images).images, tokenizer.decode(codes))


@pytest.mark.parametrize("name", NAMES)
def test_saved_again_it_is_the_same_tokenizer(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(GOLDEN / name)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    images = load_file(GOLDEN / name / "io.safetensors")["x"]
    assert torch.equal(again.encode(images), tokenizer.encode(images))
    assert again.layout == tokenizer.layout


def test_unicode_weights_give_vocabulary_ids_in_their_order() -> None:
    tokenizer = load_tokenizer(GOLDEN / "uc_hq_rela")
    codes = tokenizer.encode(load_file(GOLDEN / "uc_hq_rela" / "io.safetensors")["x"])
    ids = tokenizer.to_ids(codes)
    assert tokenizer.layout.order == "rows"
    assert ids[0, 0] == tokenizer.row_ids[codes[0, 0]]
    assert torch.equal(ids[:, 1:5], tokenizer.row_ids[codes[:, 16:20]])
    assert torch.equal(tokenizer.from_ids(ids), codes)


def test_state_dict_file_without_prefix_loads_too(tmp_path: Path) -> None:
    source = GOLDEN / "hq_pixelshuffle"
    state = torch.load(source / "ckpt" / "last.ckpt", weights_only=True)["state_dict"]
    bare = {name.removeprefix("generator."): tensor for name, tensor in state.items()}
    shutil.copy(source / "config.yaml", tmp_path)
    (tmp_path / "ckpt").mkdir()
    torch.save(bare | {"discriminator.main.0.weight": torch.zeros(1)}, tmp_path / "ckpt" / "state_dict.ckpt")
    assert load_tokenizer(tmp_path).fingerprint == load_tokenizer(source).fingerprint


def test_pickles_other_models_and_missing_tensors_are_refused(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "rq_shared" / "config.yaml", tmp_path)
    assert find_published(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"model\.pt"):
        load_published(tmp_path)
    torch.save({"state_dict": {"x": Path("a")}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="plain tensors"):
        load_tokenizer(tmp_path)
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.yaml").write_text("stage2: {}\n")
    with pytest.raises(ValueError, match="stage1"):
        load_tokenizer(tmp_path)
