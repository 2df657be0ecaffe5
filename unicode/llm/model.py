"""Base language models: a Hugging Face folder or a GGUF file -> model and text tokenizer, for training and inference."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils.logging import disable_progress_bar

from unicode.common.logging import get_logger
from unicode.llm.lora import spare_tables_
from unicode.llm.vocabulary import Markers, find_model, first_line, open_pretrained, open_text_tokenizer, weight_files

EAGER_WIDTH = 512  # On a CPU, models narrower than this are faster with plain attention: the fused kernels cost more than they save
DTYPES = ("float32", "bfloat16", "float16")
CAUSAL_SDPA = "causal_sdpa"
"""sdpa for batches in which causality is the only mask. To make a mask for sdpa, transformers looks in each forward whether rows are
packed, for which the host waits; for an attention without a function of masks it makes none."""
AttentionInterface.register(CAUSAL_SDPA, sdpa_attention_forward)
log = get_logger(__name__)


def open_base(
    path: str | Path, *, dtype: str = "auto", attention: str = "auto", quantize: str = "none", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a causal language model, in evaluation mode, and its tokenizer, without the network.

    `path`: folder with config.json and weights, a .gguf file, or a folder with one. `dtype`: of the weights: float32, bfloat16 or float16;
    "auto": as they were saved (GGUF: float32). `attention`: name of an implementation of transformers; "auto": see `choose_attention`.
    `quantize`: "none", "nf4" or "int8" (bitsandbytes). `device`: the device type on which it will run, which "auto" attention depends on;
    "auto": a GPU where there is one. The model is left on the CPU, or on the GPU when quantized. Raises FileNotFoundError: nothing there.
    Raises ValueError: no language model, a damaged or incomplete one, no tokenizer, or bitsandbytes is missing.
    """
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype '{dtype}' is unknown; choose auto, {', '.join(DTYPES)}")
    if not sys.stderr.isatty():
        disable_progress_bar()  # a progress bar would fill a log file
    config, text_tokenizer = open_description(path)
    place, folder, gguf = _locate(path)
    options: dict[str, Any] = {"attn_implementation": choose_attention(attention, config, device)}
    options["dtype"] = getattr(torch, dtype) if dtype != "auto" else torch.float32 if gguf else "auto"
    if quantize != "none":
        options |= {"quantization_config": _quantization(quantize, options["dtype"]), "device_map": {"": torch.cuda.current_device()}}
    options |= gguf or {"config": config}
    model = open_pretrained(AutoModelForCausalLM, folder, f"{place} could not be opened as a causal language model", **options)
    if gguf:  # the weights are dequantized, but transformers still marks the model as quantized and would not train it
        for owner, name in ((model, "is_quantized"), (model, "hf_quantizer"), (model.config, "quantization_config")):
            if hasattr(owner, name):
                delattr(owner, name)
    return model.eval(), text_tokenizer


def add_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """Put the adapter of a folder on its base model; with `merge` add it to the weights and return the plain model.

    Raises ValueError: it is damaged or does not fit the model.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses a name that transformers deprecates
            # an adapter that is merged keeps float32, so that the sum is rounded once
            adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=merge, local_files_only=True)
            return adapted.merge_and_unload() if merge else spare_tables_(adapted.to(model.dtype))  # type: ignore[operator]
    except Exception as error:  # peft, torch and safetensors have errors of their own for damaged files and wrong shapes
        reason = first_line(error, limit=300)
        remedy = "copy or train it again, or give the right model with --base DIR"
        raise ValueError(f"the adapter of {folder} is damaged or does not fit its base model ({reason}); {remedy}") from error


def open_description(path: str | Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Open a model's config and tokenizer only, which is fast; arguments and errors as `open_base`, which reads the weights too."""
    place, folder, gguf = _locate(path)
    text_tokenizer = open_text_tokenizer(folder, **gguf)
    config = open_pretrained(AutoConfig, folder, f"{place} is no model that transformers knows", **gguf)
    if not gguf and not weight_files(folder) and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise FileNotFoundError(f"{folder} holds no weights (model.safetensors); the download is not complete")
    return config, text_tokenizer


def choose_attention(attention: str, config: Any, device: str = "auto") -> str:
    """Return the name of an attention implementation; "auto" is eager for narrow models on a CPU and sdpa otherwise.

    Raises ValueError: flash attention was asked for and is not installed.
    """
    if attention.startswith("flash_attention") and find_spec("flash_attn") is None and find_spec("flash_attn_interface") is None:
        raise ValueError(f"model.attention={attention} needs the package flash-attn, which is not installed; sdpa needs nothing")
    if attention != "auto":
        return attention
    cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return "eager" if cpu and getattr(config.get_text_config(), "hidden_size", EAGER_WIDTH) < EAGER_WIDTH else "sdpa"


def table_rows(model: Any) -> int:
    """Rows of a model's input-embedding table, which may be more than its tokenizer has tokens; `model` may be its config."""
    return int(getattr(model, "config", model).get_text_config().vocab_size)


def context_length(model: Any) -> int:
    """Longest sequence that a model's positions allow, 2^30 if its config has none; `model` may be its config."""
    return int(getattr(getattr(model, "config", model).get_text_config(), "max_position_embeddings", None) or 2**30)


def fit_embeddings_(model: PreTrainedModel, markers: Markers) -> None:
    """Append rows to the embedding table, and to an untied output layer, for markers whose ids lie beyond it.

    A new row is the mean of all rows: the same in every process and at every loading, so that it need not be saved unless it is trained.
    Rows that were there stay as they were.
    """
    wanted = max(markers.ids()) + 1
    before = table_rows(model)
    if wanted <= before:
        return
    model.resize_token_embeddings(wanted, mean_resizing=False)
    for module in {id(part): part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None}.values():
        weight = module.get_parameter("weight")
        with gathered([weight], modifier_rank=0), torch.no_grad():
            if weight.numel():
                weight[before:] = weight[:before].float().mean(dim=0).to(weight.dtype)
    log.info("embedding table grown from %d to %d rows for the image markers", before, wanted)


def gathered(weights: Sequence[torch.Tensor], *, modifier_rank: int | None = None) -> Any:
    """Gather parameters where ZeRO-3 has split them; what `modifier_rank` writes reaches every rank, None: nothing is written."""
    if not any(hasattr(weight, "ds_id") for weight in weights):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(weights), modifier_rank=modifier_rank)


def _locate(path: str | Path) -> tuple[Path, Path, dict[str, Any]]:
    """Return the folder or GGUF file that is meant, its folder, and the extra arguments of `from_pretrained` for a GGUF file."""
    place = find_model(path)
    return (place, place.parent, {"gguf_file": place.name}) if place.suffix == ".gguf" else (place, place, {})


def _quantization(quantize: str, dtype: Any) -> Any:
    """Return the bitsandbytes config of QLoRA (Dettmers et al., 2023): NF4 with double quantization, or 8 bits."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"model.quantize={quantize} needs the package bitsandbytes: pip install bitsandbytes, or set model.quantize=none")
    if not torch.cuda.is_available():
        raise ValueError(f"model.quantize={quantize} needs a GPU; set model.quantize=none")
    from transformers import BitsAndBytesConfig

    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)
