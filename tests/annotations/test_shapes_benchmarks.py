"""The shapes world as benchmarks: files that the descriptions read, right answers that score full marks, pictures that can be read back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unicode.annotations.exports import EXPORTS, LETTER, export_benchmarks, training_conversations
from unicode.annotations.records import read_record
from unicode.common.files import read_json, read_jsonl
from unicode.images.shapes import ShapesConfig, find_scene, parse_scene
from unicode.metrics.benchmarks import BENCHMARKS
from unicode.metrics.benchmarks.base import Options, Question

CONFIG = ShapesConfig()
OPTIONS = {name: Options(split="val" if name == "vqav2" else "") for name in EXPORTS}
FULL = {"pope": 100.0, "sqa": 100.0, "mme": 4 * 200.0, "gqa": 100.0, "vqav2": 100.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    counts = export_benchmarks(folder, config=CONFIG, num_scenes=12)
    assert counts == {"pope": 12 * 6, "sqa": 12 * 3, "mme": 12 * 8, "gqa": 12 * 5, "vqav2": 12 * 5}
    return folder


def right_answers(name: str, data: Path) -> dict[tuple[str, str], str]:
    """(question_id, question) -> right answer, from the files of gold answers."""
    found: dict[tuple[str, str], str] = {}
    if name == "pope":
        asked = list(read_jsonl(data / "pope/llava_pope_test.jsonl"))
        for kind in ("random", "popular", "adversarial"):
            mine = [question for question in asked if question["category"] == kind]
            labels = read_jsonl(data / f"pope/coco/coco_pope_{kind}.json")
            found |= {(str(q["question_id"]), q["text"]): row["label"] for q, row in zip(mine, labels, strict=True)}
    elif name == "sqa":
        found = {(q["id"], ""): q["conversations"][1]["value"] for q in read_json(data / "scienceqa/llava_test_CQM-A.json")}
    elif name == "mme":
        for path in (data / "MME/MME_Benchmark_release_version").glob("*/*.txt"):
            for line in path.read_text().splitlines():
                text, answer = line.split("\t")
                found[f"{path.parent.name}/{path.stem}.png", text.removesuffix(" Please answer yes or no.")] = answer
    elif name == "gqa":
        found = {(key, ""): q["answer"] for key, q in read_json(data / "gqa/data/testdev_balanced_questions.json").items()}
    else:
        gold = read_json(data / "vqav2/v2_mscoco_val2014_annotations.json")["annotations"]
        found = {(str(q["question_id"]), ""): q["multiple_choice_answer"] for q in gold}
    return found


def answer_of(question: Question, right: dict[tuple[str, str], str]) -> str:
    body = question.text.split("\n")[0]
    return next(right[key] for key in ((str(question.id), ""), (str(question.id), question.text), (str(question.id), body)) if key in right)


@pytest.mark.parametrize("name", EXPORTS)
def test_right_answers_score_full_marks(name: str, data: Path) -> None:
    benchmark, options = BENCHMARKS[name], OPTIONS[name]
    questions = benchmark.read_questions(data, options)
    right = right_answers(name, data)
    answers = {q.key: {"question_id": q.id, "prompt": q.prompt, "text": answer_of(q, right)} for q in questions}
    score = benchmark.score(data, answers, options)
    assert score.num_expected == score.num_answered == len(questions)
    assert score.num_unparsed == score.num_unknown == 0
    assert score.headline == pytest.approx(FULL[name])


@pytest.mark.parametrize("name", EXPORTS)
def test_pictures_are_the_scenes(name: str, data: Path) -> None:
    questions = BENCHMARKS[name].read_questions(data, OPTIONS[name])
    folder = data / BENCHMARKS[name].image_folder(OPTIONS[name])
    assert all((folder / question.image).is_file() for question in questions if question.image)
    picture = next(question.image for question in questions if question.image)
    pixels = np.asarray(Image.open(folder / picture)).transpose(2, 0, 1)
    assert np.array_equal(pixels, find_scene(CONFIG, "val/0000000.png").pixels())
    assert parse_scene(pixels.astype(np.float32) / 127.5 - 1, CONFIG) == find_scene(CONFIG, "val/0000000.png")


@pytest.mark.parametrize("name", ["pope", "mme"])
def test_yes_and_no_are_balanced(name: str, data: Path) -> None:
    answers = [answer.lower() for answer in right_answers(name, data).values()]
    assert answers.count("yes") == answers.count("no")


def test_the_same_again(data: Path, tmp_path: Path) -> None:
    export_benchmarks(tmp_path, config=CONFIG, num_scenes=12)
    files = [path.relative_to(data) for path in data.rglob("*") if path.is_file()]
    assert all((tmp_path / file).read_bytes() == (data / file).read_bytes() for file in files)


def test_some_of_them_in_a_world_of_its_own(tmp_path: Path) -> None:
    world = ShapesConfig(image_size=64, colours=8, shapes=6, places=3, max_objects=9, min_objects=9, sizes=2)
    counts = export_benchmarks(tmp_path, config=world, num_scenes=2, names=["mme", "sqa"], split="train", questions=1)
    assert set(counts) == {"mme", "sqa"}
    assert not (tmp_path / "pope").exists()


def test_training_conversations_ask_in_the_same_forms() -> None:
    records = training_conversations(CONFIG, num_scenes=20)
    assert [record["image"] for record in records] == [f"train/{index:07d}.png" for index in range(20)]
    for record in records:
        read_record(record)
        turns = [turn["value"] for turn in record["conversations"]]
        letters = [answer for question, answer in zip(turns[::2], turns[1::2], strict=True) if question.endswith(LETTER)]
        assert len(letters) == 1 and letters[0] in "ABCDE"
        assert any("Is the number of objects" in question for question in turns[::2])


@pytest.mark.parametrize(("changes", "message"), [({"names": ["gqq"]}, "gqq"), ({"num_scenes": 0}, "at least 1 scene")])
def test_bad_input(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_benchmarks(tmp_path, config=CONFIG, **changes)
