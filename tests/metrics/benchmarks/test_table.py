"""What holds for all twelve: names, folders, messages, question files."""

import pytest

from unicode.annotations.image_lists import BENCHMARKS as IMAGE_SOURCES
from unicode.metrics.benchmarks.base import NeededFile, Options, missing_files, published_scores, read_question_file
from unicode.metrics.benchmarks.table import BENCHMARKS

each = pytest.mark.parametrize("name", BENCHMARKS)
LONG = {"sqa", "mmbench", "mmbench_cn", "llavabench", "mmvet"}


def test_names():
    assert list(BENCHMARKS) == "vqav2 gqa vizwiz sqa textvqa pope mme mmbench mmbench_cn seed llavabench mmvet".split()


@each
def test_limits_and_published_numbers(name):
    assert BENCHMARKS[name].max_new_tokens == (1024 if name in LONG else 128)
    assert published_scores(name)["LLaVA-1.5 7B"] > 0


@each
def test_the_folders_are_those_of_the_image_lists(name):
    paths = [file.path if isinstance(file.path, tuple) else (file.path,) for file in BENCHMARKS[name].needed_files(Options())]
    assert any(IMAGE_SOURCES[name].questions in path for path in paths)
    assert BENCHMARKS[name].image_folder(Options()) == IMAGE_SOURCES[name].images


@each
@pytest.mark.parametrize("purpose", ["ask", "score"])
def test_missing_files_say_what_to_download(name, purpose, tmp_path):
    messages = missing_files(BENCHMARKS[name], tmp_path, Options(), purpose=purpose)
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
