"""Templates print what LLaVA and the tokenizer print, only answers are learned, and text is encoded as the tokenizer encodes it."""

import json
import pickle
from copy import deepcopy
from pathlib import Path

import pytest

from unicode.llm.template import END, START, TEMPLATES, ChatTemplate, get_template, rounds, text_encoder

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


def test_a_template_may_treat_the_last_answer_in_its_own_way(byte_level):
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


TEXTS = (" No", "No", "  two  spaces ", "\nWhat?\n\n", "naïve 漢字 😀", "", " ", "</s> <image_start> <|im_end|> <s>", "a\tb", "don't")


@pytest.mark.parametrize("text", TEXTS)
def test_a_piece_decodes_to_itself(text_tokenizer, text):
    encoder = text_encoder(text_tokenizer)
    ids = encoder.encode(text)
    assert encoder.decode(ids) == text
    assert not encoder.special_ids & set(ids)


def test_pieces_join_to_what_the_tokenizer_gives(text_tokenizer):
    encoder = text_encoder(text_tokenizer)
    pieces = ("A chat between a curious user. USER: Is there a dog? ASSISTANT:", " No, two people", " and a cat.")
    joined = encoder.encode(pieces[0], prefix=True) + [index for piece in pieces[1:] for index in encoder.encode(piece)]
    assert joined == text_tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]


def test_a_space_behind_special_tokens_is_added_as_the_tokenizer_does(text_tokenizer):
    encoder, end = text_encoder(text_tokenizer), text_tokenizer.eos_token
    own = text_tokenizer(f"dog{end}USER: a dog", add_special_tokens=False)["input_ids"]
    mine = [*encoder.encode("dog", prefix=True), text_tokenizer.eos_token_id]
    mine += encoder.encode("USER: a dog", prefix=encoder.prefix_after_special)
    assert mine == own
    assert encoder.encode(f"dog{end}USER: a dog", prefix=True, control=True) == own


def test_special_tokens_only_in_control_pieces(byte_level):
    encoder = text_encoder(byte_level)
    start = byte_level.convert_tokens_to_ids("<|im_start|>")
    assert encoder.encode("<|im_start|>user", control=True)[0] == start
    assert start not in encoder.encode("<|im_start|>user")


def test_a_start_token_only_where_the_tokenizer_adds_one(byte_level, legacy):
    assert text_encoder(byte_level).bos_id is None
    assert text_encoder(legacy).bos_id == 1


def test_only_the_first_piece_gets_the_space(legacy):
    encoder = text_encoder(legacy)
    spelled = [legacy.convert_ids_to_tokens(encoder.encode("dog", prefix=prefix))[0][0] for prefix in (True, False)]
    assert spelled == ["▁", "d"] and encoder.prefix_after_special


def test_added_tokens_are_seen(legacy):
    from copy import deepcopy

    tokenizer = deepcopy(legacy)
    before = text_encoder(tokenizer)
    assert text_encoder(tokenizer) is before
    tokenizer.add_tokens(["<image_start>"], special_tokens=True)
    assert tokenizer.convert_tokens_to_ids("<image_start>") in text_encoder(tokenizer).special_ids
    assert text_encoder(tokenizer).digest != before.digest


def test_unfit_tokenizers_are_refused(byte_level):
    from copy import deepcopy

    tokenizer = deepcopy(byte_level)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token; set eos_token"):
        text_encoder(tokenizer)
    with pytest.raises(ValueError, match=r"is a object without a tokenizer\.json"):
        type(text_encoder(byte_level))(object())
