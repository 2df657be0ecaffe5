"""A preview shows what is learned and what is not, images as their length."""

import io

import pytest

from unicode.ids.layout import Layout
from unicode.llm.examples import GREEN, GREY, RESET, ExampleBuilder, format_example, preview
from unicode.llm.template import get_template
from unicode.llm.vocabulary import Markers

IDS = list(range(100, 120))


@pytest.fixture
def builder(byte_level) -> ExampleBuilder:
    layout = Layout("hierarchical", ((2, 2), (4, 4)))
    return ExampleBuilder(get_template("plain"), byte_level, Markers(3, 4, 1, 2), layout, 500)


def test_brackets_around_what_is_learned(builder, byte_level):
    names = byte_level.convert_ids_to_tokens([3, 4, 1, 2])
    example = builder.build(["<image>", "A bus <image> here"], [IDS, IDS])
    assert format_example(example, byte_level) == f"{names[0]}(20 ids){names[1]}⟦A bus {names[0]}(20 ids){names[1]} here\n⟧"
    compressed = builder.build(["<image>", "ok"], [IDS], input_mode="sum")
    assert format_example(compressed, byte_level) == f"{names[2]}(4 cells){names[3]}⟦ok\n⟧"


def test_colours(builder, byte_level):
    example = builder.build(["a", "b"])
    assert format_example(example, byte_level, colour=True) == f"{GREY}a{RESET}{GREEN}b\n{RESET}"


def test_branches_are_set_apart(builder, byte_level):
    example = builder.build(["<image>", "a", "no picture", "b"], [IDS], isolate_turns=True)
    assert format_example(example, byte_level).endswith("\n--- turn 1 ---\n⟦a\n⟧\n--- turn 2 ---\n⟦b\n⟧")


def test_printing(builder, byte_level):
    stream = io.StringIO()
    preview((builder.build(["a", "b"], task="text_only") for _ in range(9)), byte_level, count=2, stream=stream)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "=== 0: text_only, 3 tokens, 2 words or marks and 0 image ids learned"
    assert sum(line.startswith("===") for line in lines) == 2
