import pytest

from unicode.metrics.benchmarks.base import Options
from unicode.metrics.benchmarks.yes_no import COGNITION, PERCEPTION, Mme, mme_answer

SHORT = "\nAnswer the question using a single word or phrase."
MME = Mme()


@pytest.mark.parametrize(
    ("text", "answer"),
    {
        "Yes.": "yes", " Yes": "yes", "  yes": "other", "know": "no", "Nope": "no", "Not": "no",
        "unknown": "other", "I do not": "other", "There is": "other", "": "other", "yes": "yes", "NO": "no",
    }.items(),
)  # fmt: skip
def test_golden_vectors(text, answer):
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


def test_missing_answers_are_wrong(put, score):
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
