"""All twelve benchmarks from made-up files in their real formats through a tiny model: scores, files, resume, ranks, bad input."""

import base64
import csv
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from warm import free_port, run_ranks, start

from unicode.common.files import lock_folder, read_json, read_jsonl, write_json, write_jsonl
from unicode.metrics.benchmarks import BENCHMARKS
from unicode.run import benchmark, encode_images

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "benchmarks"
SHORT = "Answer the question using a single word or phrase."
NAMES = ("vqav2", "gqa", "vizwiz", "sqa", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "seed", "llavabench", "mmvet")
QUICK = ("--batch-size", "4", "--max-new-tokens", "4", "--device", "cpu")


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (shade % 256, 99, (7 * shade) % 256)).save(path, format="PNG")


def question_lines(path: Path, folder: Path, records: list[dict[str, Any]]) -> None:
    """A question file of LLaVA's form and the pictures that it names."""
    write_jsonl(path, records)
    for shade, record in enumerate(records):
        picture(folder / record["image"], 20 * shade)


def make_vqav2(data: Path) -> None:
    records = [{"question_id": n, "image": f"COCO_test2015_{n}.jpg", "text": f"how many {n}?\n{SHORT}"} for n in range(3)]
    question_lines(data / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", data / "vqav2/test2015", records)
    write_jsonl(data / "vqav2/llava_vqav2_mscoco_test2015.jsonl", [*records, {**records[0], "question_id": 9}])


def make_gqa(data: Path) -> None:
    records = [{"question_id": f"20{n}", "image": f"n{n}.jpg", "text": f"are there {n} squares?\n{SHORT}"} for n in range(3)]
    question_lines(data / "gqa/llava_gqa_testdev_balanced.jsonl", data / "gqa/data/images", records)
    one = {"question": "are there squares?", "answer": "no", "isBalanced": True, "groups": {"global": "square", "local": "a"}}
    types = {"structural": "verify", "semantic": "obj", "detailed": "exist"}
    steps = [{"operation": "select", "argument": "square (1)", "dependencies": []}]
    gold = {record["question_id"]: {**one, "types": types, "semantic": steps} for record in records}
    write_json(data / "gqa/data/testdev_balanced_questions.json", gold)


def make_vizwiz(data: Path) -> None:
    suffix = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"
    records = [{"question_id": f"VizWiz_test_{n}.jpg", "image": f"VizWiz_test_{n}.jpg", "text": f"what?\n{suffix}"} for n in range(2)]
    question_lines(data / "vizwiz/llava_test.jsonl", data / "vizwiz/test", records)


def make_sqa(data: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nhow many?\nA. two\nB. blue"}, {"from": "gpt", "value": "A"}]
    bare = [{"from": "human", "value": "Context: red\nhow many?\nA. two\nB. blue"}, {"from": "gpt", "value": "A"}]
    asked = [{"id": "4", "image": "4/image.png", "conversations": turns}, {"id": "7", "conversations": bare}]
    write_json(data / "scienceqa/llava_test_CQM-A.json", asked)
    problem = {"choices": ["two", "blue"], "answer": 0, "question": "how many?"}
    write_json(data / "scienceqa/problems.json", {"4": {**problem, "image": "image.png"}, "7": {**problem, "image": None}, "1": problem})
    write_json(data / "scienceqa/pid_splits.json", {"train": ["1"], "test": ["4", "7"]})
    picture(data / "scienceqa/images/test/4/image.png", 50)


def make_textvqa(data: Path) -> None:
    asked = [("a1", "what is this?"), ("a1", "how big?"), ("b2", "what color?")]
    records = [
        {"question_id": name, "image": f"{name}.jpg", "text": f"{text}\nReference OCR token: A, B\n{SHORT}"} for name, text in asked
    ]
    question_lines(data / "textvqa/llava_textvqa_val_v051_ocr.jsonl", data / "textvqa/train_images", records)
    gold = [{"question_id": n, "image_id": name, "question": text, "answers": ["red"] * 10} for n, (name, text) in enumerate(asked)]
    write_json(data / "textvqa/TextVQA_0.5.1_val.json", {"data": gold})


def make_pope(data: Path) -> None:
    asked = []
    for kind in ("adversarial", "popular", "random"):
        rows = [{"image": f"COCO_val2014_{n}.jpg", "text": f"is there a square {n}?"} for n in range(2)]
        labels = [{"question_id": n + 1, **row, "label": ("yes", "no")[n]} for n, row in enumerate(rows)]
        write_jsonl(data / f"pope/coco/coco_pope_{kind}.json", labels)
        asked += [{**row, "text": f"{row['text']}\n{SHORT}", "category": kind} for row in rows]
    records = [{"question_id": n, **record} for n, record in enumerate(asked)]
    question_lines(data / "pope/llava_pope_test.jsonl", data / "pope/val2014", records)


def make_mme(data: Path) -> None:
    release, records = data / "MME/MME_Benchmark_release_version", []
    for task in ("existence", "code_reasoning"):
        (release / task).mkdir(parents=True)
        gold = [f"is it {word}? Please answer yes or no.\t{answer}" for word, answer in (("red", "Yes"), ("blue", "No"))]
        (release / task / "0001.txt").write_text("\n".join(gold) + "\n")
        name = f"{task}/0001.png"
        records += [{"question_id": name, "image": name, "text": f"is it {w}?\n{SHORT}", "category": task} for w in ("red", "blue")]
    question_lines(data / "MME/llava_mme.jsonl", release, records)


def make_table(path: Path, question: str) -> None:
    """A table of MMBench: three rows, two and four options, one with a hint."""
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment", "split"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, columns, delimiter="\t")
        rows.writeheader()
        for number in range(3):
            content = io.BytesIO()
            Image.new("RGB", (30, 30), (number * 60, 10, 10)).save(content, format="JPEG")
            row = {"index": number, "question": question, "hint": "red" if number else "", "A": "two", "B": "blue", "answer": "A"}
            more = {"category": "count", "image": base64.b64encode(content.getvalue()).decode(), "split": "dev"}
            rows.writerow(row | ({"C": "a", "D": "b"} if number == 2 else {}) | more)


def make_seed(data: Path) -> None:
    asked, gold = [], []
    for number, kind in (("0", "image"), ("1", "image"), ("v2", "video")):
        name = f"SEED-Bench-{'image' if kind == 'image' else 'video-image'}/{number}.png"
        asked.append({"question_id": number, "image": name, "text": f"how many?\nA. two\nB. blue {number}\nAnswer with a letter."})
        gold.append({"question_id": number, "question_type_id": 1, "data_type": kind, "answer": "A", "question": "q", "data_id": name})
    question_lines(data / "seed_bench/llava-seed-bench_1.jsonl", data / "seed_bench", asked)
    write_json(data / "seed_bench/SEED-Bench.json", {"questions": gold, "question_type": {"Scene Understanding": 1}})


def make_llavabench(data: Path) -> None:
    folder, kinds = data / "llava-bench-in-the-wild", ("conv", "detail", "complex")
    records = [{"question_id": n, "image": f"00{n}.jpg", "text": f"what is it {n}?", "category": kind} for n, kind in enumerate(kinds)]
    question_lines(folder / "questions.jsonl", folder / "images", records)
    write_jsonl(folder / "context.jsonl", [{"id": n, "image": r["image"], "caption": f"a square {n}"} for n, r in enumerate(records)])
    gold = {"text": "a square", "model_id": "gpt-4"}
    write_jsonl(folder / "answers_gpt4.jsonl", [{"question_id": n, "prompt": r["text"], **gold} for n, r in enumerate(records)])


def make_mmvet(data: Path) -> None:
    records = [{"question_id": n, "image": f"v1_{n}.png", "text": f"what is it {n}?"} for n in range(2)]
    question_lines(data / "mm-vet/llava-mm-vet.jsonl", data / "mm-vet/images", records)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all benchmarks."""
    folder = tmp_path_factory.mktemp("eval")
    for make in (make_vqav2, make_gqa, make_vizwiz, make_sqa, make_textvqa, make_pope, make_mme, make_seed, make_llavabench, make_mmvet):
        make(folder)
    make_table(folder / "mmbench/mmbench_dev_20230712.tsv", "how many?")
    make_table(folder / "mmbench_cn/mmbench_dev_cn_20231003.tsv", "有多少?")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """An untrained image tokenizer on rows of the tiny language model."""
    from unicode.run import export_codebook, train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    assert export_codebook.main(["--model", str(tiny_llama), "--out", str(folder / "table.safetensors")]) == 0
    settings = {
        "model.image_size": 32, "model.autoencoder.channels": 8, "model.autoencoder.multipliers": "[1,2]", "model.codebook.width": 4,
        "model.autoencoder.num_res_blocks": 1, "model.autoencoder.latent_channels": 8, "model.autoencoder.decoder_attention": "[]",
        "model.codebook.num_rows": 32, "model.codebook.table": folder / "table.safetensors", "data.name": "shapes",
        "objective.perceptual.weight": 0, "objective.discriminator.enabled": "false", "train.steps": 1, "train.batch_size": 4,
        "train.num_workers": 0, "train.val_images": 4, "run.dir": folder / "run", "run.device": "cpu", "run.threads": 1,
    }  # fmt: skip
    (folder / "empty.yaml").write_text("{}\n")
    assert train_tokenizer.main([str(folder / "empty.yaml"), *(f"{key}={value}" for key, value in settings.items())]) == 0
    return folder / "run"


@pytest.fixture
def arguments(tiny_llama: Path, tokenizer: Path, data: Path, tmp_path: Path) -> list[str]:
    """Options of a quick run into `tmp_path`/out."""
    options = {"--model": tiny_llama, "--image-tokenizer": tokenizer, "--data": data, "--out": tmp_path / "out"}
    return [*(str(word) for option in options.items() for word in option), *QUICK]


def texts(path: Path) -> list[tuple[Any, ...]]:
    return [(record["question_id"], record.get("round_id"), record["prompt"], record["text"]) for record in read_jsonl(path)]


SUBMISSIONS = {
    "vqav2": "vqav2_upload.json", "gqa": "gqa_predictions.json", "vizwiz": "vizwiz_upload.json", "mmbench": "mmbench.xlsx",
    "mmbench_cn": "mmbench_cn.xlsx", "seed": "seed_upload.jsonl",
}  # fmt: skip


def test_names_are_those_of_the_scripts() -> None:
    assert tuple(BENCHMARKS) == NAMES
    assert {path.stem for path in (ROOT / "scripts" / "llava_eval").glob("*.sh")} == {*NAMES, "all", "benchmark"}


def test_all_twelve(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["all", *arguments]) == 0
    out = tmp_path / "out"
    for name in NAMES:
        report = read_json(out / name / "scores.json")
        assert report["n_answered"] == report["n_expected"] == report["num_asked"] > 0, name
        assert report["errors"] == {}
        assert report["seconds"] > 0 and report["n_unparsed"] >= 0 and report["protocol"]
        assert len(report["model_fingerprint"]) == len(report["tokenizer_fingerprint"]) == 16
        assert all((out / name / file).is_file() for file in report["files"])
        if name in SUBMISSIONS:
            assert SUBMISSIONS[name] in report["files"]
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:14]] == [BENCHMARKS[name].title for name in NAMES]
    assert "85.9" in table  # POPE of LLaVA-1.5 7B
    assert "UniCode 7B LoRA (quoted)" in table
    before = {name: (out / name / "answers.jsonl").read_bytes() for name in NAMES}
    assert benchmark.main(["all", *arguments]) == 0
    assert {name: (out / name / "answers.jsonl").read_bytes() for name in NAMES} == before
    assert read_json(out / "pope" / "scores.json")["num_asked"] == 0


def test_answers_are_scored_without_a_model(arguments: list[str], data: Path, tmp_path: Path) -> None:
    assert benchmark.main(["pope", *arguments]) == 0
    asked = read_json(tmp_path / "out/pope/scores.json")
    again = ["pope", "--answers", str(tmp_path / "out/pope/answers.jsonl"), "--data", str(data), "--out", str(tmp_path / "scored")]
    assert benchmark.main(again) == 0
    scored = read_json(tmp_path / "scored/pope/scores.json")
    assert all(scored[name] == asked[name] for name in ("values", "headline", "n_expected", "model_fingerprint", "model"))
    everything = ["all", "--answers", str(tmp_path / "out"), "--data", str(data), "--out", str(tmp_path / "scored_all")]
    assert benchmark.main(everything) == 0
    assert [path.name for path in (tmp_path / "scored_all").iterdir() if path.is_dir()] == ["pope"]


def test_rounds_of_mmbench(arguments: list[str], tmp_path: Path) -> None:
    assert benchmark.main(["mmbench", *arguments, "--circular"]) == 0
    report = read_json(tmp_path / "out/mmbench-circular/scores.json")
    assert report["n_answered"] == report["n_expected"] == 2 + 2 + 4
    record = next(read_jsonl(tmp_path / "out/mmbench-circular/answers.jsonl"))
    assert {"round_id", "options", "option_char", "prompt", "answer_id", "model_id", "metadata"} <= record.keys()


def test_limit_goes_on(arguments: list[str], tmp_path: Path) -> None:
    assert benchmark.main(["pope", *arguments, "--limit", "2"]) == 0
    report = read_json(tmp_path / "out/pope/scores.json")
    assert (report["n_answered"], report["n_expected"], report["num_asked"]) == (2, 6, 2)
    assert "--limit" in " ".join(report["notes"])
    assert benchmark.main(["pope", *arguments]) == 0
    report = read_json(tmp_path / "out/pope/scores.json")
    assert (report["n_answered"], report["num_asked"]) == (6, 4)
    assert benchmark.main(["pope", *arguments, "--limit", "2"]) == 0
    assert len(texts(tmp_path / "out/pope/answers.jsonl")) == 6


def test_blind_baseline_stands_apart(arguments: list[str], tmp_path: Path) -> None:
    assert benchmark.main(["pope", *arguments]) == 0
    assert benchmark.main(["pope", *arguments, "--blank-images", "grey"]) == 0
    assert read_json(tmp_path / "out/blank_grey/pope/scores.json")["blank_images"] == "grey"
    head, _, row = (tmp_path / "out/table.md").read_text().splitlines()[:3]
    assert dict(zip(head.split("|"), row.split("|"), strict=True))[" blank images "].strip() != "-"


def test_a_store_answers_as_the_pictures_do(arguments: list[str], tokenizer: Path, data: Path, tmp_path: Path) -> None:
    assert benchmark.main(["pope", *arguments]) == 0
    store = ["--ckpt", str(tokenizer), "--images", str(data / "pope/val2014"), "--out", str(tmp_path / "store"), "--workers", "0"]
    assert encode_images.main(store) == 0
    other = [word if word != str(tmp_path / "out") else str(tmp_path / "by_store") for word in arguments]
    assert benchmark.main(["pope", *other, "--store", str(tmp_path / "store")]) == 0
    assert texts(tmp_path / "by_store/pope/answers.jsonl") == texts(tmp_path / "out/pope/answers.jsonl")


def test_more_ranks_than_questions(arguments: list[str], tmp_path: Path) -> None:
    assert benchmark.main(["mmvet", *arguments]) == 0  # two questions
    alone = texts(tmp_path / "out/mmvet/answers.jsonl")
    other = [word if word != str(tmp_path / "out") else str(tmp_path / "ranks") for word in arguments]
    run_ranks("benchmark", "mmvet", *other, logs=tmp_path / "logs", ranks=3)
    assert texts(tmp_path / "ranks/mmvet/answers.jsonl") == alone
    assert read_json(tmp_path / "ranks/mmvet/scores.json")["n_answered"] == len(alone)


def test_ranks_leave_together_when_scoring_fails(arguments: list[str], data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    write_json(tmp_path / "data/gqa/data/testdev_balanced_questions.json", {"1": {}})
    words = [str(tmp_path / "data") if word == str(data) else word for word in arguments]
    logs, port = [tmp_path / f"{rank}.log" for rank in range(2)], str(free_port())
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [start("benchmark", "gqa", *words, log=log, RANK=str(rank), LOCAL_RANK=str(rank), **job) for rank, log in enumerate(logs)]
    assert [one.wait() for one in ranks] == [2, 2]
    assert all("is not a question file of GQA" in one.printed for one in ranks)


def test_killed_and_started_again(arguments: list[str], data: Path, tmp_path: Path) -> None:
    many, number = tmp_path / "data", 200
    records = [{"question_id": n, "image": f"v1_{n % 2}.png", "text": f"how many blue things are there {n}?"} for n in range(number)]
    question_lines(many / "mm-vet/llava-mm-vet.jsonl", many / "mm-vet/images", records)
    words = [str(many) if word == str(data) else word for word in arguments]
    words[words.index("--batch-size") + 1] = "2"
    process = start("benchmark", "mmvet", *words, log=tmp_path / "log").process
    part = tmp_path / "out/mmvet/answers.jsonl.parts/00000.jsonl"
    deadline = time.monotonic() + 100
    while not (part.is_file() and part.read_bytes().count(b"\n") > 20):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    with open(part, "ab") as file:  # as if the death had come in the middle of a line
        file.write(b'{"question_id": 199, "te')
    kept = part.read_bytes().count(b"\n")
    assert 20 < kept < number
    before = texts_of_part(part)
    assert benchmark.main(["mmvet", *words]) == 0
    report = read_json(tmp_path / "out/mmvet/scores.json")
    assert report["num_asked"] == number - kept
    assert report["n_answered"] == number
    found = {record["question_id"]: record for record in read_jsonl(tmp_path / "out/mmvet/answers.jsonl")}
    assert list(found) == list(range(number))
    assert all(found[name] == record for name, record in before.items())  # not asked again
    whole = [str(tmp_path / "whole") if word == str(tmp_path / "out") else word for word in words]
    assert benchmark.main(["mmvet", *whole]) == 0
    assert texts(tmp_path / "whole/mmvet/answers.jsonl") == texts(tmp_path / "out/mmvet/answers.jsonl")
    assert (tmp_path / "whole/mmvet/mm-vet.json").read_bytes() == (tmp_path / "out/mmvet/mm-vet.json").read_bytes()


def texts_of_part(part: Path) -> dict[Any, Any]:
    lines = part.read_bytes().split(b"\n")[:-1]
    return {record["question_id"]: record for record in map(json.loads, lines)}


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error message of a command that must fail with one line."""
    capsys.readouterr()
    assert benchmark.main(list(words)) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


Change = Callable[[Path], None]


def damage_table(data: Path) -> None:
    (data / "mmbench/mmbench_dev_20230712.tsv").write_text("index\tquestion\n1\twhat?\n")


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("pope", lambda data: (data / "pope/llava_pope_test.jsonl").unlink(), "eval.zip"),
        ("sqa", lambda data: (data / "scienceqa/llava_test_CQM-A.json").unlink(), "llava_test_CQM-A.json is not there"),
        ("pope", lambda data: (data / "pope/val2014/COCO_val2014_1.jpg").unlink(), "1 of 2 images are not in"),
        ("mmbench", damage_table, "mmbench_dev_20230712.tsv"),
    ],
)
def test_what_is_missing_is_named(
    name: str, change: Change, expected: str, arguments: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    change(tmp_path / "data")
    words = [str(tmp_path / "data") if word == str(data) else word for word in arguments]
    assert expected in fails(capsys, name, *words)
    assert not (tmp_path / "out").exists()


def test_unreadable_pictures_leave_their_questions_unanswered(arguments: list[str], data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data/mm-vet/images/v1_0.png").write_bytes(b"no picture")
    words = [str(tmp_path / "data") if word == str(data) else word for word in arguments]
    assert benchmark.main(["mmvet", *words]) == 0
    report = read_json(tmp_path / "out/mmvet/scores.json")
    assert report["n_answered"] == 1
    assert "not an image" in report["errors"]["0"]
    shutil.copy(data / "mm-vet/images/v1_0.png", tmp_path / "data/mm-vet/images/v1_0.png")
    assert benchmark.main(["mmvet", *words]) == 0
    report = read_json(tmp_path / "out/mmvet/scores.json")
    assert (report["n_answered"], report["num_asked"], report["errors"]) == (2, 1, {})


def test_answers_of_another_question_file(arguments: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "other.jsonl", [{"question_id": f"x{n}", "prompt": "p", "text": "yes"} for n in range(6)])
    where = ["--answers", str(tmp_path / "other.jsonl"), "--data", str(data), "--out", str(tmp_path / "out")]
    assert "answers" in fails(capsys, "pope", *where)
    assert "another question file" in fails(capsys, "pope", *where)


def test_damaged_lines_are_counted_and_named(arguments: list[str], data: Path, tmp_path: Path) -> None:
    assert benchmark.main(["pope", *arguments]) == 0
    answers = tmp_path / "answers.jsonl"
    answers.write_text((tmp_path / "out/pope/answers.jsonl").read_text().replace("\n", '\n{"question_id": 3, "te\n', 1))
    assert benchmark.main(["pope", "--answers", str(answers), "--data", str(data), "--out", str(tmp_path / "scored")]) == 0
    report = read_json(tmp_path / "scored/pope/scores.json")
    assert report["n_answered"] == 6
    assert any("1 damaged line" in note and "line 2" in note for note in report["notes"])


def test_another_model_cannot_go_on(
    arguments: list[str], tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["mmvet", *arguments]) == 0
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    words = [str(other) if word == str(tiny_llama) else word for word in arguments]
    assert "model_fingerprint" in fails(capsys, "mmvet", *words)
    assert "max_new_tokens" in fails(capsys, "mmvet", *arguments, "--max-new-tokens", "5")


class GraderService(BaseHTTPRequestHandler):
    """A language model behind an endpoint: two scores for most answers, none for one, and no service when it is told so."""

    asked: ClassVar[list[dict[str, Any]]] = []
    down = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        reply = "I cannot say." if "what is it 2?" in body["messages"][1]["content"] else "8 6\nThe first is better."
        content = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        self.send_response(400 if self.down else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b"no service" if self.down else content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[GraderService]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), GraderService)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setattr(GraderService, "asked", [])
    yield GraderService
    server.shutdown()
    server.server_close()


def test_grader(service: type[GraderService], arguments: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert benchmark.main(["llavabench", *arguments, "--judge", "wise", "--judge-estimate"]) == 0
    assert "3 requests to the grader" in caplog.text
    assert not service.asked
    assert read_json(tmp_path / "out/llavabench/scores.json")["headline"] is None
    assert benchmark.main(["llavabench", *arguments, "--grader", "wise"]) == 0
    report = read_json(tmp_path / "out/llavabench/scores.json")
    assert report["headline"] == pytest.approx(75.0)
    assert report["n_unparsed"] == 1  # reported, not averaged in
    assert "wise" in report["protocol"]
    assert {body["model"] for body in service.asked} == {"wise"}
    assert benchmark.main(["llavabench", *arguments, "--judge", "wise"]) == 0
    assert len(service.asked) == 3  # the replies were kept


def test_grader_that_is_down_loses_nothing(
    service: type[GraderService], monkeypatch: pytest.MonkeyPatch, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GraderService, "down", True)
    assert "refused model" in fails(capsys, "llavabench", *arguments, "--judge", "wise")
    assert len(texts(tmp_path / "out/llavabench/answers.jsonl")) == 3
    assert read_json(tmp_path / "out/llavabench/scores.json")["headline"] is None
    monkeypatch.setattr(GraderService, "down", False)
    assert benchmark.main(["llavabench", *arguments, "--judge", "wise"]) == 0
    assert read_json(tmp_path / "out/llavabench/scores.json")["num_asked"] == 0


def test_grader_without_address(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert "set OPENAI_BASE_URL" in fails(capsys, "llavabench", *arguments, "--judge", "wise")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pope"], "--model DIR"),
        (["pope", "--model", "m", "--answers", "a"], "leave out --model or --answers"),
        (["pope", "--answers", "nowhere.jsonl"], "no file of answers nowhere.jsonl"),
        (["pope", "--answers", ".", "--limit", "-1"], "not negative"),
        (["all", "--answers", "."], "EVALUATION.md"),
    ],
)
def test_arguments(words: list[str], expected: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in fails(capsys, *words, "--data", str(data), "--out", str(tmp_path))


def test_a_model_that_reads_no_pictures(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    place = arguments.index("--image-tokenizer")
    assert "--image-tokenizer DIR" in fails(capsys, "pope", *arguments[:place], *arguments[place + 2 :], "--dry-run")


def test_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "EVALUATION.md" in fails(capsys, "pope", "--answers", "a", "--data", str(tmp_path / "no"), "--out", str(tmp_path))


def test_dry_run(arguments: list[str], tmp_path: Path) -> None:
    assert benchmark.main(["all", *arguments, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock_folder(tmp_path / "out/pope", "answering"):
        assert f"{tmp_path}/out/pope is in use: answering by process {os.getpid()}" in fails(capsys, "pope", *arguments)
        assert benchmark.main(["mmvet", *arguments]) == 0  # another benchmark beside it is not in its way
    assert not (tmp_path / "out/pope/answers.jsonl").exists()
    assert benchmark.main(["pope", *arguments]) == 0


def test_golden_answers_through_the_command(tmp_path: Path) -> None:
    assert benchmark.main(["all", "--answers", str(GOLDEN / "answers"), "--data", str(GOLDEN), "--out", str(tmp_path)]) == 0
    for expected in (GOLDEN / "expected").iterdir():
        if expected.name != "evalai_normalisation.json":
            made = tmp_path / expected.name.split(".")[0].split("_")[0] / expected.name
            read = read_json if made.suffix == ".json" else lambda path: list(read_jsonl(path))
            assert read(made) == read(expected), expected.name
    report = read_json(tmp_path / "pope" / "scores.json")
    assert report["n_expected"] == report["n_answered"] == 240
    assert report["headline"] == pytest.approx(100 * (0.6923076923076923 + 0.7123287671232877 + 0.7526881720430108) / 3)
