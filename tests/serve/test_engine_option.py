"""Jobs on engines: the files of our own engine, complete though a server is killed half-way, resumed by the same command."""

import json
import threading
import time

import pytest
from llama_server import llama_server
from PIL import Image

from unicode.run.answer import main as answer
from unicode.run.benchmark import main as benchmark
from unicode.run.eval_generation import main as evaluate
from unicode.run.generate_images import main as generate

NUMBER = 120


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def questions(tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    lines = [
        {"question_id": number, "text": f"{'how many ' * (number % 5 + 1)}{number} ?", **({"image": "a.png"} if number % 2 else {})}
        for number in range(NUMBER)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "questions.jsonl"


def test_a_job_on_two_servers_of_which_one_is_killed_ends_complete(gguf, llama, merged, questions, tmp_path, caplog):
    def ask(out, *more):
        words = ["--model", merged, "--questions", questions, "--images", tmp_path, "--answers", tmp_path / out, "--max-new-tokens", 30]
        assert answer([*map(str, words), "--device", "cpu", *more]) == 0
        return [line["text"] for line in lines_of(tmp_path / out)]

    def kill_later():
        while sum(len(path.read_text().splitlines()) for path in tmp_path.glob("both.jsonl.parts/*")) < NUMBER // 5:
            time.sleep(0.002)
        process.kill()

    with llama_server(gguf) as (url, process):
        killer = threading.Thread(target=kill_later)
        killer.start()
        both = ask("both.jsonl", "--engine", f"{url},{llama}", "--batch-size", "4")
        killer.join()
    assert f"the engine {url} " in caplog.text and "it is left out, 1 left" in caplog.text
    assert len(both) == NUMBER and both == ask("one.jsonl", "--engine", llama) == ask("ours.jsonl")


def test_an_interrupted_job_is_resumed(llama, merged, questions, tmp_path, capsys):
    words = ["--model", merged, "--questions", questions, "--images", tmp_path, "--answers", tmp_path / "a.jsonl", "--max-new-tokens", 5]
    words = [*map(str, words), "--engine", llama]
    assert answer([*words, "--device", "cpu"]) == 0
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(whole.split(b"\n")[:50]) + b"\n")
    assert answer([*words, "--device", "cpu"]) == 0 and (tmp_path / "a.jsonl").read_bytes() == whole
    assert answer([*words[:-2], "--device", "cpu"]) == 2
    assert "other settings: dtype 'llamacpp', now 'torch.float32'" in capsys.readouterr().err


def test_pictures_of_engines(llama, merged, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red circle\nhow many blue things\ntwo squares\n")

    def draw(out, *more):
        words = ["--model", merged, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / out, "--device", "cpu", *more]
        return generate([*map(str, words)])

    assert draw("theirs", "temperature=0", "--engine", llama) == draw("ours", "temperature=0") == 0
    ids = [[line["ids"] for line in lines_of(tmp_path / out / "results.jsonl")] for out in ("theirs", "ours")]
    assert ids[0] == ids[1] and len(ids[0]) == 3
    assert draw("theirs", "temperature=0") == 2 and "holds pictures of other settings: dtype 'llamacpp'" in capsys.readouterr().err
    assert draw("guided", "guidance=2", "--engine", llama) == 2, "nothing is drawn"
    assert "only our own engine can" in lines_of(tmp_path / "guided" / "results.jsonl")[0]["error"]
    assert draw("gone", "--engine", "http://127.0.0.1:9") == 2 and "no engine answers" in capsys.readouterr().err


def test_pictures_of_an_engine_are_scored_as_our_own(llama, merged, tmp_path):
    for out, more in (("theirs", ["--engine", llama]), ("ours", [])):
        words = ["--model", merged, "--prompts", "shapes:val", "--out", tmp_path / out, "--device", "cpu", "limit=4", *more, "top_k=1"]
        assert generate([*map(str, words)]) == evaluate(["--pictures", str(tmp_path / out), "--device", "cpu"]) == 0
    scores = [json.loads((tmp_path / out / "metrics.json").read_text())["metrics"] for out in ("theirs", "ours")]
    assert scores[0] == scores[1] and scores[0]["all"]["protocol"].startswith("objects recognized")


def test_a_benchmark_on_an_engine(llama, merged, tmp_path):
    folder = tmp_path / "data" / "pope"
    (folder / "val2014").mkdir(parents=True)
    (folder / "coco").mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "val2014" / "a.png")
    asked = [{"question_id": 1, "image": "a.png", "text": "Is it red?", "category": name} for name in ("random", "popular", "adversarial")]
    (folder / "llava_pope_test.jsonl").write_text("\n".join(json.dumps({**line, "question_id": i}) for i, line in enumerate(asked)))
    for name in ("random", "popular", "adversarial"):
        (folder / "coco" / f"coco_pope_{name}.json").write_text(
            '{"question_id": 1, "image": "a.png", "text": "Is it red?", "label": "yes"}\n'
        )
    words = ["pope", "--model", merged, "--data", tmp_path / "data", "--max-new-tokens", 4, "--device", "cpu", "--out"]
    for out, more in (("theirs", ["--engine", llama]), ("ours", [])):
        assert benchmark([*map(str, words), str(tmp_path / out), *more]) == 0
    texts = [[line["text"] for line in lines_of(tmp_path / out / "pope" / "answers.jsonl")] for out in ("theirs", "ours")]
    assert texts[0] == texts[1]
    assert json.loads((tmp_path / "theirs" / "pope" / "scores.json").read_text())["engine"] == "llamacpp"
