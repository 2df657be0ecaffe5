"""What the golden files do not have: missing files and answers, zero divisions, other forms of prompts and of answers."""

import pytest

from unicode.metrics.benchmarks.base import Options
from unicode.metrics.benchmarks.choice import Seed, Sqa
from unicode.metrics.benchmarks.vqa import Textvqa, question_of


def put_sqa(put):
    put("scienceqa/pid_splits.json", {"test": ["5", "6"], "train": ["7"]})
    problems = {"5": {"choices": ["x", "y"], "answer": 1}, "6": {"choices": ["x", "y"], "answer": 0}, "7": {"choices": ["x"], "answer": 0}}
    put("scienceqa/problems.json", problems)


def test_sqa_questions(put, tmp_path):
    turns = [{"from": "human", "value": "<image>\nQ?\nA. x\nB. y"}, {"from": "gpt", "value": "B"}]
    records = [
        {"id": "5", "image": "5/image.png", "conversations": turns},
        {"id": "6", "conversations": [{"from": "human", "value": "P?"}]},
    ]
    put("scienceqa/llava_test_CQM-A.json", records)
    first, second = Sqa().read_questions(tmp_path, Options())
    assert first.text == "Q?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly."
    assert first.prompt == f"<image>\n{first.text}"
    assert (first.image, second.image) == ("5/image.png", "")
    assert second.prompt == second.text


@pytest.mark.parametrize("records", [[{"id": "5"}], ["x"], [{"id": 1, "conversations": []}]])
def test_sqa_damaged_questions(put, tmp_path, records):
    put("scienceqa/llava_test_CQM-A.json", records)
    with pytest.raises(ValueError, match="record 1 is not"):
        Sqa().read_questions(tmp_path, Options())


def test_sqa_without_image_questions_has_no_headline(put, score):
    put_sqa(put)
    result = score(Sqa(), [{"question_id": "5", "text": "(B)", "prompt": "q"}])
    assert result.headline is None
    assert result.values["accuracy"] == 0.0
    assert result.values["letter_in_any_form"]["accuracy"] == 50.0
    assert result.num_unparsed == 1
    assert any("no answer has <image>" in note for note in result.notes)


def test_sqa_letter_beyond_the_choices_is_wrong(put, score):
    put_sqa(put)
    records = [{"question_id": "5", "text": "E", "prompt": "<image>\nq"}, {"question_id": "6", "text": "A. x", "prompt": "<image>\nq"}]
    assert score(Sqa(), records).headline == 50.0


def test_sqa_says_what_to_download(score):
    result = score(Sqa(), [])
    assert any("problems.json is not there: download data/scienceqa" in note for note in result.notes)


def put_seed(put):
    questions = [
        {"question_id": "1", "question_type_id": 1, "data_type": "image", "answer": "A"},
        {"question_id": "v2", "question_type_id": 10, "data_type": "video", "answer": "B"},
    ]
    put("seed_bench/SEED-Bench.json", {"questions": questions, "question_type": {"Scene": 1, "Action": 10}})


def test_seed_all_wrong_and_missing(put, score):
    put_seed(put)
    result = score(Seed(), [{"question_id": 1, "text": "A."}])
    assert result.headline == 0.0
    assert result.values["per_type"] == {"Scene": 0.0, "Action": 0.0}
    assert result.values["letter_in_any_form"]["total"] == 50.0
    assert result.num_unparsed == 1
    assert result.files["seed_upload.jsonl"].splitlines()[1] == '{"question_id": "v2", "prediction": ""}'


def test_seed_without_videos(put, score):
    put_seed(put)
    put(
        "seed_bench/SEED-Bench.json",
        {"questions": [{"question_id": 1, "question_type_id": 1, "data_type": "image", "answer": "A"}], "question_type": {"Scene": 1}},
    )
    assert score(Seed(), [{"question_id": "1", "text": "A"}]).values["video"] is None


def test_seed_damaged(put, score):
    put("seed_bench/SEED-Bench.json", {"questions": [{"question_id": 1}]})
    with pytest.raises(ValueError, match=r"is not SEED-Bench.json"):
        score(Seed(), [])


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
