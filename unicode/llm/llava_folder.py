"""Folders that LLaVA's own code wrote -> a `LlavaModel`: LoRA runs, projectors, whole models. What is inside decides, not the name.

config.json                    the language model's config with mm_vision_tower, mm_projector_type, mm_vision_select_layer, ...
adapter_config.json, adapter_model.bin (or .safetensors), non_lora_trainables.bin      LoRA, with the projector in the last file
mm_projector.bin               the projector alone
pytorch_model*.bin, model*.safetensors                                                  all weights, the projector among them
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

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
from unicode.llm.model import choose_attention, open_base
from unicode.llm.vocabulary import first_line, weight_files

ADAPTER_CONFIG, LORA_REST = "adapter_config.json", "non_lora_trainables.bin"
FAMILIES = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral", "LlavaQwenForCausalLM": "qwen2"}
"""Architecture in LLaVA's config.json -> the plain one of transformers."""
OWN_PREFIXES = ("mm_", "tune_mm_", "freeze_mm_", "image_", "use_mm_", "unfreeze_mm_")
PARTS = ("mm_projector.", "vision_tower.", "image_newline")  # in names of weights that are not the language model's
RATIOS = (None, "pad", "square")
TEMPLATE = "vicuna_v1"
log = get_logger(__name__)


def is_llava_folder(folder: str | Path) -> bool:
    """Whether LLaVA's code wrote a folder."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        return (folder / LLAVA_FILE).is_file() or (folder / LORA_REST).is_file()
    return "mm_vision_tower" in read_json(folder / "config.json")


def open_llava_folder(folder: str | Path, *, base: str, tower: str, options: dict[str, Any]) -> tuple[LlavaModel, Any, Card]:
    """Open a folder of LLaVA.

    Args:
        folder: what is to be read.
        base: the language model that an adapter or projector was trained on; "": where the folder says, if that is here.
        tower: folder of the CLIP model or image tokenizer; "": as `base`.
        options: for `unicode.llm.model.open_base`: dtype, attention, device.

    Returns:
        The model on the CPU, its text tokenizer, and a card without markers: LLaVA puts nothing around images.

    Raises:
        FileNotFoundError: the base model, the tower or a file of weights is not here.
        ValueError: a damaged file, weights that have no place, or a variant that cannot be read.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, which says how the projector was trained; copy it there too")
    config = read_json(folder / "config.json")
    _check_variant(config, folder)
    if (folder / ADAPTER_CONFIG).is_file():
        lm, text, source, projector = _open_lora(folder, config, base, options)
    elif (folder / LLAVA_FILE).is_file():
        source = _find_base(folder, base, config.get("_name_or_path", ""))
        lm, text = open_base(source, **options)
        projector = pick_projector(read_tensors(folder / LLAVA_FILE, wanted="a projector of LLaVA"), source=str(folder / LLAVA_FILE))
    else:
        lm, text, projector = _open_whole(folder, config, options)
        source = folder
    settings = vision_settings(config, folder, tower=tower)
    settings.projector, width_in, width_out = describe_projector(projector)
    built_tower = build_tower(settings)
    hidden = int(lm.config.get_text_config().hidden_size)
    if (width_in, width_out) != (built_tower.width, hidden):
        reason = f"it goes from {width_in} to {width_out}, but {settings.path} gives {built_tower.width} and {source} has {hidden}"
        raise ValueError(f"the projector of {folder} does not fit: {reason}; name the right ones with --base and --image-tokenizer")
    module = build_projector(settings.projector, width_in, width_out)
    module.load_state_dict(projector)
    log.info("%s: %s projector, tower %s, language model %s", folder, settings.projector, settings.path, source)
    card = Card(
        kind="llava",
        base=str(source),
        base_fingerprint="" if source == folder else fingerprint_base(source),
        template=TEMPLATE,
        vision={"kind": settings.kind, "path": settings.path, "fingerprint": built_tower.fingerprint},
    )
    return LlavaModel(lm, built_tower, module), text, card


def vision_settings(config: dict[str, Any], folder: Path, *, tower: str = "") -> VisionSettings:
    """What LLaVA's config.json says about its tower, which `tower` may name in place of the config.

    Raises:
        FileNotFoundError: the tower is not a folder of this machine.
        ValueError: a setting that cannot be had here.
    """
    named = str(config.get("mm_vision_tower") or "")
    path = _first_model(tower or named, folder)
    if path is None:
        wanted = f"vision tower '{tower or named}' is no folder with a model"
        raise FileNotFoundError(f"{folder}: its {wanted}; download it (hf download) and give the folder with --image-tokenizer DIR")
    kind = "clip" if "model_type" in read_json(path / "config.json") else "tokenizer"
    feature = config.get("mm_vision_select_feature", "patch") if kind == "clip" else "quantized"
    if feature not in FEATURES[kind]:
        raise ValueError(f"{folder}: mm_vision_select_feature is '{feature}'; known: {', '.join(FEATURES[kind])}")
    ratio = config.get("image_aspect_ratio")
    if ratio not in RATIOS:
        raise ValueError(f"{folder}: image_aspect_ratio '{ratio}' cuts an image into several, which is not read here; known: pad, square")
    # "square" leaves it to CLIP's preprocessing, which crops; with an HQ-VAE for a tower images were squashed
    fit = "squash" if kind == "tokenizer" else "pad" if ratio == "pad" else "crop"
    layer = int(config.get("mm_vision_select_layer", -2))
    return VisionSettings(enabled=True, kind=kind, path=str(path), feature=feature, layer=layer, fit=fit)


def _check_variant(config: dict[str, Any], folder: Path) -> None:
    """ValueError for variants of LLaVA that read images in another way."""
    if config.get("mm_use_im_start_end"):
        raise ValueError(f"{folder}: mm_use_im_start_end puts tokens of its own around images, which is not read here")
    if config.get("mm_use_mlp") is False:
        way = "without a projector, as vectors of its codebook"
        raise ValueError(f"{folder} reads images {way} (mm_use_mlp false); encode them into ids instead: unicode.run.encode_images")


def _open_lora(folder: Path, config: dict[str, Any], base: str, options: dict[str, Any]) -> tuple[Any, Any, Path, dict[str, torch.Tensor]]:
    """Base model with the adapter and the other trained weights of a LoRA run; tokenizer, base folder, projector."""
    from peft import PeftModel

    named = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or config.get("_name_or_path", "")
    source = _find_base(folder, base, named)
    lm, text = open_base(source, **options)
    rest = {_plain_name(name): tensor for name, tensor in read_tensors(folder / LORA_REST, wanted="LLaVA's projector").items()}
    projector = pick_projector(rest, source=str(folder / LORA_REST))
    _load_rest_(lm, rest, source=str(folder / LORA_REST))
    try:
        return PeftModel.from_pretrained(lm, str(folder), local_files_only=True).merge_and_unload(), text, source, projector
    except Exception as error:  # peft and torch have errors of their own for damaged files and wrong shapes
        reason = first_line(error, limit=300)
        raise ValueError(f"the adapter of {folder} does not fit {source} ({reason}); give its base model with --base DIR") from error


def _open_whole(folder: Path, config: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Language model, tokenizer and projector of a folder with all weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    named = (config.get("architectures") or ["none"])[0]
    if named not in FAMILIES:
        raise ValueError(f"{folder}: architecture '{named}' is not read here; known: {', '.join(FAMILIES)}")
    own = {name: value for name, value in config.items() if not name.startswith(OWN_PREFIXES)}
    for name in ("model_type", "architectures"):
        own.pop(name, None)
    plain = AutoConfig.for_model(FAMILIES[named], **own)
    state = _read_weights(folder)
    projector = pick_projector(state, source=str(folder))
    try:
        text = AutoTokenizer.from_pretrained(folder, config=plain, local_files_only=True)
        dtype = getattr(torch, options["dtype"]) if options.get("dtype", "auto") != "auto" else torch.float32
        attention = choose_attention(options.get("attention", "auto"), plain, options.get("device", "auto"))
        lm = AutoModelForCausalLM.from_config(plain, dtype=dtype, attn_implementation=attention)
    except Exception as error:  # transformers fails in many ways on a damaged folder
        raise ValueError(f"{folder} could not be opened as a {FAMILIES[named]} model ({first_line(error)})") from error
    _load_rest_(lm, state, source=str(folder), whole=True)
    return lm.eval(), text, projector


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, on the CPU."""
    files = sorted(set(weight_files(folder).values()))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights: neither an adapter, nor {LLAVA_FILE}, nor model files; the copy is incomplete")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state |= load_file(file) if file.suffix == ".safetensors" else read_tensors(file, wanted="weights of a LLaVA model")
    return state


def _load_rest_(lm: Any, state: dict[str, torch.Tensor], *, source: str, whole: bool = False) -> None:
    """Put weights into a language model; ValueError when one has no place, or with `whole` when one is missing."""
    own = {name: tensor for name, tensor in state.items() if not any(part in name for part in PARTS)}
    try:
        missing, unknown = lm.load_state_dict(own, strict=False)
    except RuntimeError as error:  # shapes
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{source} does not fit the language model: {reason}") from error
    unknown = [name for name in unknown if not name.endswith("rotary_emb.inv_freq")]  # older models saved this constant
    lm.tie_weights()
    missing = [name for name in missing if not (name == "lm_head.weight" and lm.config.tie_word_embeddings)]
    if unknown or (whole and missing):
        first = f"'{unknown[0]}' has no place" if unknown else f"'{missing[0]}' is missing"
        raise ValueError(f"{source} does not fit the language model: {first} ({len(unknown)} without place, {len(missing)} missing)")


def _find_base(folder: Path, base: str, named: str) -> Path:
    """The base model: `base`, or what the folder names, if that is here. FileNotFoundError otherwise."""
    place = _first_model(base or named, folder)
    if place is not None:
        return place
    wanted = base or named or "a model that it does not name"
    raise FileNotFoundError(f"{folder} was trained on {wanted}, and no such folder is here; give the base model with --base DIR")


def _first_model(name: str, folder: Path) -> Path | None:
    """The folder of a model of that name, as written or seen from `folder`; None where neither holds one."""
    places = [Path(name), folder / name] if name else []
    return next((place for place in places if (place / "config.json").is_file()), None)


def _plain_name(name: str) -> str:
    """The name of a weight without what PEFT puts in front: base_model.model.model.x -> model.x."""
    return name.removeprefix("base_model.model.")
