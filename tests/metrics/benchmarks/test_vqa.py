"""Normalization and soft accuracy by hand; VQAv2, VizWiz, TextVQA and GQA: val splits, submission files, damaged files."""

import json

import pytest

from unicode.metrics.benchmarks.base import Options
from unicode.metrics.benchmarks.vqa import (
    ARTICLES,
    CONTRACTIONS,
    NUMBER_WORDS,
    PUNCTUATION,
    Gqa,
    Textvqa,
    Vizwiz,
    Vqav2,
    evaluate_gqa,
    normalize_answer,
    question_of,
    soft_accuracy,
)

VECTORS = {
    "A Dog.": "dog",
    "the cat's": "cat 's",
    "Two men, one dog": "2 men 1 dog",
    "1,000": "1000",
    "12,34": "1234",
    "3.5": "3.5",
    "5.": "5",
    "U.S.A.": "usa",
    "dont": "don't",
    "isnt it?": "isn't it",
    "couldve": "could've",
    "youve": "you've",
    "im here": "im here",
    "coca-cola": "coca cola",
    "left/right": "left right",
    "N/A": "n",
    "a;b": "b",
    "ok; fine": "ok fine",
    "x_y": "x y",
    "@home": "home",
    "10:30 am": "10:30 am",
    "$5.00": "$5.00",
    "50%": "50%",
    "#1": "#1",
    '"STOP"': "stop",
    "what?!": "what",
    "none": "0",
    "Ten": "10",
    "a . b": "b",
    "it's an apple\nred": "it 's apple red",
    "the the": "",
    "A": "",
    "an": "",
    " ": "",
}


@pytest.mark.parametrize(("raw", "normalised"), VECTORS.items())
def test_golden_vectors(raw, normalised):
    assert normalize_answer(raw) == normalised


def test_at_most_32_full_stops_go():
    assert normalize_answer("x" + "." * 40) == "x" + "." * 8


def test_tables_are_whole():
    assert (len(CONTRACTIONS), len(NUMBER_WORDS), len(ARTICLES), len(PUNCTUATION)) == (118, 12, 3, 21)
    assert not set("':$%#&.") & set(PUNCTUATION)


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy(agreeing, expected):
    assert soft_accuracy("x", ["x"] * agreeing + ["y"] * (10 - agreeing)) == pytest.approx(expected, abs=1e-12)


def test_soft_accuracy_of_nobody():
    assert soft_accuracy("x", []) == 0.0


SHORT = "Answer the question using a single word or phrase."
TEN = [{"answer": "yes"}] * 2 + [{"answer": "no"}] * 8


def put_val(put):
    questions = [{"question_id": n, "image_id": 42, "question": f"Q{n}?"} for n in (1, 2)]
    put("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    annotations = [{"question_id": n, "answer_type": kind, "answers": TEN} for n, kind in ((1, "yes/no"), (2, "other"))]
    put("vqav2/v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def test_vqav2_val(put, score, tmp_path):
    put_val(put)
    first, _ = Vqav2().read_questions(tmp_path, Options(split="val"))
    assert (first.text, first.image) == (f"Q1?\n{SHORT}", "COCO_val2014_000000000042.jpg")
    assert Vqav2().image_folder(Options(split="val")) == "vqav2/val2014"
    result = score(Vqav2(), [{"question_id": 1, "text": "Yes."}, {"question_id": "2", "text": "No"}], split="val")
    assert result.headline == pytest.approx(80)
    assert result.values["per_answer_type"] == {"other": pytest.approx(100), "yes/no": pytest.approx(60)}
    assert score(Vqav2(), [{"question_id": 2, "text": "No"}], split="val").headline == pytest.approx(50)


def test_vqav2_test_counts_against_the_asked_split(put, score):
    lines = [{"question_id": n, "image": f"{n}.jpg", "text": f"Q{n}?\n{SHORT}"} for n in range(4)]
    put("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", lines[:2])
    put("vqav2/llava_vqav2_mscoco_test2015.jsonl", lines)
    result = score(Vqav2(), [{"question_id": 1, "text": "Two, I think", "prompt": f"Q1?\n{SHORT}"}])
    assert (result.num_expected, result.num_answered) == (2, 1)
    assert json.loads(result.files["vqav2_upload.json"]) == [
        {"question_id": 0, "answer": ""},
        {"question_id": 1, "answer": "2 i think"},
        {"question_id": 2, "answer": ""},
        {"question_id": 3, "answer": ""},
    ]
    assert any("challenge 830" in note for note in result.notes)
    with pytest.raises(ValueError, match="another text"):
        score(Vqav2(), [{"question_id": 1, "text": "x", "prompt": "Is there a dog?"}])


def test_vizwiz_upload(put, score):
    put("vizwiz/llava_test.jsonl", [{"question_id": n, "image": f"{n}.jpg", "text": "Q?"} for n in range(2)])
    result = score(Vizwiz(), [{"question_id": 0, "text": "The Dog."}])
    assert json.loads(result.files["vizwiz_upload.json"]) == [{"image": "0.jpg", "answer": "dog"}, {"image": "1.jpg", "answer": ""}]
    assert result.headline is None
    assert any("challenge 2185" in note for note in result.notes)


def test_vizwiz_val(put, score, tmp_path):
    rows = [{"image": f"v{n}.jpg", "question": "Q?", "answers": TEN, "answer_type": "other", "answerable": 1} for n in range(2)]
    put("vizwiz/val.json", rows)
    first, _ = Vizwiz().read_questions(tmp_path, Options(split="val"))
    insufficient = "When the provided information is insufficient, respond with 'Unanswerable'."
    assert first.text == f"Q?\n{insufficient}\n{SHORT}"
    assert first.image == "v0.jpg"
    assert score(Vizwiz(), [{"question_id": "v0.jpg", "text": "no"}], split="val").headline == pytest.approx(50)


@pytest.mark.parametrize("benchmark", [Vqav2(), Vizwiz()], ids=lambda benchmark: benchmark.name)
def test_without_files(benchmark, score, tmp_path):
    for split in ("", "val"):
        result = score(benchmark, [{"question_id": 1, "text": "x"}], split=split)
        assert result.headline is None
        assert any("is not there" in note for note in result.notes)
        with pytest.raises(FileNotFoundError, match=r"is not there: (it comes with LLaVA's eval.zip|download)"):
            benchmark.read_questions(tmp_path, Options(split=split))
    with pytest.raises(ValueError, match=r"has no split 'dev'"):
        benchmark.read_questions(tmp_path, Options(split="dev"))


def test_damaged_official_files(put, score, tmp_path):
    put("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", [1])
    put("vqav2/v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 1}]})
    put("vizwiz/val.json", [{"image": "x"}])
    with pytest.raises(ValueError, match="not the official question file"):
        Vqav2().read_questions(tmp_path, Options(split="val"))
    with pytest.raises(ValueError, match="does not hold questions with answers"):
        score(Vqav2(), [], split="val")
    with pytest.raises(ValueError, match="not an annotation file of VizWiz"):
        Vizwiz().read_questions(tmp_path, Options(split="val"))


@pytest.mark.parametrize(
    "prompt",
    [
        "What IS it?\nAnswer the question using a single word or phrase.",
        "What is it?\nReference OCR token: A, B\nAnswer shortly.",
        "Reference OCR token: A, B\nWhat is it?\nAnswer shortly.",
        "OCR tokens: A, B. Question: What is it? Short answer:",
    ],
)
def test_textvqa_questions_of_prompts(prompt):
    assert question_of(prompt) == "what is it?"


@pytest.mark.parametrize("prompt", ["What is it?", "a\nb\nc", "OCR tokens: A", ""])
def test_textvqa_prompts_without_question(prompt):
    with pytest.raises(ValueError, match="no question in the prompt"):
        question_of(prompt)


def annotation(number, answer="stop"):
    return {"question_id": number, "image_id": "i", "question": f"What {number}?", "answers": [answer] * 10}


def test_textvqa_missing_answers_and_the_protocol(put, score):
    put("textvqa/TextVQA_0.5.1_val.json", {"data": [annotation(1), annotation(2)]})
    result = score(Textvqa(), [{"question_id": "i", "prompt": "What 1?\nShort.", "text": "Stop."}])
    assert result.headline == 100.0
    assert result.values["strict"]["accuracy"] == 50.0
    assert "without OCR tokens" in result.protocol
    assert (result.num_expected, result.num_answered) == (2, 1)


def test_textvqa_question_asked_twice_counts_twice(put, score):
    put("textvqa/TextVQA_0.5.1_val.json", {"data": [annotation(1), annotation(1), annotation(2)]})
    records = [{"question_id": "i", "prompt": f"What {number}?\nShort.", "text": text} for number, text in ((1, "stop"), (2, "go"))]
    assert score(Textvqa(), records).headline == pytest.approx(200 / 3)


def test_textvqa_without_answers(put, score):
    put("textvqa/TextVQA_0.5.1_val.json", {"data": [annotation(1)]})
    assert score(Textvqa(), []).headline is None


def question(answer, *, structural="query", words=3, group="g", operations=("select", "query")):
    return {
        "isBalanced": True,
        "answer": answer,
        "question": " ".join(["w"] * words),
        "types": {"structural": structural, "semantic": "rel"},
        "semantic": [{"operation": name, "argument": "name" if name == "query" else "x"} for name in operations],
        "groups": {"global": group},
    }


QUESTIONS = {
    "1": question("red"),
    "2": question("blue"),
    "3": question("yes", structural="verify", words=4, group=None, operations=("select", "relate", "exist")),
    "4": question("no", structural="logical", words=4, group=None),
}


def test_gqa_figures():
    values = evaluate_gqa(QUESTIONS, {"1": "red", "2": "red", "3": "yes", "4": "no"})
    assert (values["accuracy"], values["binary"], values["open"]) == (75, 100, 50)
    assert values["per_structural_type"] == {"logical": 100, "query": 50, "verify": 100}
    assert values["per_semantic_type"] == {"rel": 75}
    assert values["per_words"] == {"3": 50, "4": 100}
    assert values["per_steps"] == {"1": pytest.approx(200 / 3), "2": 100}  # "query: name" and "exist" are no steps
    # group g: gold red 1, blue 1; given red 2, blue 0: (2 - 1)^2 / 1 + (0 - 1)^2 / 1 = 2
    assert values["distribution"] == pytest.approx(0.02)


def test_gqa_scored_through_the_benchmark(put, score):
    put("gqa/data/testdev_balanced_questions.json", {**QUESTIONS, "5": {"isBalanced": False}})
    result = score(Gqa(), [{"question_id": "1", "text": "Red."}, {"question_id": "2", "text": " blue"}])
    assert result.headline == 25
    assert (result.num_expected, result.num_answered) == (4, 2)


def test_gqa_nothing_to_score():
    values = evaluate_gqa({}, {})
    assert values["accuracy"] is None
    assert values["distribution"] == 0


def test_gqa_another_file(put, score):
    put("gqa/data/testdev_balanced_questions.json", {"1": {"isBalanced": True}})
    with pytest.raises(ValueError, match="is not a question file of GQA"):
        score(Gqa(), [])
