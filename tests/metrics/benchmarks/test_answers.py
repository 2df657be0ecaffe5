import json

import pytest

from unicode.metrics.benchmarks.base import Question, Score, check_prompts, count_answers_, id_key, read_answers

LINE = {"question_id": 1, "prompt": "q", "text": "yes", "answer_id": "x", "model_id": "m", "metadata": {}}


def make_score():
    return Score("pope", None, "%", "protocol")


def test_damaged_lines_are_counted_and_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(
        json.dumps(LINE).encode() + b'\n\n{"question_id": 2, "te\n[1]\n{"question_id": 3}\n{"text": "x"}\n'
        + json.dumps({**LINE, "question_id": 9, "text": None}).encode() + b"\n\xff\xfe\n" + json.dumps({**LINE, "question_id": 4}).encode()
    )  # fmt: skip
    answers = read_answers(path, id_key)
    assert list(answers.records) == ["1", "4"]
    assert [text.split(":")[0] for text in answers.damaged] == ["line 3", "line 4", "line 5", "line 6", "line 7", "line 8"]
    (note,) = answers.notes(path)
    assert "6 damaged lines" in note
    assert "line 3" in note
    assert "..." in note


def test_the_same_answer_twice_is_counted_another_one_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text((json.dumps(LINE) + "\n") * 2)
    answers = read_answers(path, id_key)
    assert answers.num_repeated == 1
    assert "1 lines repeat" in answers.notes(path)[0]
    path.write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, "text": "no", "question_id": "1"}) + "\n")
    with pytest.raises(ValueError, match="lines 1 and 2 answer question '1' differently"):
        read_answers(path, id_key)


def test_an_empty_file_has_no_answers(tmp_path):
    (tmp_path / "answers.jsonl").touch()
    answers = read_answers(tmp_path / "answers.jsonl", id_key)
    assert not answers.records
    score = make_score()
    count_answers_(score, answers.records, {"1"}, where="q.jsonl")
    assert (score.num_expected, score.num_answered) == (1, 0)


def test_unknown_and_missing_ids_are_counted():
    score = make_score()
    answers = {str(number): {"question_id": number, "text": ""} for number in (1, 2, 7)}
    count_answers_(score, answers, {"1", "2", "3"}, where="q.jsonl")
    assert (score.num_expected, score.num_answered, score.num_unknown) == (3, 2, 1)
    assert "question_id 7" in score.notes[0]
    assert "1 of 3 questions have no answer" in score.notes[1]


def test_answers_of_another_question_file_are_refused():
    answers = {str(number): {"question_id": number, "text": ""} for number in range(10)}
    with pytest.raises(ValueError, match=r"7 of 10 answers are to questions that q.jsonl does not have .question_id 3, 4"):
        count_answers_(make_score(), answers, {"0", "1", "2"}, where="q.jsonl")


def test_the_same_ids_with_other_questions_are_refused():
    questions = [Question(number, f"question {number}\nOne word.", str(number), prompt=f"question {number}") for number in range(4)]
    good = {question.key: {"question_id": question.id, "prompt": question.prompt, "text": ""} for question in questions}
    check_prompts(good, questions, where="q.jsonl")
    check_prompts({key: {**record, "prompt": ""} for key, record in good.items()}, questions, where="q.jsonl")
    check_prompts({key: {**record, "prompt": f"question {key}\nOne word. "} for key, record in good.items()}, questions, where="q.jsonl")
    other = {key: {**record, "prompt": "something else"} for key, record in good.items()}
    with pytest.raises(ValueError, match=r"4 of 4 answers .* q.jsonl .* question 0 is 'question 0"):
        check_prompts(other, questions, where="q.jsonl")
