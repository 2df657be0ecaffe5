"""Opening a tuned language model from a folder: a run folder, a merged model, one that LLaVA's code wrote, or a plain base model."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from unicode.llm.card import FILE as CARD_FILE
from unicode.llm.card import Card, check_base, fingerprint_base, read_card
from unicode.llm.language_model import LanguageModel
from unicode.llm.llava import PROJECTOR_FILE, LlavaModel, VisionSettings, build_projector, build_tower, load_projector_
from unicode.llm.llava_folder import is_llava_folder, open_llava_folder
from unicode.llm.model import choose_device, fit_embeddings_, inference_dtype, open_base, table_rows
from unicode.llm.template import CHAT
from unicode.llm.vocabulary import choose_markers, first_line, open_text_tokenizer
from unicode.tokenizer.load import load_tokenizer

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SAMPLES, SAMPLE_BYTES = 64, 4096  # of each file of weights that go into a fingerprint


def open_model(
    path: str | Path,
    *,
    base: str = "",
    image_tokenizer: str = "",
    device: str | torch.device = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    merge: bool = False,
) -> LanguageModel:
    """Open a language model for inference.

    Args:
        path: a run folder of `unicode.run.train_llm`, a folder of `unicode.run.merge_lora`, one that LLaVA's own code wrote, or a plain
            model, which then answers text.
        base: the model that an adapter was trained on, if it has moved since the training.
        image_tokenizer: the same for the image tokenizer, or for the tower of a model that reads pixels.
        device: "auto" is a GPU where there is one.
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 on a GPU, float32 elsewhere.
        attention: as `unicode.llm.model.open_base`.
        merge: add an adapter to the weights: answers are faster, logits differ by rounding.

    Raises:
        FileNotFoundError: nothing there, or the base model or a file of weights is missing.
        ValueError: an adapter of another base model, a damaged file, parts that do not fit each other.
    """
    folder, chosen = Path(path), choose_device(device)
    options = {"dtype": inference_dtype(dtype, chosen), "attention": attention, "device": chosen.type}
    tokenizer_path = image_tokenizer
    if (folder / CARD_FILE).is_file():
        card = read_card(folder)
        lm, text = _open_weights(folder, card, base=base, merge=merge, options=options)
        if card.vision is not None:
            lm = _add_vision(lm, card.vision, folder, tower=image_tokenizer)
        tokenizer_path = image_tokenizer or (card.image_tokenizer or {}).get("path", "")
    elif is_llava_folder(folder):
        lm, text, card = open_llava_folder(folder, base=base, tower=image_tokenizer, options=options)
        tokenizer_path = ""
    else:
        lm, text, card = _open_plain(folder, image_tokenizer=image_tokenizer, options=options)
    _reset_generation_config_(lm)
    if not getattr(lm, "is_quantized", False):
        lm = lm.to(chosen)
    plain = card.base == str(folder)
    fingerprint = digest_folder(folder, "" if plain else card.base_fingerprint)
    return LanguageModel(card, lm.eval(), text, device=chosen, fingerprint=fingerprint, tokenizer_path=tokenizer_path)


def open_merged(path: str | Path, *, base: str = "", dtype: str = "auto") -> tuple[Any, Any, Card]:
    """Open a run folder's base model with its adapter added to the weights.

    Args:
        path: a run folder of `unicode.run.train_llm`.
        base: as `open_model`.
        dtype: of the weights; "auto" as the base model has them.

    Returns:
        The plain language model on the CPU, its text tokenizer, and the card.

    Raises:
        FileNotFoundError, ValueError: as `open_model`; or there is no adapter.
    """
    folder = Path(path)
    card = read_card(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds no adapter ({ADAPTER_CONFIG}); its weights need no merging")
    lm, text = _open_weights(folder, card, base=base, merge=True, options={"dtype": dtype, "device": "cpu"})
    return lm, text, card


def _open_weights(folder: Path, card: Card, *, base: str, merge: bool, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the language model of a folder with a card, its adapter included, and the text tokenizer."""
    own_weights, has_adapter = (folder / "config.json").is_file(), (folder / ADAPTER_CONFIG).is_file()
    if own_weights:
        model, _ = open_base(folder, **options)
    elif has_adapter or card.kind == "llava":
        source = _find_base(folder, card, base)
        check_base(card, source)
        model, _ = open_base(source, **options)
        if card.marker_ids is not None:
            fit_embeddings_(model, card.marker_ids)
    else:
        raise FileNotFoundError(f"{folder} has neither {ADAPTER_CONFIG} nor config.json; start its training again, which resumes")
    rows = table_rows(model)
    if card.marker_ids is not None and max(card.marker_ids.ids()) >= rows:
        reason = f"the markers of {CARD_FILE} reach id {max(card.marker_ids.ids())}, but the model has {rows} embedding rows"
        raise ValueError(f"{folder}: {reason}; it is another base model, or its table was not grown for the markers")
    return _add_adapter(model, folder, merge=merge) if has_adapter else model, open_text_tokenizer(folder)


def _find_base(folder: Path, card: Card, base: str) -> Path:
    """Return the base model of an adapter: `base`, else the path in the card, as written or relative to the run folder."""
    candidates = [Path(base)] if base else [Path(card.base), folder / card.base]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        raise FileNotFoundError(f"no base model {candidates[0]}, on which {folder} was trained; give its folder with --base DIR")
    return found


def _add_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """Put the adapter of a folder on a base model; with `merge` add it to the weights and return the plain model."""
    from peft import PeftModel

    if not (folder / ADAPTER_FILE).is_file():
        raise FileNotFoundError(f"{folder} has {ADAPTER_CONFIG} but no {ADAPTER_FILE}; the copy is incomplete")
    try:
        # an adapter that is merged keeps float32, so that the sum is rounded once
        adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=merge, local_files_only=True)
    except Exception as error:  # peft and safetensors have errors of their own for damaged files and wrong shapes
        raise ValueError(f"the adapter of {folder} does not fit its base model ({first_line(error, limit=300)})") from error
    return adapted.merge_and_unload() if merge else adapted.to(model.dtype)


def _add_vision(lm: Any, vision: dict[str, Any], folder: Path, *, tower: str) -> LlavaModel:
    """Put the tower that a card describes, or the one in the folder `tower`, and the trained projector around a language model."""
    settings = VisionSettings(**{name: value for name, value in vision.items() if name != "fingerprint"})
    if tower or not Path(settings.path).exists():
        settings.path = tower or str(folder / settings.path)
    built = build_tower(settings)
    expected = vision.get("fingerprint", built.fingerprint)
    if built.fingerprint != expected:
        raise ValueError(f"the tower {settings.path} is {built.fingerprint}, but {folder} was trained with {expected}; give the right one")
    projector = build_projector(settings.projector, built.width, lm.get_input_embeddings().weight.shape[1])
    load_projector_(projector, folder / PROJECTOR_FILE)
    return LlavaModel(lm, built, projector)


def _open_plain(folder: Path, *, image_tokenizer: str, options: dict[str, Any]) -> tuple[Any, Any, Card]:
    """Open a model that was not trained here: it answers text, and reads images if a tokenizer of its vocabulary is named."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds an adapter without {CARD_FILE}; give the run folder of the training that wrote it")
    if any(folder.glob("checkpoint-*")):
        raise FileNotFoundError(f"{folder} holds checkpoints of a training that has not ended; start the same command again to end it")
    model, text = open_base(folder, **options)
    markers = choose_markers(text, table_rows=table_rows(model))
    fit_embeddings_(model, markers)
    template = CHAT if getattr(text, "chat_template", None) else "vicuna_v1"
    card = Card("full", str(folder), fingerprint_base(folder), template, markers=markers.to_dict())
    if image_tokenizer:
        card = replace(card, layout=load_tokenizer(image_tokenizer).layout.to_dict())
    return model, text, card


def _reset_generation_config_(lm: Any) -> None:
    """Reset `generation_config`: sampling depends on the arguments of a call, not on the defaults of the base model."""
    causal: Any = lm.lm if isinstance(lm, LlavaModel) else lm
    for part in (causal, causal.get_base_model() if hasattr(causal, "peft_config") else causal):
        part.generation_config = GenerationConfig()


def digest_folder(folder: Path, base_fingerprint: str = "") -> str:
    """Return 16 hexadecimal digits of what was trained: samples of every file of weights in a folder, and the base's fingerprint."""
    digest = hashlib.sha256(base_fingerprint.encode())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name}{size}".encode())
        with open(file, "rb") as content:
            for sample in range(SAMPLES):
                content.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
