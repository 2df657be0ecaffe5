"""A tokenizer's own chat template: the text it prints, cut exactly, whatever it does to the turns."""

import pickle
from copy import deepcopy

import pytest

from unicode.llm.template import END, ChatTemplate, get_template

TURNS = ["What is it?", "A red bus.", "Sure?", "Yes."]


def messages(turns):
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)]


def test_prints_what_the_library_prints(text_tokenizer):
    parts = get_template("chat", text_tokenizer).render(TURNS)
    assert "".join(part.text for part in parts) == text_tokenizer.apply_chat_template(messages(TURNS), tokenize=False)
    learned = [part.text for part in parts if part.learned]
    end = text_tokenizer.eos_token
    assert [text.strip() for text in learned] == ["A red bus.", end, "Yes.", end]
    assert [part.kind == END for part in parts if part.learned] == [False, True, False, True]


def test_a_prompt_is_the_beginning_of_what_was_learned(text_tokenizer):
    template = get_template("chat", text_tokenizer)
    whole, prompt = template.render(TURNS), template.render(TURNS[:3])
    assert prompt == whole[: len(prompt)]
    assert whole[len(prompt)].learned
    printed = text_tokenizer.apply_chat_template(messages(TURNS[:3]), tokenize=False, add_generation_prompt=True)
    assert "".join(part.text for part in prompt) == printed.rstrip(" ")


def test_a_template_that_strips_turns_strips_them_here_too(legacy):
    text = "".join(part.text for part in get_template("chat", legacy).render(["  a  ", "  b  "]))
    assert text == legacy.apply_chat_template(messages(["  a  ", "  b  "]), tokenize=False)


def test_turns_without_strip_stay_as_they_are(byte_level):
    text = "".join(part.text for part in get_template("chat", byte_level).render(["  a \n", " b  "]))
    assert text == byte_level.apply_chat_template(messages(["  a \n", " b  "]), tokenize=False)


def test_thoughts_of_earlier_turns_do_no_harm(byte_level):
    """A template that treats the last answer in its own way gives a prompt in the same way."""
    tokenizer = deepcopy(byte_level)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if loop.last and m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    )
    template = get_template("chat", tokenizer)
    text = "".join(part.text for part in template.render(TURNS[:3]))
    assert text.endswith("Sure?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert text.count("<think>") == 1


def test_end_token_is_the_templates_own(byte_level):
    tokenizer = deepcopy(byte_level)
    tokenizer.eos_token = "<|endoftext|>"
    template = get_template("chat", tokenizer)
    assert template.end_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id


def test_travels_to_workers(byte_level):
    template = pickle.loads(pickle.dumps(get_template("chat", byte_level)))
    assert template.render(TURNS) == get_template("chat", byte_level).render(TURNS)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template; choose vicuna_v1"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "ends an answer with no special token"),
        ("{{ messages[0].content }}<|im_end|>", "does not print every turn once"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}", "does not print every turn once"),
        ("{{ raise_exception('only for tools') }}", "cannot be rendered .only for tools"),
    ],
)
def test_unfit_templates_are_refused(byte_level, template, message):
    tokenizer = deepcopy(byte_level)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        ChatTemplate(tokenizer)
