"""Opening base models: attention, types, added rows, and what is wrong with a folder."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from unicode.llm.llava import VisionSettings, build_tower
from unicode.llm.model import choose_attention, context_length, fit_embeddings_, open_base, open_description, table_rows
from unicode.llm.vocabulary import Markers, load_embedding


def test_a_folder_gives_model_and_tokenizer(tiny_llama: Path) -> None:
    model, text = open_base(tiny_llama, device="cpu")
    assert len(text) == 50
    assert (table_rows(model), context_length(model)) == (60, 2048)
    assert table_rows(model.config) == 60
    assert model.dtype == torch.float32
    assert not model.training
    assert model.config._attn_implementation == "eager"
    assert open_base(tiny_llama, dtype="bfloat16")[0].dtype == torch.bfloat16


def test_attention_suits_size_and_device() -> None:
    small, large = LlamaConfig(hidden_size=128), LlamaConfig(hidden_size=4096)
    assert choose_attention("auto", small, "cpu") == "eager"
    assert choose_attention("auto", small, "cuda") == "sdpa"
    assert choose_attention("auto", large, "cpu") == "sdpa"
    assert choose_attention("flex_attention", small, "cpu") == "flex_attention"


@pytest.mark.parametrize("tied", [True, False])
def test_rows_for_new_markers_are_the_same_in_every_process(tiny_llama: Path, tied: bool) -> None:
    models = []
    for seed in range(2):
        model, _ = open_base(tiny_llama)
        if not tied:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(torch.arange(60.0 * 32).view(60, 32))
        before = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
        torch.manual_seed(seed)
        fit_embeddings_(model, Markers(3, 60, 61, 62, added=(60, 61, 62)))
        models.append(model)
        for table, rows in zip((model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True):
            assert table.weight.shape == (63, 32)
            assert torch.equal(table.weight[:60], rows)
            assert torch.allclose(table.weight[60:], rows.mean(0).expand(3, 32))
    assert torch.equal(models[0].get_output_embeddings().weight, models[1].get_output_embeddings().weight)
    assert table_rows(models[0]) == 63


def test_a_table_that_is_large_enough_stays(tiny_llama: Path) -> None:
    model, _ = open_base(tiny_llama)
    before = model.get_input_embeddings().weight
    fit_embeddings_(model, Markers(3, 50, 51, 52))
    assert model.get_input_embeddings().weight is before


@pytest.mark.parametrize(
    ("removed", "message"),
    [("model.safetensors", "holds no weights"), ("tokenizer.json", "no tokenizer that opens"), ("config.json", "no language model")],
)
def test_an_incomplete_folder_is_named(tiny_llama: Path, tmp_path: Path, removed: str, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / removed).unlink()
    if removed == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_description(folder)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_base(folder)


def test_damaged_weights_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        open_base(folder)


def test_what_is_not_installed_is_named(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        open_base(tiny_llama, quantize="nf4")
    with pytest.raises(ValueError, match="flash-attn"):
        open_base(tiny_llama, attention="flash_attention_2")
    with pytest.raises(ValueError, match="dtype 'int7'"):
        open_base(tiny_llama, dtype="int7")


def test_a_damaged_gguf_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from unicode.llm.vocabulary import find_model

    (tmp_path / "model.gguf").write_bytes(b"no model")
    assert find_model(tmp_path) == tmp_path / "model.gguf"
    with pytest.raises(ValueError, match=r"model\.gguf"):
        open_base(tmp_path)


def test_no_code_of_a_folder_is_run(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "custom.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    for name, classes in (
        ("config.json", {"AutoConfig": "custom.Config", "AutoModel": "custom.Model", "AutoModelForCausalLM": "custom.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["custom.Tokenizer", "custom.Tokenizer"]}),
    ):
        content = json.loads((folder / name).read_text()) | {"auto_map": classes, "model_type": "unknown"}
        (folder / name).write_text(json.dumps(content | {"tokenizer_class": "UnknownTokenizer"}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 60)
    for open_folder in (open_base, open_description, load_embedding, lambda path: build_tower(VisionSettings(path=str(path)))):
        with pytest.raises(ValueError):
            open_folder(folder)
    assert not (tmp_path / "ran").exists()


def test_every_folder_is_opened_without_network_and_code() -> None:
    """Each call names both options, whatever the defaults of transformers are."""
    found = 0
    for path in (Path(__file__).parents[2] / "unicode").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)):
                continue
            owner, options = call.func.value.id, {word.arg: getattr(word.value, "value", None) for word in call.keywords}
            if call.func.attr in ("from_pretrained", "from_config") and owner.startswith(("Auto", "Peft", "CLIP", "kind")):
                found += 1
                assert call.func.attr == "from_config" or options.get("local_files_only") is True, f"{path}: {ast.unparse(call)}"
                assert owner.startswith("Peft") or options.get("trust_remote_code") is False, f"{path}: {ast.unparse(call)}"
    assert found == 3, "open_pretrained, the adapters of peft, and a model without weights"
