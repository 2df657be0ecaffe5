"""GGUF files that are written: the logits of the same weights, every token by its id and kind, and what cannot be written."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from unicode.llm.card import FILE, read_card
from unicode.llm.gguf_export import export_gguf
from unicode.llm.load import open_merged
from unicode.llm.model import open_base
from unicode.llm.vocabulary import SPECIAL, open_gguf, read_vocabulary
from unicode.run.export_gguf import main

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS = {
    "llama": {"tie_word_embeddings": True},
    "llama untied": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 128},
    "qwen2": {},
    "qwen3": {"head_dim": 128},  # another width is read wrongly by transformers
}


@pytest.fixture(scope="module")
def text(tuned):
    return open_base(tuned.base, device="cpu")[1]


def make(kind, **more):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind.split()[0]](vocab_size=140, max_position_embeddings=256, initializer_range=0.2, **SIZES, **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_the_file_are_those_of_the_model(kind, text, tmp_path):
    model = make(kind, **KINDS[kind])
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.2)  # biases, and norms that differ
    tokens = torch.randint(140, (2, 60), generator=torch.Generator().manual_seed(0))
    for precision, tolerance in (("f32", 1e-4), ("f16", 0.05), ("q8_0", 1.0)):
        export_gguf(model, text, tmp_path / f"{precision}.gguf", card=None, kind=precision)
        read, _ = open_base(tmp_path / f"{precision}.gguf", device="cpu")
        with torch.no_grad():
            assert (model(tokens).logits - read(tokens).logits).abs().max() < tolerance, precision
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["f16.gguf", "f32.gguf", "q8_0.gguf"]


def test_the_command_keeps_vocabulary_markers_template_and_card(tuned, merged, tmp_path):
    assert main(["--model", str(merged), "--out", str(tmp_path / "model.gguf"), "--type", "f32"]) == 0
    card, found, reader = read_card(merged), read_vocabulary(tmp_path / "model.gguf"), open_gguf(tmp_path / "model.gguf")
    assert found.tokens == read_vocabulary(merged).tokens
    assert set(card.markers.ids()) | {0, 1, 2} == found.marked[SPECIAL]
    assert json.loads(reader.get_field(FILE).contents())["image_tokenizer"]["fingerprint"] == card.fingerprint
    assert "ASSISTANT:" in reader.get_field("tokenizer.chat_template").contents()
    assert reader.get_field("llama.context_length").contents() == 512


def test_a_named_template_is_written_as_jinja(merged, tmp_path):
    model, text = open_base(merged, device="cpu")
    export_gguf(model, text, tmp_path / "model.gguf", card=read_card(merged))
    text.chat_template = open_gguf(tmp_path / "model.gguf").get_field("tokenizer.chat_template").contents()
    turns = [{"role": "user", "content": "a's?"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    found = text.apply_chat_template(turns, tokenize=False)
    assert found.startswith("A chat between a curious user") and found.endswith("questions. USER: a's? ASSISTANT: b</s>USER: c ASSISTANT:")


def test_scaled_positions_are_written_where_llama_cpp_has_them(text, tmp_path):
    model = make("llama", rope_parameters={**LLAMA_3, "original_max_position_embeddings": 32})
    export_gguf(model, text, tmp_path / "model.gguf", card=None)
    (factors,) = (tensor.data for tensor in open_gguf(tmp_path / "model.gguf").tensors if tensor.name == "rope_freqs.weight")
    assert factors[0] == 1 and factors[-1] == pytest.approx(8) and len(factors) == 8
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    with pytest.raises(ValueError, match="positions scaled by 'yarn' cannot be written"):
        export_gguf(make("qwen2", rope_parameters=yarn), text, tmp_path / "other.gguf", card=None)


def test_what_cannot_be_written_says_why(tuned, tmp_path, capsys):
    assert main(["--model", str(tuned.run), "--out", str(tmp_path / "x.gguf")]) == 2
    assert "merge it first: python -m unicode.run.merge_lora" in capsys.readouterr().err
    other = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt2"](n_layer=1, n_embd=8, n_head=2, vocab_size=140))
    with pytest.raises(ValueError, match=r"of the type gpt2 .* known: models of the types llama"):
        export_gguf(other, None, "", card=None)


@pytest.fixture(scope="module")
def merged(tuned, tmp_path_factory):
    from unicode.run.merge_lora import main as merge

    folder = tmp_path_factory.mktemp("merged")
    assert merge([str(tuned.run), str(folder)]) == 0
    assert open_merged(tuned.run)[0].num_parameters() > 0
    return folder
