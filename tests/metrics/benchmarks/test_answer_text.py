import pytest

from unicode.metrics.benchmarks.vqa import ARTICLES, CONTRACTIONS, NUMBER_WORDS, PUNCTUATION, normalize_answer, soft_accuracy

VECTORS = {
    "A Dog.": "dog",
    "the cat's": "cat 's",
    "Two men, one dog": "2 men 1 dog",
    "1,000": "1000",
    "12,34": "1234",
    "3.5": "3.5",
    "5.": "5",
    "U.S.A.": "usa",
    "dont": "don't",
    "isnt it?": "isn't it",
    "couldve": "could've",
    "youve": "you've",
    "im here": "im here",
    "coca-cola": "coca cola",
    "left/right": "left right",
    "N/A": "n",
    "a;b": "b",
    "ok; fine": "ok fine",
    "x_y": "x y",
    "@home": "home",
    "10:30 am": "10:30 am",
    "$5.00": "$5.00",
    "50%": "50%",
    "#1": "#1",
    '"STOP"': "stop",
    "what?!": "what",
    "none": "0",
    "Ten": "10",
    "a . b": "b",
    "it's an apple\nred": "it 's apple red",
    "the the": "",
    "A": "",
    "an": "",
    " ": "",
}


@pytest.mark.parametrize(("raw", "normalised"), VECTORS.items())
def test_golden_vectors(raw, normalised):
    assert normalize_answer(raw) == normalised


def test_at_most_32_full_stops_go():
    assert normalize_answer("x" + "." * 40) == "x" + "." * 8


def test_tables_are_whole():
    assert (len(CONTRACTIONS), len(NUMBER_WORDS), len(ARTICLES), len(PUNCTUATION)) == (120, 12, 3, 21)
    assert not set("':$%#&.") & set(PUNCTUATION)


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy(agreeing, expected):
    assert soft_accuracy("x", ["x"] * agreeing + ["y"] * (10 - agreeing)) == pytest.approx(expected, abs=1e-12)


def test_soft_accuracy_of_nobody():
    assert soft_accuracy("x", []) == 0.0
