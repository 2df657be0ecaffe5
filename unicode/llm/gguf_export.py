"""A plain language model in a folder -> one GGUF file for llama.cpp: weights, vocabulary, chat template, and its card as metadata."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unicode.common.extras import require
from unicode.common.files import atomic_write
from unicode.common.logging import get_logger
from unicode.llm.card import FILE as CARD_FILE
from unicode.llm.card import Card
from unicode.llm.lora import shares_table
from unicode.llm.model import context_length
from unicode.llm.template import RoundTemplate, get_template, text_encoder
from unicode.llm.vocabulary import FALLBACK_BYTE

ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""Model type of transformers -> name in gguf.MODEL_ARCH."""
TYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}
_SPLITS = {r"\p{N}{1,3}": "llama-bpe", r"|\p{N}|": "qwen2"}  # how a pattern splits numbers -> the name of its splitting in llama.cpp
_FALLBACK_SPLIT = "gpt-2"
log = get_logger(__name__)
logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells of every step


def export_gguf(model: Any, text: Any, path: str | Path, *, card: Card | None, kind: str = "f16", name: str = "unicode") -> None:
    """Write a causal language model of transformers, without an adapter, on the CPU, and its text tokenizer as a GGUF file.

    `card`: whose image markers become control tokens; None for a plain model. `kind`: f32, f16 or q8_0, of the matrices; vectors are f32,
    and matrices whose rows are no multiple of 32 wide are f16 for q8_0. Raises ValueError: an architecture, scaled positions or a kind of
    tokenizer that is not written, or the package gguf is not installed. Raises OSError: the disk is full.
    """
    gguf = require("gguf", extra="gguf")
    config = model.config
    if config.model_type not in ARCHITECTURES or kind not in TYPES:
        known = f"models of the types {', '.join(ARCHITECTURES)} as {', '.join(TYPES)}"
        raise ValueError(f"a model of the type {config.model_type} as {kind} cannot be written; known: {known}")
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture])
    _add_sizes(writer, config, name=name, file_type=gguf.LlamaFileType[f"{'ALL_' if kind == 'f32' else 'MOSTLY_'}{TYPES[kind]}"])
    _add_vocabulary(writer, text, card, rows=model.get_input_embeddings().weight.shape[0], types=gguf.TokenType)
    tensors = dict(_tensors(model, gguf.get_tensor_name_map(architecture, config.num_hidden_layers)))
    tensors |= _scaled_positions(model, supported=architecture == gguf.MODEL_ARCH.LLAMA)
    types = {named: _type(gguf, values, kind) for named, values in tensors.items()}
    for named, values in tensors.items():
        size = gguf.quant_shape_to_byte_shape(values.shape, types[named])
        writer.add_tensor_info(named, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=types[named])
    with atomic_write(path, "wb") as file:
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for named, values in tensors.items():
            writer.write_tensor_data(gguf.quantize(values.detach().float().numpy(), types[named]).view(np.uint8))
        writer.close()


def _add_sizes(writer: Any, config: Any, *, name: str, file_type: int) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = config.sliding_window if getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None) else 2**30
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(min(context_length(config), window))  # llama.cpp has no window in these architectures
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_vocabulary(writer: Any, text: Any, card: Card | None, *, rows: int, types: Any) -> None:
    """Write tokens, their types and scores, merges, special tokens, the chat template and the card."""
    state = json.loads(text.backend_tokenizer.to_str())
    if state["model"]["type"] != "BPE":
        raise ValueError(f"a text tokenizer of the kind {state['model']['type']} cannot be written; known: BPE")
    added, markers = text.added_tokens_decoder, card.markers.ids() if card is not None and card.markers is not None else ()
    names = {index: token for token, index in text.get_vocab().items()}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["model"]["merges"]]
    ranks = {token: rank for rank, token in reversed(list(enumerate(pair.replace(" ", "") for pair in merges)))}
    kinds, scores = [types.UNUSED] * rows, [-1e6] * rows
    for index, token in names.items():
        special = index in markers or (index in added and added[index].special)
        kinds[index] = types.BYTE if FALLBACK_BYTE.fullmatch(token) else types.USER_DEFINED if index in added else types.NORMAL
        kinds[index] = types.UNKNOWN if index == text.unk_token_id else types.CONTROL if special else kinds[index]
        scores[index] = -float(ranks.get(token, len(ranks)))
    bytewise = not state["model"].get("byte_fallback")
    writer.add_tokenizer_model("gpt2" if bytewise else "llama")
    if bytewise:
        writer.add_tokenizer_pre(_split_name(json.dumps(state["pre_tokenizer"], ensure_ascii=False).replace("\\\\", "\\")))
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(text_encoder(text).encode("a", prefix=True) != text_encoder(text).encode("a"))
    writer.add_token_list([names.get(index, f"[PAD{index}]") for index in range(rows)])
    writer.add_token_types(kinds)
    for role in ("bos", "eos", "unk", "pad"):
        if (index := getattr(text, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(text_encoder(text).bos_id is not None)
    template = text.chat_template
    if card is not None:
        named = get_template(card.template, text)
        template = _chat_template(named) if isinstance(named, RoundTemplate) else template
        writer.add_string(CARD_FILE, json.dumps({**vars(card), "layout": card.layout and vars(card.layout), "markers": list(markers)}))
    if isinstance(template, str):
        writer.add_chat_template(template)


def _split_name(pattern: str) -> str:
    found = next((name for part, name in _SPLITS.items() if part in pattern), _FALLBACK_SPLIT)
    if found == _FALLBACK_SPLIT and '"Regex"' in pattern:
        log.warning("llama.cpp may split text another way than this tokenizer; send it ids, as our engines do, rather than text")
    return found


def _chat_template(template: RoundTemplate) -> str:
    """Return the Jinja template that writes what `template` writes."""
    before, after = template.answer.split("{}")
    again = "{% if not loop.first %}{{ bos_token }}{% endif %}" if template.restart else ""
    question = f"{again}{{{{ ({template.first!r} if loop.first else {template.later!r}) + message['content'] + {template.middle!r} }}}}"
    answer = f"{{{{ {before!r} + message['content'] + {after!r} + eos_token }}}}"
    return f"{{% for message in messages %}}{{% if message['role'] == 'user' %}}{question}{{% else %}}{answer}{{% endif %}}{{% endfor %}}"


def _tensors(model: Any, names: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights by their names in a GGUF file, queries and keys in llama.cpp's order."""
    config = model.config
    paired = ARCHITECTURES[config.model_type] == "LLAMA"
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, values in model.state_dict().items():
        if key == "lm_head.weight" and shares_table(model):
            continue
        named = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if named is None:
            raise ValueError(f"GGUF has no name for the weight {key} of a model of the type {config.model_type}")
        part = key.split(".")[-2]
        if paired and part in heads:  # transformers rotates halves of a head, llama.cpp neighbours
            values = values.unflatten(0, (heads[part], 2, -1)).transpose(1, 2).flatten(0, 2)
        yield named, values


def _scaled_positions(model: Any, *, supported: bool) -> dict[str, Tensor]:
    """Return what the frequencies of the positions are divided by, where they are scaled."""
    rotary, config = model.base_model.rotary_emb, model.config
    width = 2 * len(rotary.inv_freq)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2) / width)
    if torch.allclose(plain, rotary.inv_freq, rtol=1e-4) and rotary.attention_scaling == 1:
        return {}
    if not supported or rotary.attention_scaling != 1:
        kind = config.rope_parameters.get("rope_type")
        raise ValueError(f"positions scaled by '{kind}' cannot be written for a model of the type {config.model_type}")
    return {"rope_freqs.weight": plain / rotary.inv_freq}


def _type(gguf: Any, values: Tensor, kind: str) -> Any:
    if values.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    wanted = gguf.GGMLQuantizationType[TYPES[kind]]
    return wanted if values.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0 else gguf.GGMLQuantizationType.F16
