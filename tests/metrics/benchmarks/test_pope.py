import json

import pytest

from unicode.metrics.benchmarks.yes_no import CATEGORIES, Pope, llava_answer, strict_answer

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
