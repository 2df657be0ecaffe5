"""The sampling that a model is good with: chosen on prompts, kept in its card, the default of everything that draws."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from unicode.generate.chat import Chat, load_model
from unicode.generate.images import GenerationConfig, ImageSampler
from unicode.generate.interleaved import ChatSampler
from unicode.generate.sampling import Sampling, merge_sampling
from unicode.llm.card import read_card, write_card
from unicode.run import choose_sampling
from unicode.run.choose_sampling import main
from unicode.run.generate_images import main as generate
from unicode.run.merge_lora import main as merge

STORED = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "guidance": 1.5}


@pytest.fixture
def run(tuned, tmp_path):
    """A copy of a model's run folder whose card may be written."""
    return shutil.copytree(tuned.run, tmp_path / "run")


def test_a_given_value_wins():
    assert merge_sampling(None) == merge_sampling({}) == Sampling()
    assert merge_sampling(STORED, {"temperature": 0.5, "top_k": None}) == Sampling(0.5, guidance=1.5)
    assert merge_sampling(STORED, {"guidance": 2.0}, guided=False) == Sampling(0.0, guidance=2.0)
    assert merge_sampling({**STORED, "candidates": 4}, guided=False) == Sampling(0.0)
    assert merge_sampling({**STORED, "candidates": 4}) == Sampling(0.0, guidance=1.5, candidates=4)
    assert Sampling(0.0, guidance=1.5).values() == STORED and Sampling(candidates=4).values()["candidates"] == 4


@pytest.mark.parametrize("given", [{}, {"guidance": 2.0}, {"guidance": 2.0, "temperature": 0.7}, {"guidance": 2.0, "candidates": 3}])
def test_the_best_is_written_and_used(run, tmp_path, monkeypatch, given):
    """The measure is replaced: the models of the tests draw nothing that is right."""
    settings, tried = iter(range(12)), 12 // (4 if "guidance" in given else 1) // (3 if "temperature" in given else 1)
    monkeypatch.setattr(choose_sampling, "share_right", lambda *_: 100.0 - abs(next(settings) - 3 * (not given)))
    words = ["--model", str(run), "--prompts", "shapes:val", "--last", "2", "--device", "cpu"]
    assert main([*words, *(f"{name}={value}" for name, value in given.items())]) == 0
    card, sampling = read_card(run), {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "guidance": 1.5, **given}
    assert card.sampling == sampling and card.config["sampling"]["number"] == 2
    assert len(card.config["sampling"]["tried"]) == tried
    assistant = load_model(run, device="cpu")
    assert np.array_equal(assistant.draw("a red circle", seed=1), assistant.draw("a red circle", seed=1, **sampling))
    assert ImageSampler(assistant.model).sampling == Sampling(**sampling)
    assert ChatSampler(assistant.model).sampling == replace(Sampling(**sampling), guidance=1.0, candidates=1)
    chat = Chat(assistant.model, GenerationConfig(top_k=3), out=tmp_path, num_tokens=9, word_temperature=0)
    assert chat.drawer.sampling == replace(Sampling(**sampling), top_k=3)
    assert generate(["--model", str(run), "--prompts", "shapes:val", "--out", str(tmp_path / "drawn"), "--device", "cpu", "limit=2"]) == 0
    assert json.loads((tmp_path / "drawn" / "settings.json").read_text())["sampling"] == sampling


def test_a_merged_model_and_an_old_card(run, tmp_path):
    values = json.loads((run / "unicode.json").read_text())
    del values["sampling"]
    (run / "unicode.json").write_text(json.dumps(values))
    assert read_card(run).sampling is None
    write_card(run, replace(read_card(run), sampling=STORED))
    assert merge([str(run), str(tmp_path / "merged")]) == 0 and read_card(tmp_path / "merged").sampling == STORED
    with pytest.raises(ValueError, match=r"sampling has .'heat'.; known: temperature, top_k, top_p, guidance, candidates"):
        replace(read_card(run), sampling={"heat": 1.0})


def test_pictures_are_measured(run, tmp_path, capsys):
    words = ["--model", str(run), "--device", "cpu", "guidance=1", "temperature=0", "--prompts"]
    assert main([*words, "shapes:val", "--last", "3"]) == 0
    assert 0 <= read_card(run).config["sampling"]["tried"][0]["right"] <= 100
    (tmp_path / "prompts.txt").write_text("something\n")
    assert main([*words, str(tmp_path / "prompts.txt")]) == 2
    assert "nothing tells whether a picture is right; give --gallery FILE" in capsys.readouterr().err
