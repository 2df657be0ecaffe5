import pytest

from unicode.metrics.benchmarks.base import FAILED, first_letter, letter_in_any_form, scienceqa_letter


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
        "A.": FAILED,
        "(A)": FAILED,
        "a": FAILED,
        "": FAILED,
        "AB": FAILED,
        "F": FAILED,
        "Answer: D": FAILED,
        "The answer is C": FAILED,
        "The answer is C\n": FAILED,
        "The answer is A. The answer is B.": FAILED,
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
