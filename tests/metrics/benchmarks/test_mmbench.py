import base64
import io
import json

import openpyxl
import pytest

from unicode.metrics.benchmarks.base import Options
from unicode.metrics.benchmarks.choice import MMBENCH, MMBENCH_CN, read_table, row_options

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment", "split")
PICTURE = base64.b64encode(b"picture of 1").decode()
NAME = "mmbench/mmbench_dev_20230712.tsv"


def row(index, *, answer="A", options=("cat", "dog", "", ""), category="animals", hint="", image=PICTURE):
    return (str(index), f"What is {index}?", hint, *options, answer, category, image, "s", "l2", "", "dev")


def put_table(put, rows, *, columns=COLUMNS, name=NAME):
    return put(name, "".join("\t".join(cells) + "\n" for cells in (columns, *rows)))


def test_questions(put, tmp_path):
    put_table(put, [row(1, hint="Look.", options=("cat", "dog", "bird", "nan")), row(2, hint="nan", image="1")])
    first, second = MMBENCH.read_questions(tmp_path, Options())
    assert first.prompt == "Look.\nWhat is 1?\nA. cat\nB. dog\nC. bird"
    assert first.text == f"{first.prompt}\nAnswer with the option's letter from the given choices directly."
    assert second.prompt == "What is 2?\nA. cat\nB. dog"
    assert (first.image, first.image_data, second.image_data) == ("1.jpg", b"picture of 1", b"picture of 1")
    assert first.fields == {"round_id": 0, "options": ["cat", "dog", "bird"], "option_char": ["A", "B", "C"]}


def test_chinese(put, tmp_path):
    for name in ("mmbench/mmbench_dev_cn_20231003.tsv", "mmbench_cn/mmbench_dev_cn_20231003.tsv"):
        put_table(put, [row(1)], name=name)
        assert MMBENCH_CN.read_questions(tmp_path, Options())[0].text.endswith("\n请直接回答选项字母。")
        (tmp_path / name).unlink()


def test_rotations(put, tmp_path):
    put_table(put, [row(1, options=("cat", "dog", "bird", "")), row(2, options=("x", "y", "", ""))])
    questions = MMBENCH.read_questions(tmp_path, Options(circular=True))
    assert [question.key for question in questions] == ["1#0", "1#1", "1#2", "2#0", "2#1"]
    assert questions[1].prompt == "What is 1?\nA. dog\nB. bird\nC. cat"
    assert questions[1].fields == {"round_id": 1, "options": ["dog", "bird", "cat"], "option_char": ["B", "C", "A"]}


def record(question, text):
    return {"question_id": question.id, "round_id": question.fields["round_id"], "prompt": question.prompt, "text": text}


def test_local_score_of_rotations(put, score, tmp_path):
    put_table(put, [row(1, answer="C", options=("cat", "dog", "bird", "")), row(2, answer="A", category="things")])
    questions = MMBENCH.read_questions(tmp_path, Options(circular=True))
    # question 1 right in every rotation (bird stands at C, B, A), question 2 always answered A
    texts = ["C", "B. bird", "A", "A", "A"]
    result = score(MMBENCH, [record(question, text) for question, text in zip(questions, texts, strict=True)], circular=True)
    assert result.values["circular"] == result.headline == 50
    assert result.values["single"] == 80
    assert result.values["per_category"] == {"animals": 100, "things": 0}


def test_rotations_that_the_table_has(put, score, tmp_path):
    put_table(put, [row(1, answer="A"), row(1_000_001, answer="B", options=("dog", "cat", "", "")), row(2, answer="B")])
    questions = MMBENCH.read_questions(tmp_path, Options())
    result = score(MMBENCH, [record(question, text) for question, text in zip(questions, ["A", "A", "(B)"], strict=True)])
    assert (result.values["questions"], result.values["single"], result.headline) == (2, pytest.approx(100 / 3), 0)
    assert result.values["letter_in_any_form"]["circular"] == 50
    assert result.num_unparsed == 1


def test_workbook(put, score, tmp_path):
    put_table(put, [row(3, options=("=1+1", "5", "", "")), row(4)])
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
    put_table(put, [row(3)])
    assert score(MMBENCH, [{"question_id": 3, "text": "a"}]).headline == 100


def test_without_answers_in_the_table_there_is_only_the_workbook(put, score):
    put_table(put, [row(3, answer="")])
    result = score(MMBENCH, [{"question_id": 3, "text": "A"}])
    assert result.headline is None
    assert list(result.files) == ["mmbench.xlsx"]


def test_quoted_cells_with_line_breaks(put):
    path = put_table(put, [(str(1), '"Line\none ""x"""', "", "cat", "None", "x", "", "A", "c", PICTURE, "s", "l", "", "dev")])
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
        (COLUMNS, [row(1, image="?!")], "index 1: its picture is not base64"),
        (COLUMNS, [row(1, image="")], "index 1 has no picture"),
    ],
)
def test_damaged_tables(put, tmp_path, columns, rows, message):
    put_table(put, rows, columns=columns)
    with pytest.raises(ValueError, match=message):
        MMBENCH.read_questions(tmp_path, Options())


def test_missing_table(score, tmp_path):
    assert "download mmbench_dev_20230712.tsv" in score(MMBENCH, []).notes[0]
    with pytest.raises(FileNotFoundError, match=r"mmbench_cn.* or .*mmbench/mmbench_dev_cn"):
        MMBENCH_CN.read_questions(tmp_path, Options())


def test_fields_are_json(put, tmp_path):
    put_table(put, [row(1)])
    assert json.dumps(MMBENCH.read_questions(tmp_path, Options())[0].fields)
