"""Folders as LLaVA's code writes them, made here by hand: what is read must compute what LLaVA computes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from unicode.generate.answers import AnswerConfig, answer_questions
from unicode.generate.questions import AskedQuestion
from unicode.images.decode import to_float
from unicode.llm.llava_folder import is_llava_folder
from unicode.llm.load import open_model

SIZE, WIDTH, D = 16, 24, 32
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, legacy: Any) -> dict[str, Any]:
    """A base model with a LLaMA-like tokenizer, a CLIP of four patches, a projector."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llava")
    sizes: dict[str, Any] = {"hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(legacy), **sizes, bos_token_id=1, eos_token_id=2))
    base.save_pretrained(folder / "base")
    legacy.save_pretrained(folder / "base")
    clip = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=SIZE, patch_size=8
    )
    CLIPVisionModel(clip).save_pretrained(folder / "clip")
    projector = nn.Sequential(nn.Linear(WIDTH, D), nn.GELU(), nn.Linear(D, D))
    return {"folder": folder, "base": folder / "base", "clip": folder / "clip", "projector": projector}


def write_config(folder: Path, parts: dict[str, Any], **changes: Any) -> None:
    config = json.loads((parts["base"] / "config.json").read_text()) | {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "_name_or_path": str(parts["base"]), "image_aspect_ratio": "pad",
        "mm_vision_tower": str(parts["clip"]), "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_hidden_size": WIDTH,
        "mm_vision_select_feature": "patch", "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "tune_mm_mlp_adapter": False,
    } | changes  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def make_folder(kind: str, parts: dict[str, Any], folder: Path) -> tuple[Path, Any]:
    """Write a folder of one kind; return it and the language model that it means."""
    write_config(folder, parts)
    lm = AutoModelForCausalLM.from_pretrained(parts["base"])
    state = parts["projector"].state_dict()
    if kind == "projector":
        torch.save({f"model.mm_projector.{name}": tensor for name, tensor in state.items()}, folder / "mm_projector.bin")
    elif kind == "lora":
        torch.manual_seed(1)
        adapted = get_peft_model(lm, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
        adapted.save_pretrained(folder, safe_serialization=True)
        from safetensors.torch import load_file

        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
        names = {f"base_model.model.model.mm_projector.{name}": tensor.half() for name, tensor in state.items()}
        torch.save(names, folder / "non_lora_trainables.bin")
        parts["projector"].load_state_dict({name: tensor.half().float() for name, tensor in state.items()})
        lm = adapted.merge_and_unload()
    else:
        tower = CLIPVisionModel.from_pretrained(parts["clip"]).state_dict()
        weights = lm.state_dict() | {f"model.mm_projector.{name}": tensor for name, tensor in state.items()}
        weights |= {f"model.vision_tower.vision_tower.{name}": value for name, value in tower.items()}
        torch.save(weights, folder / "pytorch_model.bin")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(parts["base"] / name, folder)
    return folder, lm.eval()


def llava_logits(lm: Any, parts: dict[str, Any], text_tokenizer: Any, question: str, picture: torch.Tensor) -> torch.Tensor:
    """What LLaVA computes for a picture and a question: text cut at the tag, each part tokenized alone, features between."""
    before, after = f"{SYSTEM}USER: <image>\n{question} ASSISTANT:".split("<image>")
    first, second = (text_tokenizer(part)["input_ids"] for part in (before, after))
    assert first[0] == second[0] == text_tokenizer.bos_token_id
    clip = CLIPVisionModel.from_pretrained(parts["clip"]).eval()
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        pixels = ((picture + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        features = parts["projector"](clip(pixels[None], output_hidden_states=True).hidden_states[-2][:, 1:])
        embed = lm.get_input_embeddings()
        rows = torch.cat([embed(torch.tensor([first])), features, embed(torch.tensor([second[1:]]))], dim=1)
        return lm(inputs_embeds=rows).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["projector", "lora", "whole"])
def test_a_folder_computes_what_llava_computes(kind: str, parts: dict[str, Any], legacy: Any, tmp_path: Path) -> None:
    folder, lm = make_folder(kind, parts, tmp_path / "any-name")
    assert is_llava_folder(folder)
    model = open_model(folder, device="cpu", attention="eager")
    assert model.card.kind == "llava" and model.reads_pixels and model.markers is None
    question = "Is there a dog?"
    image = Image.effect_noise((30, 20), 80).convert("RGB")
    pixels = model.picture(image)
    prompt = model.prompt([f"<image>\n{question}"], [pixels])
    expected = llava_logits(lm, parts, legacy, question, to_float(pixels))
    with torch.no_grad():
        logits = model.causal(**model.inputs([prompt])).logits
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    [(_, answer)] = answer_questions(model, [AskedQuestion(question, (image,))], config=AnswerConfig(max_new_tokens=4))
    assert answer.error == "" and answer.num_tokens > 0


def test_padding_of_pictures_is_the_folders(parts: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = make_folder("projector", parts, tmp_path / "run")
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    assert open_model(folder, device="cpu").picture(wide)[2].max() > 100, "padded with CLIP's mean colour"
    write_config(folder, parts, image_aspect_ratio="square")
    assert open_model(folder, device="cpu").picture(wide)[2].max() == 0, "cropped, as CLIP's own preprocessing does"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_tower": "openai/clip-vit-large"}, "vision tower 'openai/clip-vit-large' is no folder with a model; download it"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end puts tokens of its own around images"),
        ({"mm_use_mlp": False}, "without a projector, as vectors of its codebook"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres' cuts an image into several"),
        ({"_name_or_path": "lmsys/vicuna-7b-v1.5"}, "was trained on lmsys/vicuna-7b-v1.5, and no such folder is here; give the base model"),
        ({"mm_vision_select_feature": "pooled"}, "mm_vision_select_feature is 'pooled'; known: patch, cls_patch"),
    ],
)
def test_what_cannot_be_read_is_named(changes: dict[str, Any], message: str, parts: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = make_folder("projector", parts, tmp_path / "run")
    write_config(folder, parts, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        open_model(folder, device="cpu")


def test_names_on_the_command_line_stand_for_what_the_folder_names(parts: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = make_folder("projector", parts, tmp_path / "run")
    write_config(folder, parts, _name_or_path="lmsys/vicuna-7b-v1.5", mm_vision_tower="openai/clip-vit-large-patch14-336")
    model = open_model(folder, base=str(parts["base"]), image_tokenizer=str(parts["clip"]), device="cpu")
    assert model.card.base == str(parts["base"])


def test_weights_without_a_place_or_lost_ones(parts: dict[str, Any], tmp_path: Path) -> None:
    folder, _ = make_folder("whole", parts, tmp_path / "whole")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({name: value for name, value in weights.items() if "layers.1.mlp.up" not in name}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"'model.layers.1.mlp.up_proj.weight' is missing \(0 without place, 1 missing\)"):
        open_model(folder, device="cpu")
    torch.save(weights | {"model.resampler.weight": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"'model.resampler.weight' has no place"):
        open_model(folder, device="cpu")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither an adapter, nor mm_projector.bin, nor model files"):
        open_model(folder, device="cpu")
    other = tmp_path / "lora"
    make_folder("lora", parts, other)
    torch.save({"base_model.model.model.embed_tokens.weight": torch.zeros(2)}, other / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match="holds no projector"):
        open_model(other, device="cpu")
    (other / "non_lora_trainables.bin").unlink()
    with pytest.raises(FileNotFoundError, match="LLaVA's projector is expected there"):
        open_model(other, device="cpu")
    (other / "config.json").unlink()
    shutil.copy(parts["folder"] / "base" / "tokenizer.json", other)
    torch.save({}, other / "mm_projector.bin")
    with pytest.raises(FileNotFoundError, match=r"has no config.json, which names the tower and the projector"):
        open_model(other, device="cpu")
