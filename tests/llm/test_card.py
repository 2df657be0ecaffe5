"""Cards go there and back, and every mismatch is named with both sides."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from unicode.ids.layout import Layout
from unicode.llm.card import Card, check_base, check_tokenizer, fingerprint_base, read_card, write_card
from unicode.llm.vocabulary import Markers

LAYOUT = Layout("hierarchical", ((2, 2), (4, 4)))


def make_card(**changes) -> Card:
    values = {
        "kind": "lora",
        "base": "models/vicuna",
        "base_fingerprint": "0" * 16,
        "template": "vicuna_v1",
        "layout": LAYOUT,
        "image_tokenizer": {"path": "outputs/hqvae", "fingerprint": "a" * 16},
        "markers": Markers(1, 2, 3, 4, added=(4,)),
        "max_length": 512,
        "config": {"lora": {"r": 128}},
    }
    return Card(**{**values, **changes})


def test_there_and_back(tmp_path):
    card = make_card()
    write_card(tmp_path, card)
    assert read_card(tmp_path) == card
    assert json.loads((tmp_path / "unicode.json").read_text())["format"] == "unicode-llm-1"
    assert (card.layout, card.markers, card.fingerprint) == (LAYOUT, Markers(1, 2, 3, 4, added=(4,)), "a" * 16)
    bare = make_card(layout=None, image_tokenizer=None, markers=None)
    assert (bare.layout, bare.markers, bare.fingerprint) == (None, None, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "format is 'list', expected 'unicode-llm-1'"),
        ('{"format": "unicode-llm-9"}', "format is 'unicode-llm-9'"),
        ('{"format": "unicode-llm-1", "kind": "lora", "colour": 1}', r"unknown keys .'colour'.; known: "),
        ('{"format": "unicode-llm-1", "layout": {"kind": "hierarchical"}}', "a layout has the keys"),
        ('{"format": "unicode-llm-1", "markers": {}}', "markers have the keys"),
        ('{"format": "unicode-llm-1", "kind": "lora"}', "missing 3 required"),
    ],
)
def test_damaged_cards_are_refused(tmp_path, content, message):
    (tmp_path / "unicode.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_card(tmp_path)


def test_folders_without_a_card(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no unicode.json; expected the run folder of a model"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "qlora"}, "kind is 'qlora'; known: lora, full, llava"),
        ({"input_mode": "both"}, "input_mode is 'both'; known: ids, sum"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_card(**changes)


def test_base_models_differ_by_table_vocabulary_and_config(tiny_llama, tmp_path):
    first = fingerprint_base(tiny_llama)
    assert len(first) == 16 and int(first, 16) >= 0
    copies = [shutil.copytree(tiny_llama, tmp_path / str(number)) for number in range(4)]
    assert fingerprint_base(copies[0]) == first
    weights = load_file(copies[1] / "model.safetensors")
    weights["model.embed_tokens.weight"][7, 3] += 1e-3
    save_file(weights, copies[1] / "model.safetensors", {"format": "pt"})
    vocabulary = json.loads((copies[2] / "tokenizer.json").read_text())
    vocabulary["added_tokens"][-1]["content"] = "<picture>"
    (copies[2] / "tokenizer.json").write_text(json.dumps(vocabulary))
    config = json.loads((copies[3] / "config.json").read_text())
    (copies[3] / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert len({first, *map(fingerprint_base, copies)}) == 4
    (copies[0] / "config.json").write_text(json.dumps({**config, "transformers_version": "1", "dtype": "bfloat16"}))
    assert fingerprint_base(copies[0]) == first, "who wrote a config does not matter"
    check_base(make_card(base_fingerprint=first), tiny_llama)
    with pytest.raises(ValueError, match=rf"trained on models/vicuna .0{{16}}., and .* is {first}; name its base model with --base"):
        check_base(make_card(), tiny_llama)


def test_image_tokenizers_are_checked():
    card = make_card()
    check_tokenizer(card, fingerprint="a" * 16, layout=LAYOUT)
    with pytest.raises(ValueError, match=r"outputs/hqvae .a{16}., and other is b{16}; name the right one with --image-tokenizer"):
        check_tokenizer(card, fingerprint="b" * 16, layout=LAYOUT, path="other")
    with pytest.raises(ValueError, match=r"order 'nested', and the image tokenizer makes .* order 'rows'"):
        check_tokenizer(card, fingerprint="a" * 16, layout=Layout("hierarchical", ((2, 2), (4, 4)), order="rows"))


def test_gguf_files_have_fingerprints(tmp_path):
    gguf = pytest.importorskip("gguf")
    prints = []
    for number in range(2):
        path = tmp_path / f"{number}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_token_list(["<unk>", "a", "b"])
        writer.add_token_types([2, 1, 1])
        writer.add_tensor("token_embd.weight", torch.full((3, 32), 0.5 + number).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        prints.append(fingerprint_base(path))
    assert prints[0] != prints[1] and fingerprint_base(tmp_path / "0.gguf") == prints[0]
