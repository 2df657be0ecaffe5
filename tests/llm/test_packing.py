"""Packed rows and isolated turns: every attention gives each example the logits it has alone; only dense ones use a mask of T x T."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, masking_utils
from transformers.integrations import flex_attention as flex_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unicode.common.config import load_config
from unicode.ids.layout import Layout
from unicode.llm.collate import collate
from unicode.llm.examples import Example, ExampleBuilder
from unicode.llm.model import CAUSAL_SDPA, open_base
from unicode.llm.template import get_template
from unicode.llm.vocabulary import Markers
from unicode.train import runtime as runtime_module
from unicode.train.config import TrainLlmConfig
from unicode.train.loss import Collator, prepare_forward_
from unicode.train.runtime import Runtime, resolve_attention

IDS = list(range(100, 120))
TURNS = ["<image>\nHow many?", "two", "What colour is it?", "red"]
GPU = Runtime(cpu=False, bf16=True, accumulation=1, micro=1)


@pytest.fixture(scope="module")
def builder(byte_level) -> ExampleBuilder:
    return ExampleBuilder(get_template("vicuna_v1"), byte_level, Markers(500, 501, 502, 503), Layout("hierarchical", ((2, 2), (4, 4))), 504)


def by_borders(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **options: Any) -> tuple[torch.Tensor, None]:
    """What flash attention computes from borders."""
    assert mask is None
    lengths = options["cu_seq_lens_q"].diff().tolist()
    assert options["cu_seq_lens_k"].diff().tolist() == lengths and options["max_length_q"] == options["max_length_k"] == max(lengths)
    parts = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part, is_causal=True, scale=scaling) for part in parts], 2).transpose(1, 2), None


@pytest.fixture(params=["eager", "sdpa", "flash_attention_2", "flex_attention"])
def model(request, monkeypatch) -> LlamaForCausalLM:
    def uncompiled(*tensors: torch.Tensor, training: bool, **options: Any) -> Any:
        assert not training and isinstance(options["block_mask"], BlockMask)
        return flex_attention(*tensors, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", by_borders)
    monkeypatch.setattr(flex_module, "compile_friendly_flex_attention", uncompiled)
    torch.manual_seed(0)
    sizes = {"vocab_size": 504, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=512, initializer_range=0.2)).eval()
    made.config._attn_implementation = request.param
    prepare_forward_(made)
    return made


@torch.no_grad()
def assert_as_alone(model: LlamaForCausalLM, examples: list[Example], *, pack: bool) -> None:
    batch = Collator(0, pack=pack)(examples)["inputs"]
    owner = collate(examples, pad_id=0, pack=pack)["example"]
    logits = model(**batch, use_cache=False).logits
    model.config._attn_implementation = "eager"
    for number, example in enumerate(examples):
        expected = model(**Collator(0)([example])["inputs"], use_cache=False).logits[0]
        torch.testing.assert_close(logits[owner == number], expected, atol=3e-5, rtol=1e-4)


def test_a_packed_example_has_the_logits_it_has_alone(model: LlamaForCausalLM, builder: ExampleBuilder) -> None:
    examples = [builder.build(["How many dogs?", "two"]), builder.build(TURNS, [IDS]), builder.build(["Why?", "So."])]
    assert_as_alone(model, examples, pack=True)


@pytest.mark.parametrize("model", ["eager", "sdpa", "flex_attention"], indirect=True)
@pytest.mark.parametrize("pack", [False, True])
def test_isolated_turns_too(model: LlamaForCausalLM, builder: ExampleBuilder, pack: bool) -> None:
    assert_as_alone(model, [builder.build(["Why?", "So."]), builder.build(TURNS, [IDS], isolate_turns=True)], pack=pack)


def test_borders_are_counted_in_the_collator(builder: ExampleBuilder) -> None:
    examples = [builder.build(["How many dogs?", "two"]), builder.build(["Why?", "So."])]
    inputs = Collator(0, pack=True)(examples)["inputs"]
    lengths = [len(example) for example in examples]
    assert inputs["cu_seq_lens"].tolist() == [0, lengths[0], sum(lengths)] and inputs["cu_seq_lens"].dtype == torch.int32
    assert type(inputs["max_length"]) is int and inputs["max_length"] == max(lengths)
    assert not {"cu_seq_lens", "example"} & set(Collator(0)(examples)["inputs"]), "a padded batch needs no borders"


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.numel = max(self.numel, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


@pytest.mark.parametrize("model", ["flash_attention_2"], indirect=True)
def test_borders_need_no_mask(model: LlamaForCausalLM, builder: ExampleBuilder) -> None:
    batch = Collator(0, pack=True)([builder.build(["a" * 100, "b" * 100])] * 8)["inputs"]
    del model.model.layers[1]
    with torch.no_grad(), Largest() as seen:
        model(**batch, logits_at=torch.tensor([0]), use_cache=False)
    assert seen.numel < batch["input_ids"].numel() ** 2


@pytest.mark.parametrize(
    ("words", "flash", "expected"),
    [
        (["data.pack=true"], True, "flash_attention_2"),
        (["data.pack=true"], False, "flex_attention"),
        (["data.pack=true", "data.isolate_turns=true"], True, "flex_attention"),
        (["data.isolate_turns=true"], True, "flex_attention"),
        (["data.pack=true", "model.attention=sdpa"], True, "sdpa"),
        ([], True, CAUSAL_SDPA),
        (["model.attention=sdpa"], True, "sdpa"),
    ],
)
def test_attention_of_packed_rows_on_a_gpu(monkeypatch, words: list[str], flash: bool, expected: str) -> None:
    monkeypatch.setattr(runtime_module, "is_flash_attn_2_available", lambda: flash)
    assert resolve_attention(load_config(TrainLlmConfig, None, words), GPU, LlamaConfig()) == expected


def test_batches_that_are_only_causal_ask_for_no_mask(monkeypatch, tiny_llama: Path) -> None:
    ids = torch.randint(50, (2, 9))
    expected = open_base(tiny_llama, attention="sdpa")[0](ids, use_cache=False).logits
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", None)  # what the host would wait for
    model, _ = open_base(tiny_llama, attention=CAUSAL_SDPA)
    assert torch.equal(model(ids, use_cache=False).logits, expected)
    assert resolve_attention(load_config(TrainLlmConfig, None, []), GPU, MistralConfig(sliding_window=8)) == "auto"


def test_models_that_flex_attention_does_not_suit(monkeypatch) -> None:
    monkeypatch.setattr(runtime_module, "is_flash_attn_2_available", lambda: False)
    config = load_config(TrainLlmConfig, None, ["data.pack=true"])
    narrow = LlamaConfig(hidden_size=32, num_attention_heads=4)
    for unsuited in (narrow, LlamaConfig(attention_dropout=0.1), MistralConfig(sliding_window=8)):
        assert resolve_attention(config, GPU, unsuited) == "auto"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.attention=flash_attention_2", "data.isolate_turns=true"], "isolate_turns needs a mask"),
        (["model.attention=flex_attention"], "on a GPU only"),
    ],
)
def test_attention_that_cannot_work_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_attention(load_config(TrainLlmConfig, None, words), Runtime(True, False, 1, 1), LlamaConfig())


def test_a_dense_mask_is_named_once_in_the_log(caplog) -> None:
    with caplog.at_level("INFO"):
        resolve_attention(load_config(TrainLlmConfig, None, ["data.pack=true"]), Runtime(True, False, 1, 1), LlamaConfig())
    assert [record.message for record in caplog.records] == [
        "packed rows and isolated turns use a mask of T x T here; flash or flex attention on a GPU needs none"
    ]
