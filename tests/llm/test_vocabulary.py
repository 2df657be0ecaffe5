"""Vocabulary, markers and embedding table come out of every kind of folder and file as the model itself has them."""

import json
import shutil
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from unicode.llm import vocabulary as embedding
from unicode.llm.vocabulary import (
    BYTE,
    NAMES,
    NEAR_ZERO,
    NO_TOKEN,
    REPEATED,
    SPECIAL,
    UNUSED,
    Markers,
    Vocabulary,
    choose_markers,
    find_model,
    first_line,
    is_raw_byte,
    load_embedding,
    read_rows,
    read_vocabulary,
    repeated_rows,
    spells_bytes,
    table_name,
)


def vocabulary(*tokens: str, **marked: set[int]) -> Vocabulary:
    return Vocabulary(dict(enumerate(tokens)), {reason: frozenset(ids) for reason, ids in marked.items()})


def test_sentencepiece_spelling():
    unfit = vocabulary("<unk>", "<s>", "<0x0A>", "<0xFF>", "▁", "▁red", "é", "Ġ", "a", "▁▁", **{SPECIAL: {0, 1}}).unfit()
    assert unfit == {SPECIAL: [0, 1], BYTE: [2, 3, 4], UNUSED: []}


def test_byte_level_spelling():
    unfit = vocabulary("!", "~", "a", "Ġ", "Ċ", "é", "Ġred", "éĠ").unfit()
    assert unfit == {SPECIAL: [], BYTE: [3, 4, 5], UNUSED: []}


def test_spelling_is_told_by_the_space():
    assert spells_bytes(["Ġ", "a"])
    assert not spells_bytes(["Ġ", "▁"])
    assert not spells_bytes(["a"])


@pytest.mark.parametrize(
    "token", ["<unused12>", "[unused3]", "<|reserved_special_token_5|>", "<reserved_7>", "<extra_id_0>", "<|pad|>", "madeupword0001"]
)
def test_reserved_names(token):
    assert vocabulary(token, "red").unfit()[UNUSED] == [0]


@pytest.mark.parametrize("token", ["unused", "reserved", "padding", "[", "<a>", "</p>"])
def test_ordinary_words_stay(token):
    assert not any(vocabulary(token).unfit().values())


def test_an_id_appears_under_its_first_reason_only():
    unfit = vocabulary("<0x00>", "<unused0>", **{SPECIAL: {0}, BYTE: {1}}).unfit()
    assert unfit == {SPECIAL: [0], BYTE: [1], UNUSED: []}


@pytest.mark.parametrize("token", ["", " ", "\n", "<0x41>"])
def test_white_space_and_fallback_bytes_in_any_spelling(token):
    assert is_raw_byte(token, byte_level=False)


def test_folder_without_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="no tokenizer that opens"):
        read_vocabulary(tmp_path)


def test_first_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 999))) == 160


def own_rows(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight.detach()


def test_rows_and_reasons(tiny_llama):
    table = load_embedding(tiny_llama)
    assert table.model == "tiny-llama"
    assert table.rows.dtype == torch.float32
    assert torch.equal(table.rows, own_rows(tiny_llama))
    assert table.excluded[SPECIAL] == [0, 1, 2, 3, 49]
    assert [table.tokens[index] for index in table.excluded[BYTE]] == ["Ġ"]
    assert table.excluded[UNUSED] == []
    assert table.excluded[NO_TOKEN] == list(range(50, 60))
    assert table.excluded[NEAR_ZERO] == [20, 21]
    assert table.excluded[REPEATED] == [30, 31]
    ids = table.excluded_ids()
    assert ids.dtype == torch.long
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert len(ids) == 20


@pytest.mark.parametrize("kind", ["sharded", "bin", "bfloat16", "own names"])
def test_every_layout_of_a_folder(kind, tiny_llama, tmp_path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    weights, expected = load_file(folder / "model.safetensors"), own_rows(tiny_llama)
    if kind == "sharded":
        AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder, max_shard_size="20KB")
        (folder / "model.safetensors").unlink()
        assert len(list(folder.glob("*.safetensors"))) > 1
    elif kind == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif kind == "bfloat16":
        save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
        expected = expected.bfloat16().float()
    else:
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=8)).save_pretrained(folder)
        expected = own_rows(folder)
    assert torch.equal(read_rows(folder), expected)


def test_the_whole_model_is_asked_when_the_name_is_unknown(tiny_llama, monkeypatch):
    monkeypatch.setattr(embedding, "TABLE_NAMES", ("no such name",))
    assert torch.equal(read_rows(tiny_llama), own_rows(tiny_llama))


def test_table_name():
    assert table_name(["model.layers.0.mlp.weight", "model.embed_tokens.weight", "lm_head.weight"]) == "model.embed_tokens.weight"
    assert table_name(["wte.weight", "wpe.weight"]) == "wte.weight"
    assert table_name(["model.embed_tokens.weight", "model.layers.61.embed_tokens.weight"]) == "model.embed_tokens.weight"
    assert table_name(["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]) is None
    assert table_name(["model.not_embed_tokens.weight"]) is None


@pytest.mark.parametrize("quantization", [None, gguf.GGMLQuantizationType.Q8_0])
def test_gguf(quantization, tiny_llama, tmp_path):
    rows, path = own_rows(tiny_llama), tmp_path / "folder" / "tiny-q8.gguf"
    path.parent.mkdir()
    tokens = ["<unk>", "<s>", "<0x0A>", "▁", "▁red", "▁circle", "<spare>", "blue", *(f"word{index}" for index in range(8, 60))]
    types = [2, 3, 6, 1, 1, 1, 5, 1, *[1] * 51, 4]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if quantization is None:
        writer.add_tensor("token_embd.weight", rows.numpy())
    else:
        writer.add_tensor("token_embd.weight", gguf.quantize(rows.numpy(), quantization), raw_dtype=quantization)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    table = load_embedding(path.parent)
    assert table.model == "tiny-q8"
    torch.testing.assert_close(table.rows, rows, rtol=0, atol=0 if quantization is None else 1e-3)
    assert table.excluded[SPECIAL] == [0, 1, 59]
    assert table.excluded[BYTE] == [2, 3]
    assert table.excluded[UNUSED] == [6]
    assert table.excluded[NO_TOKEN] == []


def test_repeated_rows_are_found_exactly():
    rows = torch.randn(10_000, 8, generator=torch.Generator().manual_seed(0))
    rows[9_999] = rows[3]
    rows[17] = rows[3]
    rows[100] = rows[101] + 1e-7
    assert repeated_rows(rows) == [3, 17, 9_999]


def test_bad_input(tiny_llama, tmp_path):
    with pytest.raises(FileNotFoundError, match="hf download"):
        find_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no language model"):
        find_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="LoRA adapter"):
        find_model(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(ValueError, match="not a GGUF file"):
        load_embedding(tmp_path / "broken.gguf")
    with pytest.raises(FileNotFoundError, match="no GGUF file"):
        load_embedding(tmp_path / "absent.gguf")


def test_damaged_weights(tiny_llama, tmp_path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_embedding(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": "part-1.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="not complete"):
        load_embedding(folder)
    rows = own_rows(tiny_llama).clone()
    rows[5, 5] = float("nan")
    save_file({"model.embed_tokens.weight": rows}, folder / "model.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="not finite"):
        load_embedding(folder)


def test_reserved_tokens_come_first_then_new_ones(byte_level):
    tokenizer = deepcopy(byte_level)
    size = len(tokenizer)
    markers = choose_markers(tokenizer, table_rows=size)
    assert markers.image_start == tokenizer.convert_tokens_to_ids("<|reserved_0|>")
    assert markers.ids()[1:] == markers.added == (size, size + 1, size + 2)
    assert tokenizer.convert_ids_to_tokens(size) == "<image_end>"
    assert tokenizer.convert_tokens_to_ids("<|fim_pad|>") not in markers.ids()


def test_the_same_again_for_a_tokenizer_that_was_saved(byte_level, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = deepcopy(byte_level)
    markers = choose_markers(tokenizer, table_rows=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert choose_markers(again, table_rows=len(byte_level)) == markers
    assert choose_markers(again, table_rows=len(again)).added == ()
    assert len(again) == len(tokenizer)


def test_names_of_the_vocabulary_win(legacy):
    tokenizer = deepcopy(legacy)
    tokenizer.add_tokens(["<reserved_7>", *NAMES], special_tokens=True)
    markers = choose_markers(tokenizer, table_rows=len(tokenizer))
    assert tokenizer.convert_ids_to_tokens(list(markers.ids())) == list(NAMES)
    assert not markers.added


def test_rows_that_a_padded_table_already_has_are_not_added(legacy):
    tokenizer = deepcopy(legacy)
    size = len(tokenizer)
    markers = choose_markers(tokenizer, table_rows=size + 3)
    assert markers.ids() == (size, size + 1, size + 2, size + 3)
    assert markers.added == (size + 3,)


def test_tokens_of_the_chat_template_are_not_taken(byte_level):
    tokenizer = deepcopy(byte_level)
    tokenizer.chat_template += "<|reserved_0|>"
    assert choose_markers(tokenizer, table_rows=len(tokenizer)).image_start >= len(byte_level)


def test_there_and_back():
    markers = Markers(3, 4, 5, 6, added=(6,))
    assert Markers.from_dict(asdict(markers)) == markers
    with pytest.raises(ValueError, match="markers have the keys"):
        Markers.from_dict({"image_start": 3})
    with pytest.raises(ValueError, match="four different"):
        Markers(3, 3, 5, 6)
