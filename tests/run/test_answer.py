"""The command that answers a question file: the same answers however it is stopped, split over ranks or limited; mistakes in one line."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from warm import run_ranks, start

from unicode.generate.jobs import ResultFile
from unicode.images.dataset import open_images
from unicode.run.answer import main
from unicode.tokenizer.encode import EncodeConfig, encode_images
from unicode.tokenizer.load import load_tokenizer

NUMBER = 9


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def questions(photos):
    path = photos / "questions.jsonl"
    words = ["how many", "blue", "two red squares ?"]
    lines = [
        {"question_id": f"q{index}", "image": f"{index % 4}.png", "text": words[index % 3], "category": "x"} for index in range(NUMBER - 1)
    ]
    path.write_text("\n".join(map(json.dumps, [*lines, {"question_id": 99, "text": "how many"}])) + "\n")
    return path


@pytest.fixture
def ask(tuned, questions, photos, tmp_path):
    def run(*more, out="answers.jsonl", file=None):
        arguments = ["--model", tuned.run, "--questions", file or questions, "--answers", tmp_path / out]
        arguments += [] if "--images" in more or "--blank-images" in more else ["--images", photos]
        return main([*map(str, arguments), "--max-new-tokens", "6", "--device", "cpu", *map(str, more)])

    return run


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers(ask, tuned, questions, tmp_path, caplog):
    assert ask() == 0
    lines = lines_of(tmp_path / "answers.jsonl")
    assert [line["question_id"] for line in lines] == [f"q{index}" for index in range(NUMBER - 1)] + [99]
    assert all(line.keys() == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"} for line in lines)
    assert lines[0]["model_id"] == "run" and lines[0]["prompt"] == "how many" and lines[0]["metadata"]["num_tokens"] > 0
    before = (tmp_path / "answers.jsonl").read_bytes()
    assert ask("--batch-size", "1") == 0, "the same command has nothing left to do, whatever the batch size"
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    assert ask("--batch-size", "2", out="again.jsonl") == 0
    assert [line["text"] for line in lines_of(tmp_path / "again.jsonl")] == [line["text"] for line in lines]
    assert ask("--merge", out="merged.jsonl") == 0
    assert [line["text"] for line in lines_of(tmp_path / "merged.jsonl")] == [line["text"] for line in lines]


def test_a_store_gives_the_same_answers_as_files(ask, tuned, photos, tmp_path):
    store = tmp_path / "store"
    encode_images(load_tokenizer(tuned.image_tokenizer), open_images(photos, image_size=16), store, config=EncodeConfig(num_workers=0))
    assert ask() == 0
    assert ask("--store", store, "--images", tmp_path, out="stored.jsonl") == 0
    first, second = lines_of(tmp_path / "answers.jsonl"), lines_of(tmp_path / "stored.jsonl")
    assert [line["text"] for line in first] == [line["text"] for line in second]


def test_the_generated_world_needs_no_files(ask, tmp_path):
    from unicode.images.shapes import ShapesConfig, scene_keys

    key = scene_keys(ShapesConfig(), "val", limit=1)[0]
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 0, "image": key, "text": "how many"}) + "\n")
    assert ask("--images", "shapes:val", file=tmp_path / "q.jsonl") == 0
    assert "error" not in lines_of(tmp_path / "answers.jsonl")[0]["metadata"]


def test_the_blind_baseline_needs_no_images(ask, tmp_path):
    for kind in ("grey", "none"):
        assert ask("--blank-images", kind, out=f"{kind}.jsonl") == 0
        texts = [line["text"] for line in lines_of(tmp_path / f"{kind}.jsonl")]
        assert texts[0] == texts[3] == texts[6], "the same words without an image have the same answer"
    assert lines_of(tmp_path / "none.jsonl")[0]["text"] == lines_of(tmp_path / "none.jsonl")[-1]["text"]


def test_a_lost_image_costs_one_answer_and_is_asked_again(ask, photos, questions, tmp_path, caplog):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes(b"damaged")
    assert ask("--images", folder) == 0
    lines = lines_of(tmp_path / "answers.jsonl")
    lost = [place for place, line in enumerate(lines) if "error" in line["metadata"]]
    assert lost == [1, 2, 5, 6] and all(lines[place]["text"] == "" for place in lost)
    assert any("1.png" in record.getMessage() for record in caplog.records)
    shutil.copy(photos / "1.png", folder)
    shutil.copy(photos / "2.png", folder)
    assert ask("--images", folder) == 0
    assert ask(out="whole.jsonl") == 0
    assert lines_of(tmp_path / "answers.jsonl") == lines_of(tmp_path / "whole.jsonl")


def test_limit_dry_run_and_sampling(ask, tmp_path, caplog):
    caplog.set_level("INFO")
    assert ask("--dry-run", "--images", tmp_path) == 0
    assert "4 images not found" in caplog.text and not (tmp_path / "answers.jsonl").exists()
    assert ask("--limit", "2") == 0
    assert len(lines_of(tmp_path / "answers.jsonl")) == 2
    assert ask() == 0, "more questions later"
    assert len(lines_of(tmp_path / "answers.jsonl")) == NUMBER
    for name, seed, size in (("a", 1, 1), ("b", 1, 4), ("c", 2, 4)):
        assert ask("--temperature", "2", "--seed", seed, "--batch-size", size, out=name) == 0
    a, b, c = ([line["text"] for line in lines_of(tmp_path / name)] for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--questions", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--store", "nowhere"], "nowhere"),
        (["--images", "nowhere"], "no pictures at 'nowhere'"),
        (["--blank-images", "white"], "grey, black, none"),
        (["--batch-size", "0"], "batch size 0"),
        (["--base", "nowhere"], "no base model nowhere"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_mistakes_end_in_one_line(ask, tmp_path, capsys, arguments, message):
    assert ask(*arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "answers.jsonl").exists()


def test_another_model_does_not_go_on(ask, make_tuned, tmp_path, capsys):
    assert ask() == 0
    assert ask("--model", make_tuned(tied=False).run) == 2
    assert "answers.jsonl holds answers of other settings: model" in capsys.readouterr().err


def words(tuned, questions, photos, out: Path) -> list[object]:
    files = ["--model", tuned.run, "--questions", questions, "--images", photos, "--answers", out]
    return [*files, "--max-new-tokens", "6", "--device", "cpu", "--batch-size", "1"]


def test_killed_and_started_again(ask, tuned, questions, photos, tmp_path):
    many = tmp_path / "many.jsonl"
    lines = [
        {**json.loads(line), "question_id": f"{turn}/{number}"}
        for turn in range(60)
        for number, line in enumerate(questions.read_text().splitlines())
    ]
    many.write_text("\n".join(map(json.dumps, lines)))
    started = start("answer", *words(tuned, many, photos, tmp_path / "killed.jsonl"), log=tmp_path / "log")
    part = tmp_path / "killed.jsonl.parts" / "00000.jsonl"
    while started.process.is_alive() and not (part.exists() and part.stat().st_size > 2000):
        time.sleep(0.02)
    os.kill(started.process.pid, signal.SIGSTOP)
    assert ask(file=many, out="killed.jsonl") == 2, "the first start still holds the file"
    started.process.kill()
    started.process.join()
    kept = part.read_text().splitlines()[:-1]
    assert 0 < len(kept) < len(lines), started.printed
    assert ask("--batch-size", "32", file=many, out="killed.jsonl") == 0
    assert ask("--batch-size", "32", file=many, out="whole.jsonl") == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    final = set((tmp_path / "killed.jsonl").read_text().splitlines())
    assert set(kept) <= final


def test_two_ranks_answer_as_one(ask, tuned, questions, photos, tmp_path):
    run_ranks("answer", *words(tuned, questions, photos, tmp_path / "two.jsonl"), logs=tmp_path / "logs")
    assert ask() == 0
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "answers.jsonl").read_bytes()


def test_a_second_start_says_who_holds_the_file(ask, tmp_path, capsys):
    with ResultFile(tmp_path / "answers.jsonl", [], made_by={}):
        assert ask() == 2
    assert f"is in use: answering by process {os.getpid()}" in capsys.readouterr().err
    assert ask() == 0
