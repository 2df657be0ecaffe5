"""Exactly the assistant's words, ids and end tokens are learned: for every template, every kind of tokenizer, random conversations."""

import random
import re
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from unicode.ids.layout import Layout
from unicode.ids.text import write_run
from unicode.llm.examples import GREEN, GREY, IGNORED, RESET, Example, ExampleBuilder, format_example, preview, split_branches
from unicode.llm.template import TEMPLATES, get_template, text_encoder
from unicode.llm.vocabulary import Markers, choose_markers

LAYOUT = Layout("hierarchical", ((2, 2), (4, 4)))
FIRST_ID, LAST_ID = 60, 240  # ids of images in these tests: tokens of the text too
WORDS = "a red bus No 2 USER: ASSISTANT: [/INST] </s> <s> <|im_end|> <image_start> naïve 漢字 😀 don't".split()
SPACES = [" ", "  ", "\n", "\t", " \n\n", ", ", ". "]
NAMES = (*TEMPLATES, "chat")


def random_ids(rng: random.Random) -> list[int]:
    return [rng.randint(FIRST_ID, LAST_ID) for _ in range(LAYOUT.prefix(rng.randint(1, 2)))]


def random_words(rng: random.Random) -> str:
    words = "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 6)))
    return words.strip() if rng.random() < 0.7 else words


def random_turn(rng: random.Random, runs: list[list[int]], *, images: float) -> str:
    """Words, and perhaps an image: as a tag (its ids are appended to `runs`) or as a run of ids."""
    text = random_words(rng)
    if rng.random() >= images:
        return text
    image, ids = "<image>", random_ids(rng)
    if rng.random() < 0.5:
        runs.append(ids)
    else:
        image = write_run(ids)
    return rng.choice([f"{image}\n{text}", f"{text} {image}", f"{image}{text}", image])


def random_conversation(rng: random.Random) -> tuple[list[str], list[list[int]]]:
    runs: list[list[int]] = []
    turns = [random_turn(rng, runs, images=0.4 if number % 2 == 0 else 0.2) for number in range(2 * rng.randint(1, 3))]
    return turns, runs


def spell(text: str, runs: list[list[int]], markers: list[str]) -> str:
    """What a turn reads like when every image is spelled as marker, (ids), marker."""
    rest = iter(runs)

    def one(found: re.Match) -> str:
        ids = next(rest) if found.group() == "<image>" else [int(index) for index in re.findall(r"\d+", found.group())]
        return f"{markers[0]}({' '.join(map(str, ids))}){markers[1]}"

    return re.sub(r"<image>|<vistok>[^<]*</vistok>", one, text)


def spell_learned(example: Example, tokenizer) -> str:
    """The learned positions as text."""
    encoder, text, words = text_encoder(tokenizer), "", []
    learned = (example.labels != IGNORED).tolist()
    assert (example.labels[example.labels != IGNORED] == example.input_ids[example.labels != IGNORED]).all()
    for place, (index, image) in enumerate(zip(example.input_ids.tolist(), example.is_image.tolist(), strict=True)):
        before = place and example.is_image[place - 1]
        if not learned[place] or image:
            text, words = text + encoder.decode(words), []
        if learned[place] and image:
            text += f" {index}" if before else f"({index}"
        elif learned[place]:
            text += ")" if before else ""
            words.append(index)
    return text + encoder.decode(words)


@pytest.fixture(scope="module")
def marked(text_tokenizer):
    """Each tokenizer with its markers."""
    tokenizer = deepcopy(text_tokenizer)
    return tokenizer, choose_markers(tokenizer, table_rows=len(tokenizer))


def expected_learned(name: str, turns: list[str], runs: list[list[int]], tokenizer, markers: Markers) -> str:
    marks = tokenizer.convert_ids_to_tokens(list(markers.ids()[:2]))
    spelled, place = [], 0
    for turn in turns:
        count = turn.count("<image>")
        spelled.append(spell(turn, runs[place : place + count], marks))
        place += count
    end = tokenizer.eos_token
    forms = {"plain": "{}\n", "llama_2": " {} " + end, "llava_llama_2": " {} " + end, "vicuna_v1": " {}" + end, "llava_v1": " {}" + end}
    if name != "chat":
        return "".join(forms[name].replace("{}", answer) for answer in spelled[1::2])
    strips = tokenizer.bos_token == "<s>"
    return "".join(f" {answer.strip()} {end}" if strips else f"{answer}{end}" for answer in spelled[1::2])


@pytest.mark.parametrize("name", NAMES)
def test_learned_are_exactly_the_answers(name, marked):
    tokenizer, markers = marked
    builder = ExampleBuilder(get_template(name, tokenizer), tokenizer, markers, LAYOUT, len(tokenizer))
    rng = random.Random(NAMES.index(name))
    for _ in range(300):
        turns, runs = random_conversation(rng)
        example = builder.build(turns, runs, input_mode=rng.choice(["ids", "sum"]))
        assert spell_learned(example, tokenizer) == expected_learned(name, turns, runs, tokenizer, markers)
        assert example.labels[0] == IGNORED
        in_answers = sum(len(re.findall(r"<image>|<vistok>", answer)) for answer in turns[1::2])
        assert int((example.labels == markers.image_start).sum()) == int((example.labels == markers.image_end).sum()) == in_answers


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_the_beginning_of_its_example(name, marked):
    tokenizer, markers = marked
    builder = ExampleBuilder(get_template(name, tokenizer), tokenizer, markers, LAYOUT)
    rng = random.Random(1)
    for _ in range(50):
        turns, runs = random_conversation(rng)
        if "<image>" in turns[-1]:
            continue
        whole, prompt = builder.build(turns, runs), builder.build(turns[:-1], runs)
        assert torch.equal(prompt.input_ids, whole.input_ids[: len(prompt)])
        assert torch.equal(prompt.labels, whole.labels[: len(prompt)])
        assert whole.labels[len(prompt)] != IGNORED


@pytest.fixture
def builder(byte_level) -> ExampleBuilder:
    """vicuna_v1 with markers at the end of the vocabulary."""
    return ExampleBuilder(get_template("vicuna_v1"), byte_level, Markers(500, 501, 502, 503), LAYOUT, 504)


IDS = list(range(100, 120))


def test_an_image_stands_between_markers(builder):
    example = builder.build(["<image>\nWhat?", "A bus."], [IDS], task="image_to_text", images=("a.png",))
    start = example.input_ids.tolist().index(500)
    assert example.input_ids[start + 1 : start + 21].tolist() == IDS
    assert example.input_ids[start + 21] == 501
    assert example.is_image.nonzero().flatten().tolist() == list(range(start + 1, start + 21))
    assert (example.num_image_targets, example.task, example.images) == (0, "image_to_text", ("a.png",))
    assert example.extra_ids.shape == (0, 4) and example.extra_at.shape == (0,)
    assert not example.branch.any() and torch.equal(example.positions(), torch.arange(len(example)))


def test_a_compressed_image_has_one_position_per_cell(builder):
    example = builder.build(["Unpack <image>.", write_run(IDS)], [IDS], input_mode="sum")
    cells = np.array(IDS).reshape(4, 5)
    start = example.input_ids.tolist().index(502)
    assert example.input_ids[start + 1 : start + 6].tolist() == [*cells[:, 0], 503]
    assert torch.equal(example.extra_ids, torch.from_numpy(cells[:, 1:]))
    assert example.extra_at.tolist() == [start + 1 + cell for cell in range(4)]
    assert example.num_image_targets == 20, "answers are written out"
    assert (example.num_text_targets, example.labels.tolist().count(500)) == (2 + 1 + 1, 1)  # markers, a space, the end


@pytest.mark.parametrize("name", NAMES)
def test_an_open_image_is_the_beginning_of_its_example(name, marked):
    tokenizer, markers = marked
    builder = ExampleBuilder(get_template(name, tokenizer), tokenizer, markers, LAYOUT)
    turns = ["<image> Unpack it.", write_run(IDS), "Once more, please."]
    for mode in ("ids", "sum"):
        whole = builder.build([*turns, "<image>"], [IDS, IDS], input_mode=mode)
        for count in (0, 10):
            opened = builder.build(turns, [IDS, np.array(IDS[:count])], input_mode=mode, open_image=True)
            assert opened.input_ids[len(opened) - count - 1] == markers.image_start
            assert opened.input_ids[len(opened) - count :].tolist() == IDS[:count]
            for field in ("input_ids", "is_image", "branch"):
                assert torch.equal(getattr(opened, field), getattr(whole, field)[: len(opened)])
            assert torch.equal(opened.extra_at, whole.extra_at) and torch.equal(opened.extra_ids, whole.extra_ids)


def test_a_part_of_an_image_is_whole_rows(builder):
    assert builder.measure(["<image> go on", "ok"], [IDS[:10]]) == builder.measure(["<image> go on", "ok"], [IDS]) - 10
    with pytest.raises(ValueError, match="run of 7 ids is not whole rows of hierarchical 2x2"):
        builder.build(["<image> go on", "ok"], [IDS[:7]])


def test_a_picture_not_begun_is_nothing(builder):
    assert builder.measure(["Draw <vistok></vistok>a cat", "ok"], []) == builder.measure(["Draw a cat", "ok"], [])


@pytest.mark.parametrize(
    ("turns", "runs", "message"),
    [
        (["<image>", "ok"], [], "1 <image> in the conversation, 0 images"),
        (["no tag", "ok"], [IDS], "0 <image> in the conversation, 1 images"),
        (["<image>", "ok"], [[*IDS[:19], 504]], "range from 100 to 504, but the language model has 504 tokens"),
        (["<image>", "ok"], [[*IDS[:19], 501]], "holds the id of a marker"),
        (["a", None, "b", "c"], [], "answers to all questions but the last"),
    ],
)
def test_misfits_are_named(builder, turns, runs, message):
    with pytest.raises(ValueError, match=message):
        builder.build(turns, runs)


def test_other_misfits_are_named(builder):
    with pytest.raises(ValueError, match="input_mode is 'both'; known: ids, sum"):
        builder.build(["a", "b"], input_mode="both")
    with pytest.raises(ValueError, match="no markers"):
        replace(builder, markers=None).build(["<image>", "b"], [IDS])
    with pytest.raises(ValueError, match="layout of the ids is not known"):
        replace(builder, layout=None).build(["<image>", "b"], [IDS], input_mode="sum")


def test_branches_are_conversations_of_their_own(builder):
    turns = ["<image>\nHow many?", "two", "What colour?", "red", "Sure? ", "yes"]
    example = builder.build(turns, [IDS], isolate_turns=True)
    prefix = int((example.branch == 0).sum())
    assert example.input_ids[prefix - 1] == 501, "the common beginning ends with the image"
    for number, (question, answer) in enumerate([("How many?", "two"), ("What colour?", "red"), ("Sure? ", "yes")], 1):
        alone = builder.build([f"<image>\n{question}", answer], [IDS])
        own = (example.branch == 0) | (example.branch == number)
        assert torch.equal(example.input_ids[own], alone.input_ids)
        assert torch.equal(example.labels[own], alone.labels)
        assert torch.equal(example.positions()[own], torch.arange(len(alone)))
    assert len(example) == builder.measure(turns, [IDS], isolate_turns=True)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (["<image>\na", "b"], None),
        (["a", "b", "c", "d"], None),
        (["<image>\na", "b", "<image> c", "d"], None),
        (["<image>\na", "b", "c", "<vistok>1</vistok>"], None),
        (["a\n<image>", "b", "c", None], [["<image>\na", "b"], ["<image>\nc", None]]),
        (["<image><image>\na", "b", "c", "d"], [["<image>\n<image>\na", "b"], ["<image>\n<image>\nc", "d"]]),
    ],
)
def test_only_turns_that_share_pictures_are_split(turns, expected):
    assert split_branches(turns) == expected


def test_branches_of_a_chat_template(byte_level):
    builder = ExampleBuilder(get_template("chat", byte_level), byte_level, Markers(500, 501, 502, 503), LAYOUT)
    example = builder.build(["<image>\na", "two", "c", "red"], [IDS], isolate_turns=True)
    assert spell_learned(example, byte_level) == "two<|im_end|>red<|im_end|>"
    assert example.branch.unique().tolist() == [0, 1, 2]


def test_branches_behind_bare_images(builder):
    bare = replace(builder, markers=None, bare_images=True)
    example = bare.build(["<image>\na", "two", "c", "red"], [IDS], isolate_turns=True)
    for number, (question, answer) in enumerate([("a", "two"), ("c", "red")], 1):
        alone = bare.build([f"<image>\n{question}", answer], [IDS])
        assert torch.equal(example.input_ids[(example.branch == 0) | (example.branch == number)], alone.input_ids)


IDS = list(range(100, 120))


@pytest.fixture
def plain(byte_level) -> ExampleBuilder:
    return ExampleBuilder(get_template("plain"), byte_level, Markers(3, 4, 1, 2), LAYOUT, 500)


def test_brackets_around_what_is_learned(plain, byte_level):
    names = byte_level.convert_ids_to_tokens([3, 4, 1, 2])
    example = plain.build(["<image>", "A bus <image> here"], [IDS, IDS])
    assert format_example(example, byte_level) == f"{names[0]}(20 ids){names[1]}⟦A bus {names[0]}(20 ids){names[1]} here\n⟧"
    compressed = plain.build(["<image>", "ok"], [IDS], input_mode="sum")
    assert format_example(compressed, byte_level) == f"{names[2]}(4 cells){names[3]}⟦ok\n⟧"


def test_colours(plain, byte_level):
    example = plain.build(["a", "b"])
    assert format_example(example, byte_level, colour=True) == f"{GREY}a{RESET}{GREEN}b\n{RESET}"


def test_branches_are_set_apart(plain, byte_level):
    example = plain.build(["<image>", "a", "no picture", "b"], [IDS], isolate_turns=True)
    assert format_example(example, byte_level).endswith("\n--- turn 1 ---\n⟦a\n⟧\n--- turn 2 ---\n⟦b\n⟧")


def test_printing(plain, byte_level, capsys):
    preview((plain.build(["a", "b"], task="text_only") for _ in range(9)), byte_level, count=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "=== 0: text_only, 3 tokens, 2 words or marks and 0 image ids learned"
    assert sum(line.startswith("===") for line in lines) == 2
