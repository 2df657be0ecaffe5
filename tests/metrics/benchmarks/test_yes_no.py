"""POPE and MME: how answers are read, rates and points by hand, missing answers, damaged files."""

import json

import pytest

from unicode.metrics.benchmarks.base import Options
from unicode.metrics.benchmarks.yes_no import CATEGORIES, COGNITION, PERCEPTION, Mme, Pope, llava_answer, mme_answer, strict_answer

POPE = Pope()


@pytest.mark.parametrize("text", ["no", "No", "No.", "No, there is not.", "not sure", "Yes, no doubt."])
def test_read_as_no(text):
    assert llava_answer(text) == "no"


@pytest.mark.parametrize("text", ["NO", "Nope", "There isn't", "", "\nNo", "I see none. No.", "Yes. No.", "yes"])
def test_read_as_yes(text):
    assert llava_answer(text) == "yes"


@pytest.mark.parametrize(
    ("text", "answer"), {"NO": "no", "No, it": "no", "\nYes.": "yes", '"yes"': "yes", "not sure": None, "": None, ".": None}.items()
)
def test_strict(text, answer):
    assert strict_answer(text) == answer


def put_pope(put, *, labels=("yes", "no"), categories=CATEGORIES):
    questions = [
        {"question_id": f"{name}{number}", "image": f"{number}.jpg", "text": f"Is it {number}?\nShort.", "category": name}
        for name in CATEGORIES
        for number in range(len(labels))
    ]
    put("pope/llava_pope_test.jsonl", questions)
    for name in categories:
        rows = [{"question_id": n + 1, "image": f"{n}.jpg", "text": f"Is it {n}?", "label": label} for n, label in enumerate(labels)]
        put(f"pope/coco/coco_pope_{name}.json", "".join(json.dumps(row) + "\n" for row in rows))
    return questions


def test_rates_and_the_strict_variant(put, score):
    questions = put_pope(put, labels=("yes", "yes", "no", "no"))
    texts = ["yes", "hmm", "No.", "maybe"] * 3
    result = score(POPE, [{"question_id": q["question_id"], "text": text} for q, text in zip(questions, texts, strict=True)])
    assert result.values["random"] == {
        "accuracy": 0.75, "precision": 2 / 3, "recall": 1.0, "f1": pytest.approx(0.8), "yes_ratio": 0.75,
        "true_yes": 2, "false_yes": 1, "true_no": 1, "false_no": 0,
    }  # fmt: skip
    assert result.headline == pytest.approx(80)
    assert result.values["mean_accuracy"] == pytest.approx(75)
    assert result.values["strict"]["random"]["accuracy"] == 0.5
    assert result.num_unparsed == 6


def test_answers_in_another_order_get_their_own_labels(put, score):
    questions = put_pope(put)
    records = [{"question_id": q["question_id"], "text": "yes" if q["image"] == "0.jpg" else "no"} for q in questions]
    assert score(POPE, records[::-1]).headline == score(POPE, records).headline == 100


def test_missing_answers_and_no_positive_at_all(put, score):
    questions = put_pope(put, labels=("no", "no"))
    result = score(POPE, [{"question_id": questions[0]["question_id"], "text": "no"}])
    assert result.values["random"]["accuracy"] == 1.0
    assert result.values["random"]["f1"] == 0.0
    assert result.values["popular"]["accuracy"] == 0.0
    assert result.values["strict"]["random"]["accuracy"] == 0.5
    assert (result.num_expected, result.num_answered) == (6, 1)
    assert any("left out of the rates" in note for note in result.notes)


def test_missing_files(put, score):
    put_pope(put, categories=("random",))
    result = score(POPE, [])
    assert any("coco_pope_popular.json is not there: download output/coco" in note for note in result.notes)
    assert any("1 of 3 categories" in note for note in result.notes)


def test_without_questions_there_is_no_score(score):
    result = score(POPE, [{"question_id": 1, "text": "yes"}])
    assert result.headline is None
    assert any("llava_pope_test.jsonl is not there" in note and "eval.zip" in note for note in result.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:1], "has 1 rows, but the question file asks 2"),
        (lambda rows: [rows[1], rows[0]], r"row 1 asks 'Is it 1\?' about 1.jpg, but question random0"),
        (lambda rows: [{**rows[0], "label": "maybe"}, rows[1]], "row 1 has the label 'maybe'"),
    ],
)
def test_labels_of_another_version_are_refused(put, score, change, message):
    put_pope(put)
    rows = [{"image": f"{n}.jpg", "text": f"Is it {n}?", "label": "yes"} for n in range(2)]
    put("pope/coco/coco_pope_random.json", "".join(json.dumps(row) + "\n" for row in change(rows)))
    with pytest.raises(ValueError, match=message):
        score(POPE, [])


SHORT = "\nAnswer the question using a single word or phrase."
MME = Mme()


@pytest.mark.parametrize(
    ("text", "answer"),
    {
        "Yes.": "yes", " Yes": "yes", "  yes": "other", "know": "no", "Nope": "no", "Not": "no",
        "unknown": "other", "I do not": "other", "There is": "other", "": "other", "yes": "yes", "NO": "no",
    }.items(),
)  # fmt: skip
def test_mme_answer(text, answer):
    assert mme_answer(text) == answer


def put_task(put, task, *, pictures=2, nested=False):
    """Two questions a picture, the second of the form that has two spaces; return the lines of the question file."""
    lines = []
    for number in range(pictures):
        folder = f"MME/MME_Benchmark_release_version/{task}" + ("/questions_answers_YN" if nested else "")
        put(f"{folder}/p{number}.txt", "Is it red? Please answer yes or no.\tYes\nIs it blue?  Please answer yes or no.\tNo\n")
        name = f"{task}/images/p{number}.jpg" if nested else f"{task}/p{number}.jpg"
        lines += [{"question_id": name, "image": name, "text": f"Is it {colour}?{SHORT}"} for colour in ("red", "blue")]
    return lines


def answer(lines, texts):
    return [{"question_id": line["question_id"], "prompt": line["text"], "text": text} for line, text in zip(lines, texts, strict=True)]


def test_points_and_the_files_of_the_eval_tool(put, score, tmp_path):
    lines = put_task(put, "color") + put_task(put, "code_reasoning", nested=True)
    put("MME/llava_mme.jsonl", lines)
    questions = MME.read_questions(tmp_path, Options())
    assert len({question.key for question in questions}) == len(lines)
    texts = ["Yes", "No\tway\nno", "yes", "Yes", "maybe", "no", "yes", "   no"]
    records = answer(lines, texts)
    assert [MME.key_of(record) for record in records] == [question.key for question in questions]
    result = score(MME, records)
    assert result.values["tasks"]["color"] == {"score": 125.0, "accuracy": 0.75, "accuracy_plus": 0.5, "pictures": 2, "other": 0}
    assert result.values["tasks"]["code_reasoning"]["score"] == 50.0
    assert (result.values["perception"], result.values["cognition"], result.headline) == (125.0, 50.0, 125.0)
    assert result.num_unparsed == 2
    assert any("1 of 10 tasks, 200 points at most" in note for note in result.notes)
    assert result.files["mme/color.txt"].splitlines()[:3] == [
        "p0.txt\tIs it red? Please answer yes or no.\tYes\tYes",
        "p0.txt\tIs it blue?  Please answer yes or no.\tNo\tNo way no",
        "p1.txt\tIs it red? Please answer yes or no.\tYes\tyes",
    ]
    assert result.files["mme/code_reasoning.txt"].splitlines()[-1].endswith("\tNo\t   no")


def test_the_order_of_the_answers_does_not_matter(put, score):
    lines = put_task(put, "color")
    records = answer(lines, ["Yes", "No", "yes", "Yes"])
    mixed = score(MME, [records[index] for index in (3, 0, 2, 1)])
    assert mixed.values == score(MME, records).values
    rows = [line.split("\t")[0] for line in mixed.files["mme/color.txt"].splitlines()]
    assert rows == ["p1.txt", "p1.txt", "p0.txt", "p0.txt"]


def test_all_fourteen_tasks(put, score):
    lines = [line for task in (*PERCEPTION, *COGNITION) for line in put_task(put, task, pictures=1)]
    result = score(MME, answer(lines, ["yes", "no"] * 14))
    assert (result.values["perception"], result.values["cognition"]) == (2000, 800)
    assert not result.notes


def test_mme_missing_answers_are_wrong(put, score):
    lines = put_task(put, "color")
    result = score(MME, answer(lines[:1], ["yes"]))
    assert result.headline == 25
    assert (result.num_expected, result.num_answered) == (4, 1)


def test_without_the_release(score, tmp_path):
    assert score(MME, []).notes[0].startswith(f"{tmp_path}/MME/MME_Benchmark_release_version is not there: ask the authors")
    (tmp_path / "MME/MME_Benchmark_release_version").mkdir(parents=True)
    assert "no questions with answers" in score(MME, []).notes[0]


@pytest.mark.parametrize("content", ["Is it red?\tYes\n", "Is it?\tYes\nIs it?\tNo\n", "Is it?\tYes\nIs he?\tperhaps\n", "a\nb\n"])
def test_damaged_release(put, score, content):
    put("MME/MME_Benchmark_release_version/color/p.txt", content)
    with pytest.raises(ValueError, match=r"p.txt"):
        score(MME, [])


def test_answers_of_another_benchmark(put, score):
    put_task(put, "color")
    with pytest.raises(ValueError, match="another question file"):
        score(MME, [{"question_id": 7, "prompt": "Is there a dog?", "text": "yes"}])
