"""Records: what is taken apart, what is refused and why, which paths are keys."""

from typing import Any

import pytest

from unicode.annotations import records as conversation
from unicode.annotations.records import RefusedError, image_key, make_record, parse_record


def turns(*values: str, roles: tuple[str, ...] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": roles[number % len(roles)], "value": value} for number, value in enumerate(values)]


def test_a_record_is_taken_apart() -> None:
    conversations = turns("<image> and <image>?", "Two.", "Sure?", "Yes.")
    parsed = parse_record({"id": 7, "image": ["a/1.jpg", "./b//2.jpg"], "conversations": conversations})
    assert parsed.id == "7"
    assert parsed.images == ("a/1.jpg", "b/2.jpg")
    assert parsed.turns == ("<image> and <image>?", "Two.", "Sure?", "Yes.")


def test_id_stands_in() -> None:
    assert parse_record({"image": "a.jpg", "conversations": turns("<image>", "x")}).id == "a.jpg"
    first, second = (parse_record({"conversations": turns(text, "x")}).id for text in ("one", "two"))
    assert len(first) == 16 and first != second


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ("text", conversation.NO_CONVERSATIONS, "of type str"),
        (None, conversation.NO_CONVERSATIONS, "of type NoneType"),
        ({}, conversation.NO_CONVERSATIONS, "None"),
        ({"conversations": []}, conversation.NO_CONVERSATIONS, "[]"),
        ({"conversations": "hello"}, conversation.NO_CONVERSATIONS, "hello"),
        ({"conversations": ["hello", "you"]}, conversation.MALFORMED_TURNS, "turn 0"),
        ({"conversations": [{"from": "human"}]}, conversation.MALFORMED_TURNS, "turn 0"),
        ({"conversations": [*turns("a"), {"from": "gpt", "value": 3}]}, conversation.MALFORMED_TURNS, "turn 1"),
        ({"conversations": turns("a", "b", "c")}, conversation.MALFORMED_TURNS, "no answer"),
        ({"conversations": turns("a", "b", roles=("gpt", "human"))}, conversation.MALFORMED_TURNS, "turn 0 is from gpt"),
        ({"conversations": turns("a", "b", roles=("human",))}, conversation.MALFORMED_TURNS, "turn 1 is from human"),
        ({"conversations": turns("a", "b", roles=("system", "gpt"))}, conversation.UNKNOWN_ROLE, "'system'"),
        ({"conversations": turns(" ", "b")}, conversation.MALFORMED_TURNS, "turn 0, a question, is empty"),
        ({"conversations": turns("a", "")}, conversation.MALFORMED_TURNS, "an answer is empty"),
        ({"image": "a.jpg", "conversations": turns("<image>", " ")}, conversation.NO_CAPTION, "an answer is empty"),
        ({"image": "a.jpg", "conversations": turns("what?", "b")}, conversation.TAG_MISMATCH, "0 <image>"),
        ({"conversations": turns("<image> what?", "b")}, conversation.TAG_MISMATCH, "1 <image> in the questions, 0 images"),
        ({"image": ["a.jpg"], "conversations": turns("<image> <image>", "b")}, conversation.TAG_MISMATCH, "2 <image>"),
        ({"conversations": turns("what?", "see <image>")}, conversation.TAG_MISMATCH, "in an answer"),
        ({"conversations": turns("what is <vistok>?", "b")}, conversation.RESERVED_TAG, "vistok"),
        ({"conversations": turns("what?", "</vistok>")}, conversation.RESERVED_TAG, "vistok"),
        ({"image": 3, "conversations": turns("<image>", "b")}, conversation.BAD_IMAGE, "3"),
        ({"image": [""], "conversations": turns("<image>", "b")}, conversation.BAD_IMAGE, "''"),
        ({"image": "../a.jpg", "conversations": turns("<image>", "b")}, conversation.OUTSIDE_ROOT, "../a.jpg"),
    ],
)
def test_refused(record: Any, reason: str, detail: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_record(record)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


@pytest.mark.parametrize(
    ("path", "key"),
    [("a/b.jpg", "a/b.jpg"), ("./a//b.jpg", "a/b.jpg"), ("a/../b.jpg", "b.jpg"), ("a\\b.jpg", "a/b.jpg"), ("..a.jpg", "..a.jpg")],
)
def test_keys(path: str, key: str) -> None:
    assert image_key(path) == key


@pytest.mark.parametrize("path", ["/etc/x", "..", ".", "../x", "a/../../x", "C:\\x", "c:/x", "\\\\host\\x", "//host/x", "a/..", "a\0b"])
def test_paths_that_leave_the_root(path: str) -> None:
    with pytest.raises(RefusedError, match="leaves the root"):
        image_key(path)


def test_caption_needs_one_image_and_one_answer() -> None:
    record = {"image": "a.jpg", "conversations": turns("<image>", " a  bus\nin red ")}
    assert parse_record(record).caption == "a bus in red"
    for bad, reason in (
        ({"conversations": turns("a", "b")}, conversation.NO_IMAGE),
        ({"image": ["a.jpg", "b.jpg"], "conversations": turns("<image><image>", "b")}, conversation.NO_CAPTION),
        ({"image": "a.jpg", "conversations": turns("<image>", "b", "c", "d")}, conversation.NO_CAPTION),
    ):
        with pytest.raises(RefusedError) as caught:
            _ = parse_record(bad).caption
        assert caught.value.reason == reason


def test_our_record() -> None:
    made = make_record("7", conversation.TEXT_ONLY, ["a", "b"], layout="x")
    assert made == {"id": "7", "task": "text_only", "layout": "x", "conversations": turns("a", "b")}
    assert list(made) == ["id", "task", "layout", "conversations"]
