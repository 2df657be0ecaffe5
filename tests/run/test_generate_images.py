"""Pictures by command: prompts, completion, decompression, conversations; killed and gone on with; measured."""

import io
import json
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from warm import run_ranks, start

from unicode.generate.images import GenerationConfig
from unicode.images.dataset import DataConfig
from unicode.images.decode import to_float
from unicode.images.shapes import ShapesConfig, find_scene
from unicode.images.shapes_text import scene_caption
from unicode.llm.load import open_model
from unicode.run.chat import main as chat
from unicode.run.eval_generation import main as evaluate
from unicode.run.generate_images import find_pictures
from unicode.run.generate_images import main as generate


@pytest.fixture(params=["tuned", "tuned_cells"], ids=["ids", "cells"])
def model(request):
    """The folders of a model that draws id by id, or cell by cell."""
    return request.getfixturevalue(request.param)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_list_of_pictures_starts_from_the_folder_that_the_settings_name(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / "one.png")
    (tmp_path / "list.txt").write_text("one.png\n")
    config = GenerationConfig(data=DataConfig(root=str(tmp_path / "pictures")))
    dataset = find_pictures(str(tmp_path / "list.txt"), config, 16)
    assert [dataset.key(index) for index in range(len(dataset))] == ["one.png"]


def files(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_killed_in_the_middle_of_a_hundred_prompts(tuned, tmp_path, capsys):
    words = ["--model", str(tuned.run), "--prompts", "shapes:val", "--device", "cpu", "limit=100", "batch_size=8", "guidance=2"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    started = start("generate_images", *words, "--out", killed, log=tmp_path / "log")
    part = killed / "results.parts" / "00000.jsonl"
    while started.process.is_alive() and (not part.is_file() or part.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    os.kill(started.process.pid, signal.SIGSTOP)
    assert generate([*words, "--out", str(killed)]) == 2
    assert f"is in use: drawing by process {started.process.pid}" in capsys.readouterr().err
    started.process.kill()
    started.process.join()
    assert part.is_file() and not (killed / "results.jsonl").exists(), "the command was over before it was killed"
    assert generate([*words, "--out", str(killed)]) == 0
    assert generate([*words, "--out", str(whole)]) == 0
    assert files(killed) == files(whole) and len(files(whole)) == 102  # a contact sheet and a wall
    for one, other in zip(lines(killed), lines(whole), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    before = {path: path.stat().st_mtime_ns for path in (whole / "pictures").rglob("*.png")}
    assert generate([*words, "--out", str(whole)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "pictures").rglob("*.png")}
    assert generate([*words[:-1], "guidance=3", "--out", str(whole)]) == 2
    assert evaluate(["--pictures", str(whole), "--device", "cpu"]) == 0
    metrics = json.loads((whole / "metrics.json").read_text())["metrics"]
    assert 0 <= metrics["all"]["value"] <= 100 and metrics["shuffled_all"]["unit"] == "%" and metrics["clip_score"]["value"] is None


def test_two_ranks_share_the_pictures(model, tmp_path):
    words = ["--model", str(model.run), "--prompts", "shapes:val", "--device", "cpu", "limit=7", "batch_size=2"]
    run_ranks("generate_images", *words, "--out", tmp_path / "two", logs=tmp_path / "logs")
    assert generate([*words, "--out", str(tmp_path / "one")]) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert [line["id"] for line in lines(tmp_path / "two")] == [line["id"] for line in lines(tmp_path / "one")]


def test_bad_lines_do_not_stop_the_others(tuned, tmp_path, caplog):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "good", "prompt": "a bus"}\n{"id": "long", "prompt": "' + "red " * 500 + '"}\n{"id": "none", "prompt": ""}\n')
    words = ["--model", str(tuned.run), "--prompts", str(path), "--out", str(tmp_path / "out"), "--device", "cpu", "samples=2"]
    assert generate(words) == 0
    found = lines(tmp_path / "out")
    assert [line["id"] for line in found] == ["good", "good", "long", "long", "none", "none"]
    assert found[0]["file"] == "pictures/good_0.png" and found[1]["sample"] == 1 and found[0]["ids"] != found[1]["ids"]
    assert "prompts.jsonl, line 2: the prompt has" in found[2]["error"] and "line 3: the prompt is empty" in found[4]["error"]
    path.write_text('{"prompt": ""}\n')
    assert generate([*words[:5], str(tmp_path / "empty"), *words[6:]]) == 2


def test_completion_keeps_rows_and_decompression_is_measured(model, tmp_path):
    base = ["--model", str(model.run), "--device", "cpu", "limit=6"]
    assert generate([*base, "--complete", "shapes:val", "--keep", "1", "--out", str(tmp_path / "complete")]) == 0
    assert generate([*base, "--decompress", "shapes:val", "--out", str(tmp_path / "decompress")]) == 0
    opened = open_model(model.run, device="cpu")
    for line in lines(tmp_path / "complete"):
        scene = find_scene(ShapesConfig(image_size=16), line["id"])
        ids = opened.image_ids(to_float(torch.from_numpy(scene.pixels()))[None])[0].tolist()
        assert line["ids"][:10] == ids[:10] and line["given"] == 10 and line["prompt"] == scene_caption(scene)
        assert line["exact"] == np.mean([one == other for one, other in zip(line["ids"][10:], ids[10:], strict=True)])
        assert np.array_equal(np.asarray(Image.open(tmp_path / "complete" / line["reference"])), scene.pixels().transpose(1, 2, 0))
    first, again = lines(tmp_path / "decompress")[0], json.loads((tmp_path / "decompress" / "settings.json").read_text())
    assert 0 <= first["exact"] <= 1 and first["psnr"] > 0 and again["sampling"]["temperature"] == 0
    Image.new("RGB", (30, 20), (250, 0, 0)).save(tmp_path / "one.png")
    one = ["--complete", str(tmp_path / "one.png"), "--keep", "0", "--caption", "red", "--out", str(tmp_path / "one")]
    assert generate([*base, *one]) == 0
    assert lines(tmp_path / "one")[0]["id"] == "one.png" and lines(tmp_path / "one")[0]["prompt"] == "red"
    assert evaluate(["--pictures", str(tmp_path / "complete"), "--device", "cpu", "--dry-run"]) == 0


def test_conversations_become_a_page(model, tmp_path):
    Image.new("RGB", (20, 20), (0, 0, 250)).save(tmp_path / "blue.png")
    turns = [{"from": "human", "value": "<image>\nDraw it again."}, {"from": "gpt", "value": "Here."}]
    records = [{"id": "a/b", "image": "blue.png", "conversations": turns}, {"id": "lost", "image": "lost.png", "conversations": turns}]
    (tmp_path / "talk.json").write_text(json.dumps(records))
    words = ["--model", str(model.run), "--reference", str(tmp_path / "talk.json"), "--images", str(tmp_path), "--device", "cpu"]
    assert generate([*words, "--out", str(tmp_path / "out"), "--max-new-tokens", "40"]) == 0
    held, lost = [json.loads(line) for line in (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()]
    assert len(held["turns"]) == 2 and "lost.png" in lost["error"]
    assert "Here." in (tmp_path / "out" / "page.html").read_text() and "## a/b" in (tmp_path / "out" / "page.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to draw"),
        (["--prompts", "a.csv"], "no known format"),
        (["--prompts", "none.txt"], "no file of prompts"),
        (["--complete", "shapes:val", "--keep", "2"], "0 to 1 can be"),
        (["--prompts", "shapes:val", "guidance=-1"], "guidance is -1"),
        (["--prompts", "shapes:val", "guidence=1"], "did you mean 'guidance'"),
        (["--prompts", "shapes:val", "template=x{y}"], "only slot is {caption}"),
        (["--prompts", "shapes:val", "--image-tokenizer", "nowhere"], "nowhere"),
        (["--prompts", "shapes:val", "--complete", "x"], None),
    ],
)
def test_mistakes_end_in_one_line(tuned, tmp_path, capsys, words, message):
    arguments = ["--model", str(tuned.run), "--out", str(tmp_path / "out"), "--device", "cpu", *words]
    if message is None:
        with pytest.raises(SystemExit):
            generate(arguments)
        return
    assert generate(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_tokenizer_of_another_order_is_refused(tuned, tmp_path, capsys):
    other = tmp_path / "tokenizer"
    other.mkdir()
    config = json.loads((tuned.image_tokenizer / "config.json").read_text())
    config["tokenizer"]["order"] = "rows"
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").write_bytes((tuned.image_tokenizer / "model.safetensors").read_bytes())
    words = ["--model", str(tuned.run), "--prompts", "shapes:val", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert generate([*words, "--image-tokenizer", str(other)]) == 2
    assert "the right one with --image-tokenizer" in capsys.readouterr().err


def test_evaluation_needs_pictures(tmp_path, capsys):
    assert evaluate(["--pictures", str(tmp_path)]) == 2
    assert "has no results.jsonl" in capsys.readouterr().err


def test_chat_reads_lines(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/draw a red circle\nlost.png what?\n/new\n/quit\n"))
    assert chat(["--model", str(model.run), "--out", str(tmp_path), "--device", "cpu", "--max-new-tokens", "8"]) == 0
    shown = capsys.readouterr().out
    assert "0000.png" in shown and "error: lost.png: missing file" in shown and (tmp_path / "0000.png").is_file()
