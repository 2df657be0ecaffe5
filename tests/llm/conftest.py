"""Tiny text tokenizers of every kind that language models have, all of them with a chat template; stores of random ids."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from unicode.ids.layout import Layout
from unicode.ids.store import StoreSpec, hash_keys
from unicode.ids.store_writer import StoreWriter

LINES = [
    "A chat between a curious user and an artificial intelligence assistant. USER: What is it? ASSISTANT: A red bus on a street.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions. Is there a dog? No, two people and a cat.",
    "[INST] <<SYS>> You are a helpful language and vision assistant. <</SYS>> how many green squares are there [/INST] three",
]
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
KINDS = ("byte_level", "legacy", "metaspace", "first_only")


def make_text_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE without a habit of a start token, or SentencePiece-like BPE with byte fallback and one of three habits of spaces:
    "legacy" (a normalizer puts one before everything), "metaspace" (before every stretch), "first_only" (before the first)."""
    if kind == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|reserved_0|>", "<|fim_pad|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(LINES, trainer)
        names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
        fast.chat_template = CHATML
        return fast
    tokenizer = Tokenizer(sentencepiece_model())
    prefix = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.decoder = prefix
    if kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme = {"metaspace": "always", "first_only": "first"}[kind]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": ["<s>", "</s>"]})
    fast.chat_template = INSTRUCT
    return fast


def sentencepiece_model() -> models.BPE:
    """A BPE over pieces with '▁' for spaces, with a token for each byte, as LLaMA's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    tokens = [*tokens[:3], *(f"<0x{byte:02X}>" for byte in range(256)), *tokens[3:]]
    merges = [tuple(pair) for pair in trained["merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)


@pytest.fixture(scope="session", params=KINDS)
def text_tokenizer(request) -> PreTrainedTokenizerFast:
    """Each kind in turn."""
    return make_text_tokenizer(request.param)


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE with ChatML."""
    return make_text_tokenizer("byte_level")


@pytest.fixture(scope="session")
def legacy() -> PreTrainedTokenizerFast:
    """LLaMA-like, a space put before everything."""
    return make_text_tokenizer("legacy")


LAYOUT = Layout("hierarchical", ((2, 2), (4, 4)))
STORE_VOCAB = 256


@pytest.fixture(scope="session")
def make_store() -> Callable[..., dict[str, np.ndarray]]:
    """Write a store of random ids, (20,) for each key, and return them by key."""

    def make(folder: Path, keys: Sequence[str], *, layout: Layout = LAYOUT, tokenizer: str = "0123456789abcdef", skip: Sequence[str] = ()):
        spec = StoreSpec(tokenizer, layout, {"image_size": 16}, "float32", ("whole",), STORE_VOCAB, len(keys), hash_keys(keys), 64)
        ids = np.random.default_rng(0).integers(60, STORE_VOCAB, (len(keys), 1, layout.num_codes))
        with StoreWriter(folder, spec) as writer:
            writer.prepare(keys)
            writer.put(0, ids, [(row, key, "truncated") for row, key in enumerate(keys) if key in skip])
            writer.close()
            writer.finish(keys)
        return dict(zip(keys, ids[:, 0], strict=True))

    return make
