"""The embedded default language model: its text, its tokenizer, its training, and the folder it leaves."""

import os
from itertools import islice

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from unicode.common.files import read_json, write_json
from unicode.llm.base_model import (
    SPECIAL_TOKENS,
    BaseConfig,
    base_text,
    build_model,
    is_made,
    make_base_model,
    packed_rows,
    pretrain_,
    train_tokenizer,
)
from unicode.llm.vocabulary import load_embedding

SIZES = {"vocab_size": 140, "width": 16, "hidden": 24, "layers": 1, "heads": 2, "context": 64}
TINY = BaseConfig(**SIZES, tokenizer_lines=200, row_tokens=32, batch_size=4, steps=30, warmup_steps=3, lr=0.02)
SENTENCES = ["A red circle is at the top left.", 'Question: "How many?" Answer: 2.', "Draw ~ this\nplease!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    make_base_model(folder, TINY)
    return folder


def test_text_depends_on_the_seed_alone():
    first, second, other = (list(islice(base_text(instructions=0.5, seed=seed), 50)) for seed in (0, 0, 1))
    assert first == second != other
    assert not any("{" in line for line in first)


def test_the_folder_opens_with_the_auto_classes(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for sentence in SENTENCES:
        ids = tokenizer(sentence)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == 1
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == sentence
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer("<image_start>", add_special_tokens=False)["input_ids"] == [SPECIAL_TOKENS.index("<image_start>")]
    assert tokenizer("é", add_special_tokens=False)["input_ids"].count(tokenizer.unk_token_id) > 0


def test_special_tokens_are_no_image_ids(folder):
    embedding = load_embedding(folder)
    excluded = embedding.excluded_ids().tolist()
    assert excluded[: len(SPECIAL_TOKENS)] == list(range(len(SPECIAL_TOKENS)))
    assert {embedding.tokens[index] for index in excluded[len(SPECIAL_TOKENS) :]} == {"Ġ", "Ċ"}


def test_training_lowers_the_loss_and_repeats_exactly(folder, tmp_path):
    loss = make_base_model(tmp_path / "again", TINY)
    assert loss == read_json(folder / "base.json")["loss"]
    assert loss < torch.tensor(140.0).log() - 0.5
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_whole_folder_is_recognized(folder, tmp_path):
    assert is_made(folder, TINY)
    assert not is_made(tmp_path / "nothing", TINY)
    with pytest.raises(ValueError, match=r"other settings \(.*steps 30, asked for 31"):
        is_made(folder, BaseConfig(**vars(TINY) | {"steps": 31}))
    with pytest.raises(ValueError, match="holds no base model"):
        is_made(tmp_path, TINY)


def test_nothing_remains_of_a_stopped_run(tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("unicode.llm.base_model.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        make_base_model(tmp_path / "model", BaseConfig(**vars(TINY) | {"steps": 1}))
    assert not list(tmp_path.iterdir())


def test_the_folder_follows_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        make_base_model(tmp_path / "model", BaseConfig(**vars(TINY) | {"steps": 1}))
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o700


def test_full_disk(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fail)
    with pytest.raises(OSError, match=r"could not write .*No space left.*model"):
        make_base_model(tmp_path / "model", BaseConfig(**vars(TINY) | {"steps": 1}))
    assert not list(tmp_path.iterdir())


def test_a_model_of_any_text(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a red apple. Question: What is it? Answer: apple.\nein grüner Apfel\n\n", encoding="utf-8")
    lines = list(islice(base_text(instructions=0.3, seed=0, text=str(text)), 60))
    assert lines == list(islice(base_text(instructions=0.3, seed=0, text=str(text)), 60))
    assert {"ein grüner Apfel", "a red apple. Question: What is it? Answer: apple."} < set(lines)
    assert not any("Question" in line for line in lines if "red apple" in line and not line.startswith("a red"))
    config = BaseConfig(**vars(TINY) | {"steps": 1, "vocab_size": 300, "text": str(text)})
    make_base_model(tmp_path / "model", config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) <= 300 and tokenizer.decode(tokenizer("grün é")["input_ids"], skip_special_tokens=True) == "grün é"
    assert is_made(tmp_path / "model", config)
    text.write_text("another line\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"other settings \(text "):
        is_made(tmp_path / "model", config)
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        make_base_model(tmp_path / "other", BaseConfig(**vars(TINY) | {"text": str(tmp_path / "none.txt")}))


def test_a_folder_made_before_there_were_files_of_text(folder):
    summary = read_json(folder / "base.json")
    old = {name: value for name, value in summary["settings"].items() if name != "text"}
    write_json(folder / "base.json", summary | {"settings": old})
    assert is_made(folder, TINY)


def test_rows_hold_every_token_once():
    tokenizer = train_tokenizer(SENTENCES, vocab_size=120)
    rows = list(packed_rows(tokenizer, SENTENCES, row_tokens=8))
    expected = [index for line in SENTENCES for index in [*tokenizer(line)["input_ids"], tokenizer.eos_token_id]]
    assert torch.cat(rows).tolist() == expected[: 8 * len(rows)]
    assert len(expected) - 8 * len(rows) < 8


def test_training_runs_on_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr("unicode.llm.base_model.choose_device", lambda device: torch.device("meta"))
    tokenizer = train_tokenizer(SENTENCES, vocab_size=120)
    config = BaseConfig(**vars(TINY) | {"steps": 1})
    model = build_model(config, tokenizer)
    with pytest.raises(RuntimeError, match="meta"):  # a number cannot be read from this device, so the loss was computed there
        pretrain_(model, packed_rows(tokenizer, SENTENCES * 50, row_tokens=8), config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 50), ("width", 17), ("steps", 0)])
def test_nonsense_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        BaseConfig(**vars(TINY) | {name: value})
