"""Published formats: the golden checkpoints reproduce what their own codebases computed."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from unicode import load_tokenizer
from unicode.codebook.codebook import CodebookConfig
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.load import find_published, load_published
from unicode.tokenizer.model import ImageTokenizer

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


def test_a_published_config_reads_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVATE_VALUE", "hidden-value")
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "model.pt")
    (tmp_path / "config.yaml").write_text("stage1:\n  type: ${oc.env:PRIVATE_VALUE}\n  hparams: {}\n  hparams_aux: {}\n")
    with pytest.raises(ValueError, match=r"stage1\.type is '\$\{oc\.env:PRIVATE_VALUE\}'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("norm_type", ["rela_llm", "abs_llm"])
def test_an_rqvae_of_unicode_quantizes_as_its_code_does(norm_type: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    depth, width, length = 3, 24, 2.0
    values = {
        "double_z": False, "z_channels": 12, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 8, "ch_mult": [1, 2],
        "num_res_blocks": 1, "attn_resolutions": [4], "pdrop": 0.0, "use_init_downsample": True, "use_mid_block": True, "use_attn": True,
    }  # fmt: skip
    aux = {"num_quant_layer": depth, "use_l2_norm": False, "norm_type": norm_type, "fix_len_l2norm": length, "llmcodebook": "x.pt"}
    autoencoder = AutoencoderConfig(channels=8, multipliers=[1, 2], num_res_blocks=1, latent_channels=12, decoder_attention=[4])
    shape = {"type": "rqvae", "image_size": 16, "depth": depth, "share_codebook": True, "code_channels": width}
    source = ImageTokenizer(TokenizerConfig(**shape, autoencoder=autoencoder, codebook=CodebookConfig(mode="free", num_rows=40))).eval()
    table = torch.randn(40, width)
    quantizer = {
        "embedding": table, "embedding_avg": table, "cluster_size": torch.ones(40), "post_len_l2norm": torch.tensor(1),
        "selected_llm_indices": torch.arange(40) + 7, "llmcodebook": table, "llm_len_l2norm": table.norm(dim=1),
    }  # fmt: skip
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("stack.")}
    state |= {f"quantize.{name}": tensor for name, tensor in quantizer.items()}
    (tmp_path / "ckpt").mkdir()
    torch.save({"state_dict": {f"generator.{name}": tensor for name, tensor in state.items()}}, tmp_path / "ckpt/last.ckpt")
    OmegaConf.save({"stage1": {"type": "rqvae", "hparams": values, "hparams_aux": aux}}, tmp_path / "config.yaml")
    tokenizer = load_tokenizer(tmp_path)

    images = 2 * torch.rand(1, 3, 16, 16) - 1
    with torch.no_grad():
        residual = source.quant_conv(source.encoder(images)).permute(0, 2, 3, 1)
        mean = residual.norm(dim=-1).mean()
        residual = residual * (length / mean if mean >= length else 1.0)
        scale = length * (table.norm(dim=1).mean() if norm_type == "rela_llm" else 1.0)
        total, codes = torch.zeros_like(residual), []
        for _ in range(depth):
            codes.append(torch.cdist(residual.flatten(0, 2) / scale, table).argmin(1))
            quantized = scale * table[codes[-1]].view_as(residual)
            total, residual = total + quantized, residual - quantized
        expected = source.decoder(source.post_quant_conv(total.permute(0, 3, 1, 2)))
    assert torch.equal(tokenizer.encode(images), torch.stack(codes, 1).flatten()[None])
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(images)), expected)
    assert torch.equal(tokenizer.row_ids, torch.arange(40) + 7)
