import pytest

from unicode.metrics.benchmarks.gqa import Gqa, evaluate_gqa


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


def test_figures():
    values = evaluate_gqa(QUESTIONS, {"1": "red", "2": "red", "3": "yes", "4": "no"})
    assert (values["accuracy"], values["binary"], values["open"]) == (75, 100, 50)
    assert values["per_structural_type"] == {"logical": 100, "query": 50, "verify": 100}
    assert values["per_semantic_type"] == {"rel": 75}
    assert values["per_words"] == {"3": 50, "4": 100}
    assert values["per_steps"] == {"1": pytest.approx(200 / 3), "2": 100}  # "query: name" and "exist" are no steps
    # group g: gold red 1, blue 1; given red 2, blue 0: (2 - 1)^2 / 1 + (0 - 1)^2 / 1 = 2
    assert values["distribution"] == pytest.approx(0.02)


def test_scored_through_the_benchmark(put, score):
    put("gqa/data/testdev_balanced_questions.json", {**QUESTIONS, "5": {"isBalanced": False}})
    result = score(Gqa(), [{"question_id": "1", "text": "Red."}, {"question_id": "2", "text": " blue"}])
    assert result.headline == 25
    assert (result.num_expected, result.num_answered) == (4, 2)


def test_nothing_to_score():
    values = evaluate_gqa({}, {})
    assert values["accuracy"] is None
    assert values["distribution"] == 0


def test_another_file(put, score):
    put("gqa/data/testdev_balanced_questions.json", {"1": {"isBalanced": True}})
    with pytest.raises(ValueError, match="is not a question file of GQA"):
        score(Gqa(), [])
