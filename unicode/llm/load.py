"""One door for every tuned language model on disk: run folders with an adapter or whole weights, merged folders, LLaVA's, plain bases."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from unicode.common.logging import get_logger
from unicode.llm.card import FILE as CARD_FILE
from unicode.llm.card import Card, check_base, check_vocabulary, fingerprint_base, read_card
from unicode.llm.language_model import LanguageModel, Prompt
from unicode.llm.llava import PROJECTOR_FILE, LlavaModel, VisionSettings, build_projector, build_tower, load_projector_
from unicode.llm.llava_folder import is_llava_folder, open_llava_folder
from unicode.llm.model import fit_embeddings_, open_base, table_rows
from unicode.llm.template import CHAT, get_template
from unicode.llm.vocabulary import choose_markers, first_line

__all__ = ["LanguageModel", "Prompt", "open_model"]

log = get_logger(__name__)
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
        base: the model that an adapter was trained on, where it is no longer where the training had it.
        image_tokenizer: the same for the image tokenizer, or for the tower of a model that reads pixels.
        device: "auto" is a GPU where there is one.
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 on a GPU, float32 elsewhere.
        attention: as `unicode.llm.model.open_base`.
        merge: add an adapter to the weights: answers come faster, logits differ by rounding.

    Raises:
        FileNotFoundError: nothing there, or the base model or a file of weights is missing.
        ValueError: an adapter of another base model, a damaged file, parts that do not fit each other.
    """
    folder = Path(path)
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    options = {"dtype": kind, "attention": attention, "device": place.type}
    if not (folder / CARD_FILE).is_file():
        if is_llava_folder(folder):
            return _open_llava(folder, base=base, tower=image_tokenizer, device=place, options=options)
        return _open_plain(folder, image_tokenizer=image_tokenizer, device=place, options=options)
    card = read_card(folder)
    lm, text = _open_weights(folder, card, base=base, merge=merge, options=options)
    _neutralize_(lm)
    if card.vision is not None:
        lm = _add_vision(lm, card, folder, place=image_tokenizer)
    return LanguageModel(
        card=card,
        lm=_moved(lm, place),
        text=text,
        markers=card.marker_ids,
        template=get_template(card.template, text),
        layout=card.id_layout,
        device=place,
        fingerprint=digest_folder(folder, card.base_fingerprint),
        tokenizer_path=image_tokenizer or (card.image_tokenizer or {}).get("path", ""),
    )


def open_merged(path: str | Path, *, base: str = "", dtype: str = "auto") -> tuple[Any, Any, Card]:
    """Open a run folder's base model with its adapter added to the weights.

    Args:
        dtype: of the weights; "auto" as the base model has them.

    Returns:
        The plain language model on the CPU, its text tokenizer, and the card.

    Raises:
        FileNotFoundError, ValueError: as `open_model`; or there is no adapter.
    """
    folder = Path(path)
    card = read_card(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds no adapter ({ADAPTER_CONFIG}); its weights are whole as they are")
    lm, text = _open_weights(folder, card, base=base, merge=True, options={"dtype": dtype, "device": "cpu"})
    return lm, text, card


def _open_weights(folder: Path, card: Card, *, base: str, merge: bool, options: dict[str, Any]) -> tuple[Any, Any]:
    """The language model of a folder with a card, its adapter included, and the text tokenizer."""
    own_weights = (folder / "config.json").is_file()
    has_adapter = (folder / ADAPTER_CONFIG).is_file()
    if not own_weights and not has_adapter and card.kind != "llava":
        raise FileNotFoundError(f"{folder} has neither {ADAPTER_CONFIG} nor config.json; start its training again, it goes on and ends")
    source = folder if own_weights else find_base(card, base, folder=folder)
    if not own_weights:
        check_base(card, source)
    model, _ = open_base(source, **options)
    if card.marker_ids is not None and not own_weights:
        fit_embeddings_(model, card.marker_ids)
    check_vocabulary(card, table_rows=table_rows(model))
    return add_adapter(model, folder, merge=merge) if has_adapter else model, _open_text(folder)


def choose_device(device: str | torch.device) -> torch.device:
    """Return a device; "auto" is a GPU where there is one. ValueError where there is none of that name."""
    if isinstance(device, torch.device):
        return device
    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device}: {first_line(error)}; give auto, cpu, cuda or cuda:N") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> str:
    """Return the name of a dtype; "auto" is bfloat16 on a GPU that has it, float16 on another, float32 elsewhere."""
    if dtype != "auto":
        return dtype
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def find_base(card: Card, base: str, *, folder: Path) -> Path:
    """Return where the base model of an adapter lies: `base`, else where the training had it, as written or seen from the run folder.

    Raises:
        FileNotFoundError: it is not there.
    """
    candidates = [Path(base)] if base else [Path(card.base), folder / card.base]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"no base model {candidates[0]}, on which {folder} was trained; give its folder with --base DIR")


def add_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """Put the adapter of a folder on a base model; with `merge` add it to the weights and return the plain model.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: they are damaged or made for another architecture.
    """
    from peft import PeftModel

    if not (folder / ADAPTER_FILE).is_file():
        raise FileNotFoundError(f"{folder} has {ADAPTER_CONFIG} but no {ADAPTER_FILE}; the copy is incomplete")
    try:
        # an adapter that is merged keeps float32, so that the sum is rounded once
        adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=merge, local_files_only=True)
    except Exception as error:  # peft and safetensors have errors of their own for damaged files and wrong shapes
        raise ValueError(f"the adapter of {folder} does not fit its base model ({first_line(error, limit=300)})") from error
    return adapted.merge_and_unload() if merge else adapted.to(model.dtype)


def digest_folder(folder: Path, base_fingerprint: str = "") -> str:
    """16 hexadecimal digits of what was trained: samples of every file of weights in a folder, and the base model's fingerprint."""
    digest = hashlib.sha256(base_fingerprint.encode())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name}{size}".encode())
        with open(file, "rb") as content:
            for sample in range(SAMPLES):
                content.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _open_llava(folder: Path, *, base: str, tower: str, device: torch.device, options: dict[str, Any]) -> LanguageModel:
    """A model that LLaVA's code trained."""
    lm, text, card = open_llava_folder(folder, base=base, tower=tower, options=options)
    _neutralize_(lm.lm)
    digest = digest_folder(folder, card.base_fingerprint)
    return LanguageModel(card, _moved(lm, device), text, None, get_template(card.template, text), None, device, digest)


def _open_plain(folder: Path, *, image_tokenizer: str, device: torch.device, options: dict[str, Any]) -> LanguageModel:
    """A model that was not trained here: it answers text, and reads images where a tokenizer of its vocabulary is named."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{folder} holds an adapter without {CARD_FILE}; give the run folder of the training that wrote it")
    if any(folder.glob("checkpoint-*")):
        raise FileNotFoundError(f"{folder} holds checkpoints of a training that has not ended; start the same command again to end it")
    model, text = open_base(folder, **options)
    markers = choose_markers(text, table_rows=table_rows(model))
    fit_embeddings_(model, markers)
    _neutralize_(model)
    name = CHAT if getattr(text, "chat_template", None) else "vicuna_v1"
    card = Card(kind="full", base=str(folder), base_fingerprint=fingerprint_base(folder), template=name, markers=markers.to_dict())
    found = LanguageModel(
        card,
        _moved(model, device),
        text,
        markers,
        get_template(name, text),
        None,
        device,
        digest_folder(folder),
        tokenizer_path=image_tokenizer,
    )
    if image_tokenizer:
        found.layout = found.images.layout
        found.__post_init__()
    return found


def _open_text(folder: Path) -> Any:
    """The text tokenizer that the training saved."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers fails in many ways on a folder without a tokenizer
        raise ValueError(f"{folder} holds no text tokenizer that opens ({first_line(error)}); the training has not ended?") from error


def _moved(lm: Any, device: torch.device) -> Any:
    """The model on its device, in evaluation mode; one that is quantized stays where it is."""
    return (lm if getattr(lm, "is_quantized", False) else lm.to(device)).eval()


def _neutralize_(lm: Any) -> None:
    """Forget the sampling habits that came with the model: an answer depends on what is asked for here alone."""
    for part in (lm, lm.get_base_model() if hasattr(lm, "peft_config") else lm):
        part.generation_config = GenerationConfig()


def _add_vision(lm: Any, card: Card, folder: Path, *, place: str) -> LlavaModel:
    """A tower and the trained projector around a language model.

    Args:
        place: where the tower lies, if no longer where the training had it.

    Raises:
        FileNotFoundError: the tower or the projector is missing.
        ValueError: another tower than the model was trained with.
    """
    assert card.vision is not None
    settings = VisionSettings(**{name: value for name, value in card.vision.items() if name != "fingerprint"})
    if place or not Path(settings.path).exists():
        settings.path = place or str(folder / settings.path)
    tower = build_tower(settings)
    expected = card.vision.get("fingerprint", tower.fingerprint)
    if tower.fingerprint != expected:
        raise ValueError(f"the tower {settings.path} is {tower.fingerprint}, but {folder} was trained with {expected}; give the right one")
    projector = build_projector(settings.projector, tower.width, lm.get_input_embeddings().weight.shape[1])
    load_projector_(projector, folder / PROJECTOR_FILE)
    return LlavaModel(lm, tower, projector)
