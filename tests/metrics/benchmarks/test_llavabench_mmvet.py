import json

import pytest

from unicode.metrics.benchmarks.base import Options
from unicode.metrics.benchmarks.judged import JudgeError, Llavabench, Mmvet

FOLDER = "llava-bench-in-the-wild"
BENCH = Llavabench()


def put_bench(put):
    questions = [
        {"question_id": n, "image": f"00{n % 2}.jpg", "text": f"Q{n}?", "category": category}
        for n, category in enumerate(("conv", "detail", "complex", "conv"))
    ]
    put(f"{FOLDER}/questions.jsonl", questions)
    put(
        f"{FOLDER}/context.jsonl",
        [{"id": "000", "image": "000.jpg", "caption": "a cat"}, {"image": "001.jpg", "caption": ["two", "lines"]}],
    )
    # the references come in another order: they are found by id
    put(f"{FOLDER}/answers_gpt4.jsonl", [{"question_id": n, "text": f"R{n}"} for n in (3, 1, 0, 2)])
    return [{"question_id": n, "text": f"K{n}", "prompt": f"Q{n}?"} for n in range(4)]


def test_judged(put, score):
    records = put_bench(put)
    asked = []

    def ask(prompt):
        asked.append(prompt)
        return ["8 4\nok", "10 5", "I would rather not", "8 8"][len(asked) - 1]

    result = score(BENCH, records, ask=ask, judge_name="judge-1")
    assert "[Context]\na cat\n\n[Question]\nQ0?\n\n[Assistant 1]\nR0\n\n" in asked[0]
    assert "[Context]\ntwo\nlines\n" in asked[1]
    assert "[Assistant 2]\nK3\n" in asked[3]
    assert result.headline == pytest.approx(1700 / 26)
    assert result.values["conv"]["relative"] == pytest.approx(75)
    assert result.num_unparsed == 1
    assert result.unit == "% of the reference, judge judge-1"
    reviews = [json.loads(line) for line in result.files["reviews.jsonl"].splitlines()]
    assert [review["tuple"] for review in reviews] == [[8, 4], [10, 5], None, [8, 8]]
    assert reviews[2]["category"] == "llava_bench_complex"
    assert any("1 of 4 replies have no two scores" in note for note in result.notes)


def test_without_a_judge_nothing_is_invented(put, score):
    result = score(BENCH, put_bench(put))
    assert result.headline is None
    assert result.values == {"requests": 4}
    assert any("set OPENAI_BASE_URL" in note for note in result.notes)


def test_the_judge_goes_down_on_the_way(put, score):
    replies = iter(["8 4", "8 8"])

    def ask(_):
        try:
            return next(replies)
        except StopIteration:
            raise JudgeError("the judge is down") from None

    result = score(BENCH, put_bench(put), ask=ask)
    assert result.headline is None
    assert result.values["judged"] == 2
    assert any("stopped after 2 of 4 questions: the judge is down" in note for note in result.notes)
    assert len(result.files["reviews.jsonl"].splitlines()) == 2


def test_rules_of_llava_are_taken_where_they_are(put, score):
    records = put_bench(put)
    put(
        f"{FOLDER}/rule.json",
        {f"llava_bench_{name}": {"role": "Helper", "prompt": f"judge {name}"} for name in ("conv", "detail", "complex")},
    )
    asked = []
    result = score(BENCH, records, ask=lambda prompt: asked.append(prompt) or "1 1")
    assert asked[1].endswith("[End of Helper 2]\n\n[System]\njudge detail\n\n")
    assert "LLaVA's rule.json" in result.protocol
    put(f"{FOLDER}/rule.json", {"coding": {}})
    with pytest.raises(ValueError, match="has not the three llava_bench rules"):
        score(BENCH, records)


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("context.jsonl", [{"image": "000.jpg", "caption": "x"}], "question 1 .* has no context"),
        ("answers_gpt4.jsonl", [{"question_id": 0, "text": "x"}], "question 1 .* has no reference answer"),
        ("context.jsonl", [{"image": "000.jpg"}], "record 1 has no image and caption"),
    ],
)
def test_incomplete_data(put, score, name, records, message):
    answers = put_bench(put)
    put(f"{FOLDER}/{name}", records)
    with pytest.raises(ValueError, match=message):
        score(BENCH, answers)


def test_missing_files(score):
    assert sum("is not there: download the data set" in note for note in score(BENCH, []).notes) == 3


def test_mmvet(put, score, tmp_path):
    put("mm-vet/llava-mm-vet.jsonl", [{"question_id": n, "image": f"v1_{n}.png", "text": f"Q{n}"} for n in range(3)])
    assert Mmvet().read_questions(tmp_path, Options())[2].image == "v1_2.png"
    result = score(Mmvet(), [{"question_id": 2, "text": "two"}, {"question_id": 0, "text": "zero"}])
    assert json.loads(result.files["mm-vet.json"]) == {"v1_0": "zero", "v1_2": "two"}
    assert (result.headline, result.num_expected, result.num_answered) == (None, 3, 2)
    (tmp_path / "mm-vet/llava-mm-vet.jsonl").unlink()
    assert json.loads(score(Mmvet(), [{"question_id": 1, "text": "x"}]).files["mm-vet.json"]) == {"v1_1": "x"}
