"""Towers: what they give, what they leave alone, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from unicode.images.decode import to_float
from unicode.llm.llava import PadToSquare, VisionSettings, build_tower, square_transform
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import CodebookConfig, TokenizerConfig
from unicode.tokenizer.model import ImageTokenizer

SIZE = 16


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random CLIP vision model of 2x2 patches and three layers."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "clip"
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=SIZE, patch_size=8)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}))
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random HQ-VAE of 2x2 and 4x4 cells."""
    torch.manual_seed(0)
    small = {"channels": 8, "multipliers": [1, 2], "num_res_blocks": 1, "latent_channels": 12}
    autoencoder = AutoencoderConfig(**small, encoder_attention=[], decoder_attention=[])  # type: ignore[arg-type]
    config = TokenizerConfig(image_size=SIZE, autoencoder=autoencoder, codebook=CodebookConfig(mode="free", num_rows=32))
    folder = tmp_path_factory.mktemp("models") / "hqvae"
    ImageTokenizer(config).save_pretrained(folder)
    return folder


def pictures(number: int = 2) -> torch.Tensor:
    return torch.rand(number, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_clip_gives_the_patches_of_the_layer_that_the_model_itself_gives(clip: Path) -> None:
    from transformers import CLIPVisionModel

    tower = build_tower(VisionSettings(kind="clip", path=str(clip)))
    assert (tower.image_size, tower.num_features, tower.width) == (SIZE, 4, 24)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    model = CLIPVisionModel.from_pretrained(clip).eval()
    with torch.no_grad():
        hidden = model(((pictures() + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states[-2]
    features = tower(pictures())
    assert features.shape == (2, 4, 24) and not features.requires_grad
    torch.testing.assert_close(features, hidden[:, 1:])
    with_class = build_tower(VisionSettings(kind="clip", path=str(clip), feature="cls_patch"))
    assert with_class.num_features == 5
    torch.testing.assert_close(with_class(pictures()), hidden)


@pytest.mark.parametrize(("feature", "width"), [("latent", 12), ("quantized", 24)])
def test_tokenizer_gives_its_finest_grid(tokenizer_folder: Path, feature: str, width: int) -> None:
    tower = build_tower(VisionSettings(kind="tokenizer", path=str(tokenizer_folder), feature=feature))
    tokenizer = ImageTokenizer.from_pretrained(tokenizer_folder)
    assert (tower.num_features, tower.width) == (16, width)
    features = tower(pictures())
    assert features.shape == (2, 16, width)
    if feature == "quantized":
        mapped = features.transpose(1, 2).unflatten(2, (4, 4))
        decoded = tokenizer.decoder(tokenizer.post_quant_conv(mapped))
        torch.testing.assert_close(decoded, tokenizer.decode(tokenizer.encode(pictures())))
    assert tower.fingerprint == tokenizer.fingerprint


def test_a_tower_stays_frozen_and_in_evaluation_mode(tokenizer_folder: Path) -> None:
    tower = build_tower(VisionSettings(kind="tokenizer", path=str(tokenizer_folder)))
    before = tower(pictures())
    tower.train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert torch.equal(before, tower(pictures()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(before, tower(pictures()))


def test_the_fingerprint_tells_towers_apart(clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionModel

    model = CLIPVisionModel.from_pretrained(clip)
    first = build_tower(VisionSettings(path=str(clip))).fingerprint
    assert first == build_tower(VisionSettings(path=str(clip))).fingerprint
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((clip / "preprocessor_config.json").read_bytes())
    assert build_tower(VisionSettings(path=str(tmp_path))).fingerprint != first


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_pictures_of_any_shape_become_square(fit: str) -> None:
    transform = square_transform(SIZE, fit=fit, colour=(1.0, 0.0, 0.0))
    for size in [(40, 20), (20, 40), (7, 7), (300, 2)]:
        pixels = transform(Image.new("RGB", size, (0, 0, 255)))
        assert pixels.shape == (3, SIZE, SIZE) and pixels.dtype == torch.uint8
    wide = to_float(transform(Image.new("RGB", (40, 20), (0, 0, 255))))
    corner = wide[:, 0, 0].tolist()
    assert corner == ([1.0, -1.0, -1.0] if fit == "pad" else [-1.0, -1.0, 1.0])


def test_padding_keeps_the_picture_in_the_middle() -> None:
    square = PadToSquare((0.0, 0.0, 0.0))(Image.new("RGB", (10, 4), (255, 255, 255)))
    assert square.size == (10, 10)
    assert square.crop((0, 3, 10, 7)).getextrema() == ((255, 255),) * 3
    assert square.crop((0, 0, 10, 3)).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "siglip"}, "vision.kind is 'siglip'; choose one of clip, tokenizer"),
        ({"feature": "quantized"}, "vision.feature is 'quantized'; with vision.kind=clip one of patch, cls_patch"),
        ({"kind": "tokenizer", "feature": "patch"}, "with vision.kind=tokenizer one of quantized, latent"),
        ({"fit": "stretch"}, "vision.fit is 'stretch'"),
        ({"enabled": True}, "vision.enabled=true needs vision.path"),
        ({"projector_only": True}, "vision.projector_only=true trains nothing without vision.enabled=true"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionSettings(**changes)  # type: ignore[arg-type]


def test_folders_that_hold_something_else(clip: Path, tokenizer_folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json; give a folder with a CLIP model"):
        build_tower(VisionSettings(path=str(tmp_path)))
    with pytest.raises(ValueError, match="holds no CLIP vision model"):
        build_tower(VisionSettings(path=str(tiny_llama)))
    with pytest.raises(ValueError, match="holds no CLIP vision model"):
        build_tower(VisionSettings(path=str(tokenizer_folder)))
    with pytest.raises(ValueError, match=r"vision.layer is -9, but the tower .* has 3 layers"):
        build_tower(VisionSettings(path=str(clip), layer=-9))
    with pytest.raises(ValueError, match="does not describe a tokenizer"):
        build_tower(VisionSettings(kind="tokenizer", path=str(clip)))
