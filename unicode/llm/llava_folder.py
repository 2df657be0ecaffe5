"""Folders that LLaVA's own code wrote -> a `LlavaModel`. The files in a folder decide its kind, not its name.

config.json                    the language model's config with mm_vision_tower, mm_projector_type, mm_vision_select_layer, ...
adapter_config.json, adapter_model.bin (or .safetensors), non_lora_trainables.bin      LoRA, with the projector in the last file
mm_projector.bin               the projector alone
pytorch_model*.bin, model*.safetensors                                                  all weights, the projector among them
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from unicode.common.files import read_json, read_tensors
from unicode.common.logging import get_logger
from unicode.llm.card import Card, fingerprint_base
from unicode.llm.llava import (
    FEATURES,
    LLAVA_FILE,
    LlavaModel,
    VisionSettings,
    build_projector,
    build_tower,
    describe_projector,
    pick_projector,
)
from unicode.llm.model import add_adapter, choose_attention, open_base
from unicode.llm.vocabulary import open_pretrained, open_text_tokenizer, weight_files

ADAPTER_CONFIG, LORA_REST = "adapter_config.json", "non_lora_trainables.bin"
FAMILIES = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral", "LlavaQwenForCausalLM": "qwen2"}
"""Architecture in LLaVA's config.json -> the plain one of transformers."""
OWN_PREFIXES = ("mm_", "tune_mm_", "freeze_mm_", "image_", "use_mm_", "unfreeze_mm_")
PARTS = ("mm_projector.", "vision_tower.", "image_newline")  # in names of weights that are not the language model's
RATIOS = (None, "pad", "square")
TEMPLATE = "vicuna_v1"
log = get_logger(__name__)


def is_llava_folder(folder: Path) -> bool:
    """Whether LLaVA's code wrote a folder."""
    if not (folder / "config.json").is_file():
        return (folder / LLAVA_FILE).is_file() or (folder / LORA_REST).is_file()
    return "mm_vision_tower" in read_json(folder / "config.json")


def open_llava_folder(folder: Path, *, base: str, tower: str, options: dict[str, Any]) -> tuple[LlavaModel, Any, Card]:
    """Open a folder of LLaVA: a LoRA run, a projector, or a complete model.

    `base`: the language model that an adapter or projector was trained on; "": the one that the folder names. `tower`: folder of the vision
    model or image tokenizer; "": as `base`. `options`: of `unicode.llm.model.open_base`: dtype, attention, device. Returns the model on the
    CPU, its text tokenizer, and a card without markers: LLaVA puts nothing around images. Raises FileNotFoundError: the base model, the
    tower or a file of weights is missing. Raises ValueError: a damaged file, weights that have no place, or a variant that cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, which names the tower and the projector; copy it there too")
    config = read_json(folder / "config.json")
    settings = vision_settings(config, folder, tower=tower)
    lm, text, source, projector = _open_language_model(folder, config, base, options)
    settings.projector, width_in, width_out = describe_projector(projector)
    built_tower = build_tower(settings)
    hidden = int(lm.config.get_text_config().hidden_size)
    if (width_in, width_out) != (built_tower.width, hidden):
        reason = f"it goes from {width_in} to {width_out}, but {settings.path} gives {built_tower.width} and {source} has {hidden}"
        raise ValueError(f"the projector of {folder} does not fit: {reason}; name the right ones with --base and --image-tokenizer")
    module = build_projector(settings.projector, width_in, width_out)
    module.load_state_dict(projector)
    log.info("%s: %s projector, tower %s, language model %s", folder, settings.projector, settings.path, source)
    vision = {"kind": settings.kind, "path": settings.path, "fingerprint": built_tower.fingerprint}
    fingerprint = "" if source == folder else fingerprint_base(source)
    return LlavaModel(lm, built_tower, module), text, Card("llava", str(source), fingerprint, TEMPLATE, vision=vision)


def vision_settings(config: dict[str, Any], folder: Path, *, tower: str = "") -> VisionSettings:
    """Return the settings of the tower in LLaVA's config.json, with the folder `tower` if it is given.

    Raises FileNotFoundError: the tower is no local folder. Raises ValueError: a setting that is not supported.
    """
    if config.get("mm_use_im_start_end"):
        raise ValueError(f"{folder}: mm_use_im_start_end puts tokens of its own around images, which is not supported")
    if config.get("mm_use_mlp") is False:
        reason = "reads images without a projector, as vectors of its codebook (mm_use_mlp false)"
        raise ValueError(f"{folder} {reason}; encode them into ids instead: unicode.run.encode_images")
    named = tower or str(config.get("mm_vision_tower") or "")
    path = _find_model(named, folder)
    if path is None:
        reason = f"its vision tower '{named}' is no folder with a model; download it"
        raise FileNotFoundError(f"{folder}: {reason} (hf download) and give the folder with --image-tokenizer DIR")
    kind = "clip" if "model_type" in read_json(path / "config.json") else "tokenizer"
    feature = config.get("mm_vision_select_feature", "patch") if kind == "clip" else "quantized"
    if feature not in FEATURES[kind]:
        raise ValueError(f"{folder}: mm_vision_select_feature is '{feature}'; known: {', '.join(FEATURES[kind])}")
    ratio = config.get("image_aspect_ratio")
    if ratio not in RATIOS:
        raise ValueError(f"{folder}: image_aspect_ratio '{ratio}' cuts an image into several, which is not supported; known: pad, square")
    # "square" means CLIP's preprocessing, which crops; with an HQ-VAE as tower images were squashed
    fit = "squash" if kind == "tokenizer" else "pad" if ratio == "pad" else "crop"
    layer = int(config.get("mm_vision_select_layer", -2))
    return VisionSettings(enabled=True, kind=kind, path=str(path), feature=feature, layer=layer, fit=fit)


def _open_language_model(folder: Path, config: dict[str, Any], base: str, options: dict[str, Any]) -> tuple[Any, Any, Path, Any]:
    """Return the language model with all trained weights, its text tokenizer, the folder of the base model, and the projector."""
    lora = (folder / ADAPTER_CONFIG).is_file()
    if lora or (folder / LLAVA_FILE).is_file():
        adapter = read_json(folder / ADAPTER_CONFIG) if lora else {}
        named = base or adapter.get("base_model_name_or_path") or config.get("_name_or_path", "")
        source = _find_model(named, folder)
        if source is None:
            wanted = named or "a model that it does not name"
            raise FileNotFoundError(f"{folder} was trained on {wanted}, and no such folder is here; give the base model with --base DIR")
        lm, text = open_base(source, **options)
        file = folder / (LORA_REST if lora else LLAVA_FILE)
        state = read_tensors(file, wanted="LLaVA's projector")
        projector = pick_projector(state, source=str(file))
        _load_weights_(lm, {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}, source=str(file))
        return add_adapter(lm, folder, merge=True) if lora else lm, text, source, projector
    state = {}
    lm, text = _open_complete(folder, config, options)
    for file in sorted({file for name, file in weight_files(folder).items() if "mm_projector." in name}):
        state |= read_tensors(file, wanted="weights of a LLaVA model")
    return lm, text, folder, pick_projector(state, source=str(folder))


def _open_complete(folder: Path, config: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the language model and the text tokenizer of a folder with all weights."""
    named = (config.get("architectures") or ["none"])[0]
    if named not in FAMILIES:
        raise ValueError(f"{folder}: architecture '{named}' is not supported; known: {', '.join(FAMILIES)}")
    if not weight_files(folder):
        raise FileNotFoundError(f"{folder} holds neither an adapter, nor {LLAVA_FILE}, nor model files; the copy is incomplete")
    own = {name: value for name, value in config.items() if not name.startswith((*OWN_PREFIXES, "model_type", "architectures"))}
    plain = AutoConfig.for_model(FAMILIES[named], **own)
    text = open_text_tokenizer(folder, config=plain)
    dtype = getattr(torch, options["dtype"]) if options.get("dtype", "auto") != "auto" else torch.float32
    attention = choose_attention(options.get("attention", "auto"), plain, options.get("device", "auto"))
    choices: dict[str, Any] = {"config": plain, "dtype": dtype, "attn_implementation": attention, "output_loading_info": True}
    lm, found = open_pretrained(AutoModelForCausalLM, folder, f"{folder} could not be opened as a {FAMILIES[named]} model", **choices)
    _check_names(str(folder), unknown=found["unexpected_keys"], missing=found["missing_keys"])
    return lm.eval(), text


def _load_weights_(lm: Any, state: dict[str, Tensor], *, source: str) -> None:
    """Load what was trained besides adapter and projector into a language model."""
    own = {name: tensor for name, tensor in state.items() if not any(part in name for part in PARTS)}
    try:
        _, unknown = lm.load_state_dict(own, strict=False)
    except RuntimeError as error:  # shapes
        raise ValueError(f"{source} does not fit the language model: {' '.join(str(error).split())[:300]}") from error
    _check_names(source, unknown=unknown)
    lm.tie_weights()


def _check_names(source: str, *, unknown: Iterable[str], missing: Iterable[str] = ()) -> None:
    """Raise ValueError for weights that have no place in the language model, and for those that it lacks."""
    elsewhere = (*PARTS, "rotary_emb.inv_freq")  # a constant that older models saved
    unknown = sorted(name for name in unknown if not any(part in name for part in elsewhere))
    missing = sorted(missing)
    if unknown or missing:
        first = f"'{unknown[0]}' has no place" if unknown else f"'{missing[0]}' is missing"
        raise ValueError(f"{source} does not fit the language model: {first} ({len(unknown)} without place, {len(missing)} missing)")


def _find_model(name: str, folder: Path) -> Path | None:
    """Return the folder of a model of that name, as written or relative to `folder`; None if neither holds one."""
    places = [Path(name), folder / name] if name else []
    return next((place for place in places if (place / "config.json").is_file()), None)
