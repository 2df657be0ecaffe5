"""The LLaVA baseline: towers, projectors, features in the places of images, batches equal to single rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from unicode.images.decode import to_float
from unicode.llm.llava import (
    LlavaModel,
    Tower,
    VisionSettings,
    build_projector,
    build_tower,
    describe_projector,
    load_projector_,
    pad_to_square,
    read_projector,
    save_projector,
    square_transform,
)
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import CodebookConfig, TokenizerConfig
from unicode.tokenizer.model import ImageTokenizer

SIZE, CELLS, WIDTH, D = 8, 4, 12, 32


class Patches(Tower):
    """The four quarters of a picture through a fixed random matrix: a tower without files."""

    image_size, num_features, width, fingerprint = SIZE, CELLS, WIDTH, "0" * 16

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.matrix = torch.nn.Parameter(torch.randn(3 * SIZE * SIZE // CELLS, WIDTH, generator=generator) / 7)
        self.requires_grad_(False)
        self.train(False)

    def features(self, pixels: Tensor) -> Tensor:
        half = SIZE // 2
        quarters = pixels.unfold(2, half, half).unfold(3, half, half).flatten(2, 3).transpose(1, 2)
        return quarters.flatten(2) @ self.matrix


def make_model(folder: Path, kind: str = "mlp2x_gelu") -> LlavaModel:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return LlavaModel(lm, Patches(), build_projector(kind, WIDTH, D))


def make_batch() -> dict[str, Tensor]:
    """Two rows; the first with two pictures, the second with none."""
    torch.manual_seed(1)
    input_ids = torch.randint(4, 50, (2, 14))
    image_at = torch.tensor([2, 3, 4, 5, 8, 9, 10, 11])
    labels = input_ids.clone()
    labels[0, :12] = -100
    labels[1, :4] = -100
    return {"input_ids": input_ids, "labels": labels, "pixels": torch.rand(2, 3, SIZE, SIZE) * 2 - 1, "image_at": image_at}


def test_features_stand_where_the_placeholders_were(tiny_llama: Path) -> None:
    model, batch = make_model(tiny_llama), make_batch()
    embeddings = model.embed(batch["input_ids"], pixels=batch["pixels"], image_at=batch["image_at"])
    words = model.get_input_embeddings()(batch["input_ids"])
    features = model.projector(model.tower(batch["pixels"]))
    assert torch.equal(embeddings[0, 2:6], features[0]) and torch.equal(embeddings[0, 8:12], features[1])
    kept = [0, 1, 6, 7, 12, 13]
    assert torch.equal(embeddings[0, kept], words[0, kept]) and torch.equal(embeddings[1], words[1])
    other = batch["input_ids"].clone()
    other.view(-1)[batch["image_at"]] = 0
    assert torch.equal(model(other, pixels=batch["pixels"], image_at=batch["image_at"]).logits, model.lm(inputs_embeds=embeddings).logits)


def test_whole_bytes_equal_floats(tiny_llama: Path) -> None:
    model = make_model(tiny_llama)
    pixels = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    assert torch.equal(model.tower(pixels), model.tower(to_float(pixels)))


def test_a_batch_of_words_runs_the_projector_and_changes_nothing(tiny_llama: Path) -> None:
    model, batch = make_model(tiny_llama), make_batch()
    calls = []
    model.projector.register_forward_hook(lambda *_: calls.append(1))
    loss = model(batch["input_ids"], labels=batch["labels"]).loss
    assert len(calls) == 1
    assert torch.equal(loss, model.lm(batch["input_ids"], labels=batch["labels"]).loss)
    loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.projector.parameters())
    model.zero_grad()
    model(**batch).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.projector.parameters())


def test_the_tower_is_out_of_reach(tiny_llama: Path) -> None:
    model = make_model(tiny_llama)
    assert not any("tower" in name for name in model.state_dict())
    assert not any("tower" in name for name, _ in model.named_modules())
    model.train().to(torch.bfloat16)
    assert next(model.tower.parameters()).dtype == torch.float32 and not model.tower.training
    batch = make_batch()
    assert model(batch["input_ids"], pixels=batch["pixels"], image_at=batch["image_at"]).logits.dtype == torch.bfloat16


def generate(model: LlavaModel, ids: Tensor, *, attention_mask: Tensor, **images: Tensor) -> Tensor:
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 59, "pad_token_id": 0}
    return model.lm.generate(inputs_embeds=model.embed(ids, **images), attention_mask=attention_mask, **options)


def test_left_padded_rows_are_answered_as_alone(tiny_llama: Path) -> None:
    model = make_model(tiny_llama).eval()
    torch.manual_seed(2)
    pixels = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    rows = [torch.randint(4, 50, (length,)) for length in (12, 7, 9)]
    alone = []
    for row, picture in zip(rows, pixels, strict=True):
        inputs: dict[str, Any] = {"pixels": picture[None], "image_at": torch.arange(1, 5), "attention_mask": torch.ones(1, len(row)).long()}
        alone.append(generate(model, row[None], **inputs))
    width = max(map(len, rows))
    pads = [width - len(row) for row in rows]
    ids = torch.stack([torch.cat([torch.zeros(pad, dtype=torch.long), row]) for pad, row in zip(pads, rows, strict=True)])
    mask = torch.stack([(torch.arange(width) >= pad).long() for pad in pads])
    places = torch.cat([row * width + pad + torch.arange(1, 5) for row, pad in enumerate(pads)])
    together = generate(model, ids, pixels=pixels, image_at=places, attention_mask=mask)
    assert together.shape == (3, 6)  # the new tokens only
    assert torch.equal(together, torch.cat(alone))


def make_lora(lm: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(lm, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def test_lora_keeps_to_the_language_model_and_is_saved_as_a_standard_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = make_model(tiny_llama)
    model.lm = make_lora(model.lm)
    assert not any("lora" in name for name in model.projector.state_dict())
    assert all(parameter.requires_grad for parameter in model.projector.parameters())
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval()
    expected = model(**make_batch()).logits
    gathered = tmp_path / "gathered"
    model.save_pretrained(tmp_path)
    model.save_pretrained(gathered, state_dict=model.state_dict())
    for folder in (tmp_path, gathered):
        assert not list(folder.glob("model*.safetensors")), "full weights beside an adapter would be loaded in its place"
        lm = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager"), folder)
        again = LlavaModel(lm, Patches(), build_projector("mlp2x_gelu", WIDTH, D)).eval()
        again.projector.load_state_dict(read_projector(folder / "projector.safetensors"))
        torch.testing.assert_close(again(**make_batch()).logits, expected, atol=1e-5, rtol=0)


SIDE = 16


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random CLIP vision model of 2x2 patches and three layers."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "clip"
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=8)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}))
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random HQ-VAE of 2x2 and 4x4 cells."""
    torch.manual_seed(0)
    small = {"channels": 8, "multipliers": [1, 2], "num_res_blocks": 1, "latent_channels": 12}
    autoencoder = AutoencoderConfig(**small, encoder_attention=[], decoder_attention=[])  # type: ignore[arg-type]
    config = TokenizerConfig(image_size=SIDE, autoencoder=autoencoder, codebook=CodebookConfig(mode="free", num_rows=32))
    folder = tmp_path_factory.mktemp("models") / "hqvae"
    ImageTokenizer(config).save_pretrained(folder)
    return folder


def pictures(number: int = 2) -> torch.Tensor:
    return torch.rand(number, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_clip_gives_the_patches_of_the_layer_that_the_model_itself_gives(clip: Path) -> None:
    from transformers import CLIPVisionModel

    tower = build_tower(VisionSettings(kind="clip", path=str(clip)))
    assert (tower.image_size, tower.num_features, tower.width) == (SIDE, 4, 24)
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


@pytest.mark.parametrize("kind", ["Siglip", "Dinov2WithRegisters"])
def test_other_vision_transformers_are_towers(kind: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE}
    if kind == "Siglip":
        text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
        whole = transformers.SiglipModel(transformers.SiglipConfig(vision_config={**sizes, "patch_size": 8}, text_config=text))
        model = whole.vision_model
    else:
        whole = model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes, patch_size=8))
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    with torch.no_grad():
        hidden = model.eval()(pixels := pictures(), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(build_tower(VisionSettings(path=str(tmp_path)))(pixels), hidden[:, -4:])
    with_class = build_tower(VisionSettings(path=str(tmp_path), feature="cls_patch"))
    if kind == "Siglip":
        with pytest.raises(ValueError, match=r"no class token; set vision\.feature=patch"):
            with_class(pixels)
    else:
        torch.testing.assert_close(with_class(pixels), hidden[:, [0, -4, -3, -2, -1]])


def test_the_dtype_of_a_tower_follows_its_device(clip: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = (("clip", clip, "auto"), ("clip", clip, "float32"), ("tokenizer", tokenizer_folder, "auto"))
    towers = [build_tower(VisionSettings(kind=kind, path=str(folder), dtype=dtype)) for kind, folder, dtype in choices]
    assert all(next(tower.parameters()).dtype == torch.float32 for tower in towers)
    moves: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device, dtype=None: moves.append((str(device), dtype)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for tower in towers:
        tower.place_(torch.device("cpu"))
        tower.place_(torch.device("cuda"))
    assert moves == [("cuda", torch.bfloat16), ("cuda", None), ("cuda", None)]


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
    transform = square_transform(SIDE, fit=fit, colour=(1.0, 0.0, 0.0))
    for size in [(40, 20), (20, 40), (7, 7), (300, 2)]:
        pixels = transform(Image.new("RGB", size, (0, 0, 255)))
        assert pixels.shape == (3, SIDE, SIDE) and pixels.dtype == torch.uint8
    wide = to_float(transform(Image.new("RGB", (40, 20), (0, 0, 255))))
    corner = wide[:, 0, 0].tolist()
    assert corner == ([1.0, -1.0, -1.0] if fit == "pad" else [-1.0, -1.0, 1.0])


def test_padding_keeps_the_picture_in_the_middle() -> None:
    square = pad_to_square(Image.new("RGB", (10, 4), (255, 255, 255)), colour=(0.0, 0.0, 0.0))
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
    with pytest.raises(FileNotFoundError, match=r"has no config.json; give a folder with a vision model"):
        build_tower(VisionSettings(path=str(tmp_path)))
    with pytest.raises(ValueError, match="holds no vision model"):
        build_tower(VisionSettings(path=str(tiny_llama)))
    with pytest.raises(ValueError, match="holds no vision model"):
        build_tower(VisionSettings(path=str(tokenizer_folder)))
    with pytest.raises(ValueError, match=r"vision.layer is -9, but the tower .* has 3 layers"):
        build_tower(VisionSettings(path=str(clip), layer=-9))
    with pytest.raises(ValueError, match="does not describe a tokenizer"):
        build_tower(VisionSettings(kind="tokenizer", path=str(clip)))


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_kinds_and_round_trip(kind: str, layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    projector = build_projector(kind, 6, 10)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in projector) == layers
    assert projector(torch.zeros(2, 5, 6)).shape == (2, 5, 10)
    assert describe_projector(projector.state_dict()) == (kind, 6, 10)
    save_projector(tmp_path, projector.state_dict())
    other = build_projector(kind, 6, 10)
    load_projector_(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(projector.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "base_model.model.model.mm_projector.", "mm_projector."])
@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_files_of_llava_are_read(kind: str, prefix: str, tmp_path: Path) -> None:
    projector = build_projector(kind, 6, 10)
    state = {name.removeprefix("0." if kind == "linear" else ""): value.half() for name, value in projector.state_dict().items()}
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "mm_projector.bin")
    found = read_projector(tmp_path / "mm_projector.bin")
    assert all(torch.equal(found[name], value.half().float()) for name, value in projector.state_dict().items())
    load_projector_(build_projector(kind, 6, 10), tmp_path)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vision.projector is 'mlp'; choose linear, mlp2x_gelu"):
        build_projector("mlp", 6, 10)
    with pytest.raises(FileNotFoundError, match=r"no projector at .*scripts/pretrain_llava.sh"):
        load_projector_(build_projector("linear", 6, 10), tmp_path)
    save_projector(tmp_path, build_projector("mlp2x_gelu", 6, 10).state_dict())
    with pytest.raises(ValueError, match=r"2 layers \(6 -> 10, 10 -> 10\), but .* ask for 1 layer \(7 -> 10\)"):
        load_projector_(build_projector("linear", 7, 10), tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="holds no projector"):
        read_projector(tmp_path / "mm_projector.bin")
    (tmp_path / "projector.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="is damaged"):
        load_projector_(build_projector("linear", 7, 10), tmp_path)
