"""Sharing through a hub: what is pushed to a stand-in of one and pulled from it is the same to the byte, at a known commit."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, HubServer, hub_server
from huggingface_hub import constants

from unicode import load_model, load_tokenizer
from unicode.common.hub import is_hub_name
from unicode.llm.card import fingerprint_base, read_card
from unicode.llm.model import open_base

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    with hub_server() as server:
        known = {"ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        known["HUGGINGFACE_CO_URL_TEMPLATE"] = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in known.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put(hub: HubServer, name: str, folder: Path) -> str:
    return hub.commit(name, content(folder))


def test_a_tokenizer_goes_there_and_back_at_a_pinned_commit(hub, tuned, tmp_path):
    first = load_tokenizer(tuned.image_tokenizer)
    pinned = first.push_to_hub("me/pictures", license_name="mit")
    other = load_tokenizer(tuned.image_tokenizer)
    with torch.no_grad():
        other.post_quant_conv.weight.mul_(2)
    latest = other.push_to_hub("me/pictures")
    assert pinned != latest and pinned.startswith("me/pictures@")
    found, again = load_tokenizer(pinned), load_tokenizer("me/pictures")
    assert (found.source, found.fingerprint) == (pinned, first.fingerprint)
    assert (again.source, again.fingerprint) == (latest, other.fingerprint)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(found.encode(images), first.encode(images))
    for tokenizer in (first, found):
        tokenizer.save_pretrained(tmp_path / "me" / "pictures", license_name="mit")
        assert content(tmp_path / "me" / "pictures") == content(found.folder)


def test_a_model_goes_there_and_back_with_its_image_tokenizer(hub, tuned, tmp_path):
    put(hub, "lab/base", tuned.base)
    model = load_model(tuned.run)
    assert not hub.requests, "local folders never ask"
    pushed = model.push_to_hub("me/model", base="lab/base", private=True)
    pulled = load_model("me/model")
    assert pulled.source == pushed and pulled.model.fingerprint == model.model.fingerprint
    assert pulled.model.card.base == "lab/base" and pulled.model.images.fingerprint == model.model.images.fingerprint
    assert pulled.answer("what is it?", max_new_tokens=8) == model.answer("what is it?", max_new_tokens=8)
    assert list(pulled.draw("a circle", seed=1).getdata()) == list(model.draw("a circle", seed=1).getdata())
    sent = content(pulled.folder)
    for name in ("adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert sent[name] == (tuned.run / name).read_bytes(), name
    assert not [name for name, text in sent.items() if str(tuned.run.parent).encode() in text], "paths of this machine"
    pulled.save_pretrained(tmp_path / "me" / "model")
    assert content(tmp_path / "me" / "model") == sent
    assert sent.keys() == hub.repositories["me/model"][-1][1].keys() - {".gitattributes"}


def test_another_base_model_is_refused(hub, tuned, make_tuned):
    put(hub, "lab/base", make_tuned(context=256).base)
    load_model(tuned.run).push_to_hub("me/model", base="lab/base")
    with pytest.raises(ValueError, match=r"the adapter was trained on lab/base \(\w{16}\), and .* is \w{16}; name its base model"):
        load_model("me/model")
    assert load_model("me/model", base=tuned.base).model.card.base == "lab/base"


def test_an_adapter_without_a_base_that_others_have_is_not_pushed(hub, tuned):
    with pytest.raises(ValueError, match=r"others do not have .*base, which .*run needs; name its repository with base='org/name'"):
        load_model(tuned.run).push_to_hub("me/model")
    assert not hub.repositories


def test_a_push_leaves_nothing_of_an_earlier_model(hub, tuned, tmp_path):
    from unicode.run.merge_lora import main

    put(hub, "lab/base", tuned.base)
    load_model(tuned.run).push_to_hub("me/model", base="lab/base")
    assert main([str(tuned.run), str(tmp_path / "merged")]) == 0
    merged = load_model(tmp_path / "merged")
    merged.push_to_hub("me/model")
    pulled = load_model("me/model")
    assert not (pulled.folder / "adapter_model.safetensors").exists() and pulled.model.fingerprint == merged.model.fingerprint
    card = read_card(pulled.folder)
    assert card.base == "base" and "merged_from" not in card.config


def test_names_of_a_hub_work_where_a_base_model_is_named(hub, tuned):
    put(hub, "lab/base", tuned.base)
    assert fingerprint_base("lab/base") == fingerprint_base(tuned.base)
    assert open_base("lab/base", device="cpu")[0].num_parameters() == open_base(tuned.base, device="cpu")[0].num_parameters()


def test_pickles_are_refused(hub, tuned, tmp_path):
    hub.commit("lab/pickles", {"config.json": b"{}", "pytorch_model.bin": b"cposix\nsystem\n", "model.pt": b"", "config.yaml": b"a: 1"})
    with pytest.raises(ValueError, match=r"lab/pickles has no safetensors files, and pickles, which can run code, are not downloaded"):
        load_model("lab/pickles")
    assert not [one for one in hub.requests if one.endswith((".bin", ".pt"))]
    shutil.copytree(tuned.run, tmp_path / "run")
    model = load_model(tmp_path / "run", base=tuned.base)
    (tmp_path / "run" / "mm_projector.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"mm_projector.bin: weights must be safetensors"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("me/nothing", TOKEN, r"no folder 'me/nothing' here, and http\S+ does not give or take me/nothing \(404\); check name"),
        ("me/nothing", "hf_wrong", r"take me/nothing \(401\); .* log in"),
        ("me/secret", "hf_wrong", r"take me/secret \(401\); .* log in"),
        ("me/secret@old", TOKEN, r"take me/secret@old \(404\); check name, revision"),
    ],
)
def test_what_is_not_there_is_one_sentence_with_the_remedy(hub, tuned, monkeypatch, name, token, message):
    put(hub, "me/secret", tuned.image_tokenizer)
    hub.private.add("me/secret")
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load_tokenizer(name)
    assert "\n" not in str(caught.value)


def test_a_refused_push_is_one_sentence(hub, tuned, monkeypatch):
    tokenizer = load_tokenizer(tuned.image_tokenizer)
    with pytest.raises(ValueError, match="'pictures' is no name of a repository; give org/name"):
        tokenizer.push_to_hub("pictures")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match=r"me/pictures was not pushed: http\S+ does not give or take me/pictures \(401\); .* log in"):
        tokenizer.push_to_hub("me/pictures")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"OfflineModeIsEnabled\); check name, revision, HF_ENDPOINT and HF_HUB_OFFLINE"):
        tokenizer.push_to_hub("me/pictures")


def test_the_cache_serves_without_a_network_and_folders_never_ask(hub, tuned, tmp_path, monkeypatch):
    put(hub, "me/pictures", tuned.image_tokenizer)
    source = load_tokenizer("me/pictures").source
    asked = len(hub.requests)
    assert load_tokenizer(source).source == source and len(hub.requests) == asked, "a commit in the cache needs no request"
    for name, value in (("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(constants, name, value)  # first no answer, then no request
        assert load_tokenizer("me/pictures").source == source
        with pytest.raises(FileNotFoundError, match=r"me/others \(LocalEntryNotFoundError\); .* run hf download where there is a network"):
            load_tokenizer("me/others")
    shutil.copytree(tuned.image_tokenizer, tmp_path / "me" / "pictures")
    assert load_tokenizer("me/pictures").source == "me/pictures" and len(hub.requests) == asked


def test_the_variables_of_the_environment_count(hub, tuned, tmp_path):
    put(hub, "me/pictures", tuned.image_tokenizer)
    known = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cold"), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    script = "from unicode.common.hub import find_folder; print(find_folder('me/pictures', otherwise='').name)"
    ran = subprocess.run([sys.executable, "-c", script], env=os.environ | known, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == hub.repositories["me/pictures"][-1][0]


def test_the_model_card_has_license_data_figures_and_use(hub, tuned, tmp_path):
    run = shutil.copytree(tuned.run, tmp_path / "run")
    (run / "README.md").write_text("---\nlicense: cc-by-4.0\nbase_model: /home\n---\n# Model\n[More Information Needed]\n")
    (run / "config.yaml").write_text("data:\n  files: [/data/scenes_train.json, /data/words.json]\n  stores: [ids/train]\n")
    (run / "summary.json").write_text(json.dumps({"steps": 400, "losses": {"loss_vqa": 0.25}}))
    value = {"value": 39.41234567, "unit": "dB", "protocol": "a | b"}
    (run / "metrics.json").write_text(json.dumps({"metrics": {"psnr": value, "rfid": {"value": None, "reason": "none"}}}))
    load_model(run, base=tuned.base).save_pretrained(tmp_path / "me" / "model", base="lab/base")
    text = (tmp_path / "me" / "model" / "README.md").read_text()
    wanted = ["license: cc-by-4.0", "base_model: lab/base", "| data | scenes_train.json words.json train |", '= load_model("me/model")']
    wanted += ["| psnr | 39.4123 dB | a \\| b |", "| steps | 400 | training |", "| loss_vqa | 0.25 | training |", "in order 'nested'"]
    assert not [line for line in wanted if line not in text], text
    assert "rfid" not in text and "/data" not in text and "[More" not in text
    (tmp_path / "me" / "model" / "README.md").write_text(text + "\nMy own words.\n")
    model = load_model(tmp_path / "me" / "model", base=tuned.base)
    model.save_pretrained(tmp_path / "you" / "copy", license_name="mit")
    again = (tmp_path / "you" / "copy" / "README.md").read_text()
    assert "My own words." in again and 'load_model("you/copy")' in again and "license: mit" in again
    with pytest.raises(ValueError, match=r"copy holds a model; give a new folder"):
        model.save_pretrained(tmp_path / "you" / "copy")


@pytest.mark.parametrize("text", ["org", "a/b/c", "./a", "../a", "/a/b", "a/..", "a--b/c", "a/b@", "~/a", "org/na me", "org/a@../../b"])
def test_paths_are_no_names_of_a_hub(text):
    assert not is_hub_name(text)
