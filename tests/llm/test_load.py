"""Models from disk: what was saved is what is loaded, merged or not, and parts that do not belong together are refused."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import unicode
from unicode.llm.card import read_card, write_card
from unicode.llm.load import open_merged, open_model
from unicode.llm.lora import LoraSettings, add_lora_
from unicode.llm.model import fit_embeddings_, open_base, table_rows
from unicode.llm.vocabulary import choose_markers
from unicode.run.merge_lora import main as merge
from unicode.tokenizer.load import load_tokenizer


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied, markers added"])
def run(make_tuned, request):
    return make_tuned(tied=request.param)


@pytest.fixture
def copy(tuned, tmp_path) -> Path:
    """A run folder that a test may change."""
    shutil.copytree(tuned.run, tmp_path / "run")
    return tmp_path / "run"


def logits_of(lm) -> torch.Tensor:
    ids = torch.arange(3, 63).view(2, 30)
    with torch.no_grad():
        return lm(input_ids=ids).logits


def change_card(folder: Path, **changes) -> None:
    write_card(folder, replace(read_card(folder), **changes))


def test_what_was_saved_is_what_is_loaded(run, tmp_path):
    from peft import PeftModel

    model, text = open_base(run.base)
    fit_embeddings_(model, choose_markers(text, table_rows=table_rows(model)))
    expected = PeftModel.from_pretrained(model, str(run.run)).eval()
    found = open_model(run.run, device="cpu")
    torch.testing.assert_close(logits_of(found.lm), logits_of(expected), atol=1e-5, rtol=0)
    assert logits_of(found.lm).shape[-1] == (140 if read_card(run.run).markers.added == () else 144)
    plain = open_model(run.base, device="cpu")
    assert not torch.allclose(logits_of(plain.lm)[..., :140], logits_of(found.lm)[..., :140], atol=1e-3), "the adapter does nothing"


def test_a_merged_model_is_a_plain_one_with_the_same_logits(run, tmp_path):
    expected = logits_of(open_model(run.run, device="cpu").lm)
    assert merge([str(run.run), str(tmp_path / "merged"), "--dry-run"]) == 0
    assert not (tmp_path / "merged").exists()
    assert merge([str(run.run), str(tmp_path / "merged")]) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits_of(plain), expected, atol=1e-4, rtol=0)
    ours = open_model(tmp_path / "merged", device="cpu")
    torch.testing.assert_close(logits_of(ours.lm), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(open_model(run.run, device="cpu", merge=True).lm), expected, atol=1e-4, rtol=0)
    assert ours.card.kind == "full" and ours.markers == open_model(run.run, device="cpu").markers
    base = AutoModelForCausalLM.from_pretrained(run.base)
    others = [index for index in range(140) if index not in ours.markers.ids()]
    assert torch.equal(plain.get_input_embeddings().weight[others], base.get_input_embeddings().weight[others])
    assert torch.equal(plain.get_output_embeddings().weight[others], base.get_output_embeddings().weight[others])
    assert merge([str(run.run), str(tmp_path / "merged")]) == 2, "a model is there already"
    assert merge([str(run.run), str(tmp_path / "merged"), "--overwrite"]) == 0


def test_merging_keeps_the_dtype_of_the_base_and_refuses_a_model_without_adapter(tuned, tmp_path, capsys):
    assert open_merged(tuned.run, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert merge([str(tuned.run), str(tmp_path / "merged")]) == 0
    assert merge([str(tmp_path / "merged"), str(tmp_path / "again")]) == 2
    assert "holds no adapter" in capsys.readouterr().err
    assert merge([str(tuned.run), str(tuned.run)]) == 2


def test_the_generation_config_of_a_base_is_reset(tuned, tmp_path):
    shutil.copytree(tuned.base, tmp_path / "base")
    GenerationConfig(do_sample=True, temperature=0.3, repetition_penalty=1.5).save_pretrained(tmp_path / "base")
    model = open_model(tuned.run, base=str(tmp_path / "base"), device="cpu")
    for part in (model.lm, model.lm.get_base_model()):
        assert part.generation_config.repetition_penalty in (None, 1.0)
        assert not part.generation_config.do_sample


def test_the_image_tokenizer_is_opened_when_needed_and_must_be_the_right_one(tuned, make_tuned, copy, tmp_path):
    model = open_model(tuned.run, device="cpu")
    tokenizer = load_tokenizer(tuned.image_tokenizer)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    assert torch.equal(model.image_ids(images), tokenizer.to_ids(tokenizer.encode(images)))
    assert model.images.fingerprint == tokenizer.fingerprint

    other = tmp_path / "other"
    with torch.no_grad():
        tokenizer.decoder.conv_out.weight.add_(1.0)
    tokenizer.__dict__.pop("fingerprint", None)
    tokenizer.save_pretrained(other)
    both = f"{model.card.fingerprint}.*{load_tokenizer(other).fingerprint}"
    with pytest.raises(ValueError, match=both):
        _ = open_model(tuned.run, device="cpu", image_tokenizer=str(other)).images
    layout = replace(model.card.layout, order="rows")
    change_card(copy, layout=layout)
    with pytest.raises(ValueError, match=r"order 'rows'.*order 'nested'"):
        _ = open_model(copy, device="cpu").images
    change_card(copy, image_tokenizer={"path": "nowhere", "fingerprint": model.card.fingerprint})
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--image-tokenizer"):
        _ = open_model(copy, device="cpu").images
    assert open_model(copy, device="cpu", image_tokenizer=str(tuned.image_tokenizer)).tokenizer_path == str(tuned.image_tokenizer)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tuned):
    model = open_model(tuned.base, device="cpu", image_tokenizer=str(tuned.image_tokenizer))
    assert model.layout == model.images.layout
    model.__dict__.pop("images")
    model.vocab_size = 12
    with pytest.raises(ValueError, match=r"only|12 tokens"):
        _ = model.images


def test_an_adapter_of_another_base_is_refused(tuned, make_tuned):
    other = make_tuned(tied=False)
    with pytest.raises(ValueError, match=f"{read_card(tuned.run).base_fingerprint}.*--base"):
        open_model(tuned.run, base=str(other.base), device="cpu")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--base"):
        open_model(tuned.run, base="nowhere", device="cpu")


def test_a_base_is_found_beside_the_run_folder_too(tuned, copy):
    shutil.copytree(tuned.base, copy.parent / "base")
    change_card(copy, base="../base")
    assert open_model(copy, device="cpu").card.base == "../base"


def test_incomplete_and_damaged_folders_are_named(tuned, copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_model("nowhere", device="cpu")
    (tmp_path / "running" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="not ended"):
        open_model(tmp_path / "running", device="cpu")
    weights = copy / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{copy}"):
        open_model(copy, device="cpu")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        open_model(copy, device="cpu")
    (copy / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="start its training again"):
        open_model(copy, device="cpu")
    (copy / "unicode.json").unlink()
    shutil.copy(tuned.run / "adapter_config.json", copy)
    with pytest.raises(ValueError, match=r"without unicode\.json"):
        open_model(copy, device="cpu")
    with pytest.raises(ValueError, match="auto, cpu"):
        open_model(tuned.run, device="abacus")


def test_markers_beyond_the_table_are_refused(tuned, copy):
    markers = {**asdict(read_card(copy).markers), "image_end": 500}
    shutil.copytree(tuned.base, copy, dirs_exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (copy / name).unlink()
    card = json.loads((copy / "unicode.json").read_text())
    (copy / "unicode.json").write_text(json.dumps({**card, "kind": "full", "markers": markers}))
    with pytest.raises(ValueError, match="500"):
        open_model(copy, device="cpu")


def test_fingerprints_tell_trained_models_apart(tuned, copy):
    first = open_model(tuned.run, device="cpu").fingerprint
    assert open_model(copy, device="cpu").fingerprint == first
    base, text = open_base(tuned.base)
    other = add_lora_(base, LoraSettings(r=4, alpha=8.0), choose_markers(text, table_rows=140))
    other.save_pretrained(copy, save_embedding_layers=False)
    assert open_model(copy, device="cpu").fingerprint != first


def test_a_plain_model_answers_text_without_a_card(tuned):
    model = open_model(tuned.base, device="cpu")
    assert model.layout is None and model.template.name == "vicuna_v1"
    with pytest.raises(ValueError, match="--image-tokenizer"):
        _ = model.images


def test_load_model_is_public(tuned):
    assistant = unicode.load_model(tuned.run, device="cpu")
    assert assistant.model.fingerprint == open_model(tuned.run, device="cpu").fingerprint
    assert isinstance(assistant.answer("How many?", [np.arange(20) + 30], max_new_tokens=4), str)
    with pytest.raises(AttributeError):
        _ = unicode.load_nothing
