"""What holds for all twelve: names, folders, messages, question files, answer files."""

import json
import re

import pytest

from unicode.metrics.benchmarks import BENCHMARKS
from unicode.metrics.benchmarks.base import NeededFile, Options, Question, Score, check_prompts, read_answers, read_question_file

each = pytest.mark.parametrize("name", BENCHMARKS)
LONG = {"sqa", "mmbench", "mmbench_cn", "llavabench", "mmvet"}


def test_names():
    assert list(BENCHMARKS) == "vqav2 gqa vizwiz sqa textvqa pope mme mmbench mmbench_cn seed llavabench mmvet".split()
    assert [benchmark.image_folder(Options()) for benchmark in BENCHMARKS.values()] == [
        "vqav2/test2015", "gqa/data/images", "vizwiz/test", "scienceqa/images/test", "textvqa/train_images", "pope/val2014",
        "MME/MME_Benchmark_release_version", "mmbench/images", "mmbench_cn/images", "seed_bench", "llava-bench-in-the-wild/images",
        "mm-vet/images",
    ]  # fmt: skip


@each
def test_limits_and_published_numbers(name):
    assert BENCHMARKS[name].max_new_tokens == (1024 if name in LONG else 128)
    assert BENCHMARKS[name].published["LLaVA-1.5 7B"] > 0


@each
@pytest.mark.parametrize("purpose", ["ask", "score"])
def test_missing_files_say_what_to_download(name, purpose, tmp_path):
    messages = BENCHMARKS[name].missing_files(tmp_path, Options(), purpose=purpose)
    assert messages
    assert all(" is not there: " in message for message in messages)


@each
def test_without_any_file_there_is_no_number(name, tmp_path):
    score = BENCHMARKS[name].score(tmp_path, {}, Options())
    assert score.headline is None
    assert score.notes
    with pytest.raises(FileNotFoundError, match="is not there"):
        BENCHMARKS[name].read_questions(tmp_path, Options())


def test_alternatives(tmp_path):
    file = NeededFile(("a.txt", "b/c.txt"), "write it")
    with pytest.raises(FileNotFoundError, match=r"a.txt or .*c.txt is not there: write it"):
        file.require(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").touch()
    assert file.require(tmp_path) == tmp_path / "b" / "c.txt"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"question_id": 1, "image": "x"}], "question 1 is"),
        ([{"text": "x"}], "question 1 is"),
        ([[1]], "question 1 is"),
        ([{"question_id": 1, "text": "x"}, {"question_id": 1, "text": "y"}], "question 2 has the question_id 1 of an earlier question"),
        ([], "holds no question"),
    ],
)
def test_damaged_question_files(put, lines, message):
    path = put("q.jsonl", lines)
    with pytest.raises(ValueError, match=message):
        read_question_file(path, BENCHMARKS["gqa"].key_of)


def test_a_prompt_without_question_names_the_line(put):
    path = put("q.jsonl", [{"question_id": 1, "text": "What?\nShort."}, {"question_id": 1, "text": "What?"}])
    with pytest.raises(ValueError, match=r"q.jsonl, question 2: no question in the prompt"):
        read_question_file(path, BENCHMARKS["textvqa"].key_of)


def test_a_repeated_line_is_asked_once(put):
    line = {"question_id": 1, "image": "x.jpg", "text": "q", "category": "c"}
    (question,) = read_question_file(put("q.jsonl", [line, line]), BENCHMARKS["gqa"].key_of)
    assert question.fields == {"category": "c"}


LINE = {"question_id": 1, "prompt": "q", "text": "yes", "answer_id": "x", "model_id": "m", "metadata": {}}

ID = BENCHMARKS["gqa"].key_of


def make_score():
    return Score("pope", None, "%", "protocol")


def test_damaged_lines_are_counted_and_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(
        json.dumps(LINE).encode() + b'\n\n{"question_id": 2, "te\n[1]\n{"question_id": 3}\n{"text": "x"}\n'
        + json.dumps({**LINE, "question_id": 9, "text": None}).encode() + b"\n\xff\xfe\n" + json.dumps({**LINE, "question_id": 4}).encode()
    )  # fmt: skip
    answers, (note,) = read_answers(path, ID)
    assert list(answers) == ["1", "4"]
    assert re.findall(r"line \d(?=: )", note)[:5] == ["line 3", "line 4", "line 5", "line 6", "line 7"]
    assert "6 damaged lines" in note
    assert "..." in note


def test_the_same_answer_twice_is_counted_another_one_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text((json.dumps(LINE) + "\n") * 2)
    _, (note,) = read_answers(path, ID)
    assert "1 lines repeat" in note
    path.write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, "text": "no", "question_id": "1"}) + "\n")
    with pytest.raises(ValueError, match="lines 1 and 2 answer question '1' differently"):
        read_answers(path, ID)


def test_an_empty_file_has_no_answers(tmp_path):
    (tmp_path / "answers.jsonl").touch()
    answers, notes = read_answers(tmp_path / "answers.jsonl", ID)
    assert not answers and not notes
    score = make_score()
    score.count_answers_(answers, {"1"}, where="q.jsonl")
    assert (score.num_expected, score.num_answered) == (1, 0)


def test_unknown_and_missing_ids_are_counted():
    score = make_score()
    answers = {str(number): {"question_id": number, "text": ""} for number in (1, 2, 7)}
    score.count_answers_(answers, {"1", "2", "3"}, where="q.jsonl")
    assert (score.num_expected, score.num_answered, score.num_unknown) == (3, 2, 1)
    assert "question_id 7" in score.notes[0]
    assert "1 of 3 questions have no answer" in score.notes[1]


def test_answers_of_another_question_file_are_refused():
    answers = {str(number): {"question_id": number, "text": ""} for number in range(10)}
    with pytest.raises(ValueError, match=r"7 of 10 answers are to questions that q.jsonl does not have .question_id 3, 4"):
        make_score().count_answers_(answers, {"0", "1", "2"}, where="q.jsonl")


def test_the_same_ids_with_other_questions_are_refused():
    questions = [Question(number, f"question {number}\nOne word.", str(number), prompt=f"question {number}") for number in range(4)]
    good = {question.key: {"question_id": question.id, "prompt": question.prompt, "text": ""} for question in questions}
    check_prompts(good, questions, where="q.jsonl")
    check_prompts({key: {**record, "prompt": ""} for key, record in good.items()}, questions, where="q.jsonl")
    check_prompts({key: {**record, "prompt": f"question {key}\nOne word. "} for key, record in good.items()}, questions, where="q.jsonl")
    other = {key: {**record, "prompt": "something else"} for key, record in good.items()}
    with pytest.raises(ValueError, match=r"4 of 4 answers .* q.jsonl .* question 0 is 'question 0"):
        check_prompts(other, questions, where="q.jsonl")
