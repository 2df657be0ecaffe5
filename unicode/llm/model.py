"""The base language model as training and inference open it: a Hugging Face folder or a GGUF file -> model and text tokenizer."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from unicode.common.logging import get_logger
from unicode.llm.vocabulary import Markers, find_model, first_line, weight_files

EAGER_WIDTH = 512
"""On a CPU, models narrower than this train faster with plain attention: the fused kernels cost more than they save."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
log = get_logger(__name__)


def open_base(
    path: str | Path, *, dtype: str | torch.dtype = "auto", attention: str = "auto", quantize: str = "none", device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a causal language model and its tokenizer, without the network.

    Args:
        path: folder with config.json and weights, a .gguf file, or a folder with one.
        dtype: of the weights: float32, bfloat16, float16 or a torch.dtype; "auto": as they were saved (GGUF: float32).
        attention: name of an implementation of transformers; "auto": see `choose_attention`.
        quantize: "none", "nf4" or "int8" (bitsandbytes).
        device: where it will run, as far as `attention` depends on it; "auto": a GPU where there is one. The model is left on the CPU, or
            on the GPU when quantized.

    Returns:
        The model, in evaluation mode, and its tokenizer.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no language model, a damaged or incomplete one, no tokenizer, or bitsandbytes is missing.
    """
    if not sys.stderr.isatty():
        disable_progress_bar()  # a bar that nobody watches fills a log file
    config, text_tokenizer = open_description(path)
    place, folder, source = _locate(path)
    implementation = choose_attention(attention, config, device)
    options: dict[str, Any] = {"dtype": _torch_dtype(dtype, gguf=bool(source)), "attn_implementation": implementation}
    if quantize != "none":
        options |= {"quantization_config": _quantization(quantize, options["dtype"]), "device_map": {"": torch.cuda.current_device()}}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, config=None if source else config, local_files_only=True, **options, **source)
    except Exception as error:
        raise ValueError(f"{place} could not be opened as a causal language model ({first_line(error, limit=300)})") from error
    if source:  # the weights are plain numbers now, but the library still takes the model for a quantized one and would not train it
        for owner, name in ((model, "is_quantized"), (model, "hf_quantizer"), (model.config, "quantization_config")):
            if hasattr(owner, name):
                delattr(owner, name)
    return model.eval(), text_tokenizer


def open_description(path: str | Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Open a model's config and tokenizer, which take no time; arguments and errors as `open_base`, which reads the weights too."""
    place, folder, source = _locate(path)
    try:
        text_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **source)
    except Exception as error:  # transformers fails in many ways on a folder without a tokenizer
        raise ValueError(f"{place} holds no tokenizer that opens ({first_line(error)}); copy the model's tokenizer files there") from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **source)
    except Exception as error:
        raise ValueError(f"{place} is no model that transformers knows ({first_line(error)})") from error
    if not source and not weight_files(folder) and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise FileNotFoundError(f"{folder} holds no weights (model.safetensors); the download is not complete")
    return config, text_tokenizer


def choose_attention(attention: str, config: Any, device: str = "auto") -> str:
    """Return the name of an attention implementation; "auto" is eager for narrow models on a CPU and sdpa otherwise.

    Raises:
        ValueError: flash attention was asked for and is not installed.
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
    """Longest sequence that a model's positions are made for, 2^30 where nothing says it; `model` may be its config."""
    return int(getattr(getattr(model, "config", model).get_text_config(), "max_position_embeddings", None) or 2**30)


def fit_embeddings_(model: PreTrainedModel, markers: Markers) -> None:
    """Append rows to the embedding table, and to an untied output layer, for markers whose ids lie beyond it.

    A new row is the mean of all rows: the same in every process and at every loading, so that nothing has to be saved while it is not
    trained. Rows that were there stay as they were.
    """
    wanted = max(markers.ids()) + 1
    before = table_rows(model)
    if wanted <= before:
        return
    model.resize_token_embeddings(wanted, mean_resizing=False)
    for module in {id(part): part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None}.values():
        weight = module.get_parameter("weight")
        with _gathered(weight), torch.no_grad():
            if weight.numel():
                weight[before:] = weight[:before].float().mean(dim=0).to(weight.dtype)
    log.info("embedding table grown from %d to %d rows for the image markers", before, wanted)


def _gathered(weight: torch.Tensor) -> Any:
    """Let a parameter that ZeRO-3 has split be read and written as a whole."""
    from contextlib import nullcontext

    if not hasattr(weight, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([weight], modifier_rank=0)


def _torch_dtype(dtype: str | torch.dtype, *, gguf: bool) -> str | torch.dtype:
    """What `from_pretrained` takes for a dtype of ours."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if gguf else "auto"
    if dtype not in DTYPES:
        raise ValueError(f"dtype '{dtype}' is unknown; choose auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _locate(path: str | Path) -> tuple[Path, Path, dict[str, Any]]:
    """The folder or GGUF file that is meant, the folder of it, and what `from_pretrained` has to be told of a GGUF file."""
    place = find_model(path)
    return (place, place.parent, {"gguf_file": place.name}) if place.suffix == ".gguf" else (place, place, {})


def _quantization(quantize: str, dtype: Any) -> Any:
    """The quantization config of bitsandbytes for QLoRA (Dettmers et al., 2023): NF4 with double quantization, or 8 bits."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"model.quantize={quantize} needs the package bitsandbytes: pip install bitsandbytes, or set model.quantize=none")
    if not torch.cuda.is_available():
        raise ValueError(f"model.quantize={quantize} needs a GPU; set model.quantize=none")
    from transformers import BitsAndBytesConfig

    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)
