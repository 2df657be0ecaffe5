"""Letters of answers; ScienceQA, SEED-Bench and MMBench: questions, rotations, the workbook, missing and damaged files."""

import base64
import io
import json
import sys

import openpyxl
import pytest

from unicode.metrics.benchmarks.base import Options
from unicode.metrics.benchmarks.choice import (
    MMBENCH,
    MMBENCH_CN,
    Seed,
    Sqa,
    first_letter,
    letter_in_any_form,
    read_table,
    row_options,
    scienceqa_letter,
)


@pytest.mark.parametrize(
    ("text", "letter"),
    {
        "A": "A",
        "B. cat": "B",
        "A. ": "A",
        "The answer is C.": "C",
        "The answer is C!": "C",
        "So: The answer is D. Done": "D",
        "The answer is Z.": "Z",
        "A.": None,
        "(A)": None,
        "a": None,
        "": None,
        "AB": None,
        "F": None,
        "Answer: D": None,
        "The answer is C": None,
        "The answer is C\n": None,
        "The answer is A. The answer is B.": None,
    }.items(),
)
def test_scienceqa(text, letter):
    assert scienceqa_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    {
        "A": "A",
        "a": "A",
        "A.": "A",
        "(A)": "A",
        " [b] ": "B",
        "B) cat": "B",
        "C: a\ncat": "C",
        "Answer: D": "D",
        "The answer is B.": "B",
        "A cat": None,
        "E": None,
        "Apple": None,
        "": None,
        "AB": None,
        "1": None,
    }.items(),
)
def test_any_form(text, letter):
    assert letter_in_any_form(text, "ABCD") == letter


@pytest.mark.parametrize(("text", "letter"), {"A": "A", " b. cat": "B", "Apple": "A", "(A)": None, "E": None, "": None}.items())
def test_first(text, letter):
    assert first_letter(text, "ABCD") == letter


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


COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment", "split")
IMAGE = base64.b64encode(b"image of 1").decode()
NAME = "mmbench/mmbench_dev_20230712.tsv"


def row(index, *, answer="A", options=("cat", "dog", "", ""), category="animals", hint="", image=IMAGE):
    return (str(index), f"What is {index}?", hint, *options, answer, category, image, "s", "l2", "", "dev")


def put_mmbench(put, rows, *, columns=COLUMNS, name=NAME):
    return put(name, "".join("\t".join(cells) + "\n" for cells in (columns, *rows)))


def test_questions(put, tmp_path):
    put_mmbench(put, [row(1, hint="Look.", options=("cat", "dog", "bird", "nan")), row(2, hint="nan", image="1")])
    first, second = MMBENCH.read_questions(tmp_path, Options())
    assert first.prompt == "Look.\nWhat is 1?\nA. cat\nB. dog\nC. bird"
    assert first.text == f"{first.prompt}\nAnswer with the option's letter from the given choices directly."
    assert second.prompt == "What is 2?\nA. cat\nB. dog"
    assert (first.image, first.image_data, second.image_data) == ("1.jpg", b"image of 1", b"image of 1")
    assert first.fields == {"round_id": 0, "options": ["cat", "dog", "bird"], "option_char": ["A", "B", "C"]}


def test_chinese(put, tmp_path):
    for name in ("mmbench/mmbench_dev_cn_20231003.tsv", "mmbench_cn/mmbench_dev_cn_20231003.tsv"):
        put_mmbench(put, [row(1)], name=name)
        assert MMBENCH_CN.read_questions(tmp_path, Options())[0].text.endswith("\n请直接回答选项字母。")
        (tmp_path / name).unlink()


def test_rotations(put, tmp_path):
    put_mmbench(put, [row(1, options=("cat", "dog", "bird", "")), row(2, options=("x", "y", "", ""))])
    questions = MMBENCH.read_questions(tmp_path, Options(circular=True))
    assert [question.key for question in questions] == ["1#0", "1#1", "1#2", "2#0", "2#1"]
    assert questions[1].prompt == "What is 1?\nA. dog\nB. bird\nC. cat"
    assert questions[1].fields == {"round_id": 1, "options": ["dog", "bird", "cat"], "option_char": ["B", "C", "A"]}


def record(question, text):
    return {"question_id": question.id, "round_id": question.fields["round_id"], "prompt": question.prompt, "text": text}


def test_local_score_of_rotations(put, score, tmp_path):
    put_mmbench(put, [row(1, answer="C", options=("cat", "dog", "bird", "")), row(2, answer="A", category="things")])
    questions = MMBENCH.read_questions(tmp_path, Options(circular=True))
    # question 1 right in every rotation (bird stands at C, B, A), question 2 always answered A
    texts = ["C", "B. bird", "A", "A", "A"]
    result = score(MMBENCH, [record(question, text) for question, text in zip(questions, texts, strict=True)], circular=True)
    assert result.values["circular"] == result.headline == 50
    assert result.values["single"] == 80
    assert result.values["per_category"] == {"animals": 100, "things": 0}


def test_rotations_that_the_table_has(put, score, tmp_path):
    put_mmbench(put, [row(1, answer="A"), row(1_000_001, answer="B", options=("dog", "cat", "", "")), row(2, answer="B")])
    questions = MMBENCH.read_questions(tmp_path, Options())
    result = score(MMBENCH, [record(question, text) for question, text in zip(questions, ["A", "A", "(B)"], strict=True)])
    assert (result.values["questions"], result.values["single"], result.headline) == (2, pytest.approx(100 / 3), 0)
    assert result.values["letter_in_any_form"]["circular"] == 50
    assert result.num_unparsed == 1


def test_workbook(put, score, tmp_path):
    put_mmbench(put, [row(3, options=("=1+1", "5", "", "")), row(4)])
    questions = MMBENCH.read_questions(tmp_path, Options())
    result = score(MMBENCH, [record(questions[0], "=A\x07")])
    sheet = openpyxl.load_workbook(io.BytesIO(result.files["mmbench.xlsx"])).active
    assert [[cell.value for cell in cells] for cells in sheet.iter_rows()] == [
        ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"],
        [3, "What is 3?", "=1+1", "5", None, None, "=A", "A", "dev"],
        [4, "What is 4?", "cat", "dog", None, None, None, "A", "dev"],
    ]
    assert sheet["G2"].data_type == "s"
    assert (result.num_expected, result.num_answered) == (2, 1)


def test_answers_without_a_round_are_round_zero(put, score):
    put_mmbench(put, [row(3)])
    assert score(MMBENCH, [{"question_id": 3, "text": "a"}]).headline == 100


def test_without_answers_in_the_table_there_is_only_the_workbook(put, score):
    put_mmbench(put, [row(3, answer="")])
    result = score(MMBENCH, [{"question_id": 3, "text": "A"}])
    assert result.headline is None
    assert list(result.files) == ["mmbench.xlsx"]


def test_quoted_cells_with_line_breaks(put):
    path = put_mmbench(put, [(str(1), '"Line\none ""x"""', "", "cat", "None", "x", "", "A", "c", IMAGE, "s", "l", "", "dev")])
    (only,) = read_table(path)
    assert only["question"] == 'Line\none "x"'
    assert row_options(only) == ["cat"]


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (("index", "question"), [("1", "q")], "has no column A, B, image"),
        (COLUMNS, [], "has no rows"),
        (COLUMNS, [("1", "q")], r"row 1 \(index 1\) has not 14 cells"),
        (COLUMNS, [row(1), row(1)], "row 2 has the index '1'"),
        (COLUMNS, [row("x")], "row 1 has the index 'x'"),
        (COLUMNS, [row(1, image="?!")], "index 1: its image is not base64"),
        (COLUMNS, [row(1, image="")], "index 1 has no image"),
    ],
)
def test_damaged_tables(put, tmp_path, columns, rows, message):
    put_mmbench(put, rows, columns=columns)
    with pytest.raises(ValueError, match=message):
        MMBENCH.read_questions(tmp_path, Options())


def test_missing_table(score, tmp_path):
    assert "download mmbench_dev_20230712.tsv" in score(MMBENCH, []).notes[0]
    with pytest.raises(FileNotFoundError, match=r"mmbench_cn.* or .*mmbench/mmbench_dev_cn"):
        MMBENCH_CN.read_questions(tmp_path, Options())


def test_fields_are_json(put, tmp_path):
    put_mmbench(put, [row(1)])
    assert json.dumps(MMBENCH.read_questions(tmp_path, Options())[0].fields)


def test_the_extra_is_named(put, score, monkeypatch):
    put_mmbench(put, [row(1)])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ValueError, match=r"pip install 'unicode-mllm\[mmbench\]'"):
        score(MMBENCH, [{"question_id": 1, "text": "A"}])
