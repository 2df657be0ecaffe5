import threading

import pytest

from unicode.metrics.benchmarks.judged import (
    DEFAULT_RULES,
    JudgeError,
    Review,
    Rule,
    ask_judge,
    judge_prompt,
    parse_scores,
    summarize,
    summarize_as_llava,
)


def test_prompt():
    text = judge_prompt(context="C", question="Q", reference="R", candidate="K", rule=Rule("Assistant", "P"))
    assert text == (
        "[Context]\nC\n\n[Question]\nQ\n\n[Assistant 1]\nR\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nK\n\n[End of Assistant 2]\n\n[System]\nP\n\n"
    )  # fmt: skip


def test_rules_of_our_own():
    assert set(DEFAULT_RULES) == {"conv", "detail", "complex"}
    assert len({rule.prompt for rule in DEFAULT_RULES.values()}) == 3


@pytest.mark.parametrize(
    ("reply", "pair"),
    {
        "8 7\nBecause": (8, 7), "8,7": (8, 7), "8, 7": (8, 7), "8.5 9 ": (8.5, 9), "8": None, "8 7 6": None,
        "Scores: 8 7": None, "": None, "\n8 7": None, "nan 7": None, "inf 1": None,
    }.items(),
)  # fmt: skip
def test_scores(reply, pair):
    assert parse_scores(reply) == pair


def reviews_of(*pairs):
    return [Review(str(n), category, reply, parse_scores(reply)) for n, (category, reply) in enumerate(pairs)]


def test_summary_leaves_unparsed_replies_out():
    reviews = reviews_of(("conv", "8 4"), ("conv", "10 7\nx"), ("detail", "no idea"), ("complex", "5,10"))
    values = summarize(reviews)
    assert values["conv"] == {"relative": pytest.approx(1100 / 18), "reference_x10": 90, "candidate_x10": 55, "reviews": 2}
    assert values["all"]["relative"] == pytest.approx(2100 / 23)
    assert "detail" not in values
    assert summarize_as_llava(reviews)["all"] == round(round(20 / 4, 3) / round(22 / 4, 3) * 100, 1)
    assert summarize_as_llava(reviews)["detail"] == 100.0


def test_llava_loses_a_comma_with_a_space():
    assert summarize_as_llava(reviews_of(("conv", "8, 4")))["conv"] == 100.0
    assert summarize(reviews_of(("conv", "8, 4")))["conv"]["relative"] == 50


def test_no_reviews():
    assert summarize([])["all"]["relative"] is None
    assert summarize_as_llava([]) == {"all": None}


@pytest.mark.parametrize("workers", [1, 3])
def test_asking_stops_at_an_error_and_keeps_what_came(workers):
    asked = []
    lock = threading.Lock()

    def ask(prompt):
        with lock:
            asked.append(prompt)
        if prompt == "p3":
            raise JudgeError("down")
        return "8 4"

    reviews, error = ask_judge({str(n): ("conv", f"p{n}") for n in range(9)}, ask, workers=workers)
    assert isinstance(error, JudgeError)
    assert len(asked) == (4 if workers == 1 else 6)
    assert [review.key for review in reviews if review.reply is not None] == [p[1:] for p in sorted(asked) if p != "p3"]
