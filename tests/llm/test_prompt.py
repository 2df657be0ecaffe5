"""Templates print what LLaVA's print, cut into parts of which only the answers are learned."""

import json
from pathlib import Path

import pytest

from unicode.llm.template import END, START, TEMPLATES, get_template, rounds

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "prompts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["template"])
def test_prompts_equal_the_golden_ones(case):
    turns = [text for pair in case["turns"] for text in pair]
    parts = get_template(case["template"]).render(turns)
    assert "".join(part.text for part in parts) == case["prompt"]
    if turns[-1] is None:
        assert get_template(case["template"]).render(turns[:-1]) == parts


def test_every_golden_template_is_there():
    assert {case["template"] for case in GOLDEN} == set(TEMPLATES)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_learned_are_answers_and_ends(name):
    parts = get_template(name).render(["How many?", "two", "And dogs?", "none"])
    learned = [part for part in parts if part.learned]
    assert [part.text.strip() for part in learned if part.kind != END] == ["two", "none"]
    assert all(part.text[0] == " " for part in learned if part.kind != END) == (name != "plain")
    assert [part.kind for part in learned].count(END) == (0 if name == "plain" else 2)


def test_llama_2_starts_every_round_again():
    kinds = [part.kind for part in get_template("llama_2").render(["a", "b", "c", "d", "e", None])]
    assert kinds.count(START) == 2


def test_plain_keeps_only_images_of_a_question():
    parts = get_template("plain").render(["Describe <image> briefly.", "A bus."])
    assert [part.text for part in parts] == ["<image>", "A bus.\n"]
    assert get_template("plain").render(["Unpack <vistok>1-2</vistok> now.", None])[0].text == "<vistok>1-2</vistok>"
    assert get_template("plain").render(["no picture", None])[0].text == "no picture"


def test_braces_are_words():
    text = "".join(part.text for part in get_template("vicuna_v1").render(["{question} {0}", "{answer}"]))
    assert "USER: {question} {0} ASSISTANT: {answer}</s>" in text


def test_errors_say_what_is_wrong(byte_level):
    with pytest.raises(ValueError, match="template is 'vicuna'; known: vicuna_v1"):
        get_template("vicuna")
    with pytest.raises(ValueError, match="got 0 turns"):
        rounds([])
    with pytest.raises(ValueError, match="answers to all questions but the last"):
        rounds(["a", None, "b", "c"])
    with pytest.raises(ValueError, match="no chat template"):
        get_template("chat")
