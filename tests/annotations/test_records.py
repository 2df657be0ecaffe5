"""Records: both forms give the same, what is refused and why, which paths are keys."""

from typing import Any

import numpy as np
import pytest

from unicode.annotations import records as conversation
from unicode.annotations.records import RefusedError, image_key, make_record, make_turns, read_record


def llava(record: Any) -> conversation.Record:
    return read_record(record, form="llava")


def turns(*values: str, roles: tuple[str, ...] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": roles[number % len(roles)], "value": value} for number, value in enumerate(values)]


def test_a_record_is_taken_apart() -> None:
    conversations = turns("<image> and <image>?", "Two.", "Sure?", "Yes.")
    parsed = llava({"id": 7, "image": ["a/1.jpg", "./b//2.jpg"], "conversations": conversations})
    assert parsed.id == "7"
    assert parsed.images == ("a/1.jpg", "b/2.jpg")
    assert parsed.turns == ("<image> and <image>?", "Two.", "Sure?", "Yes.")


def test_id_stands_in() -> None:
    assert llava({"image": "a.jpg", "conversations": turns("<image>", "x")}).id == "a.jpg"
    first, second = (llava({"conversations": turns(text, "x")}).id for text in ("one", "two"))
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
        ({"conversations": turns("a", "")}, conversation.MALFORMED_TURNS, "an answer, is empty"),
        ({"image": "a.jpg", "conversations": turns("<image>", " ")}, conversation.NO_CAPTION, "an answer, is empty"),
        ({"image": "a.jpg", "conversations": turns("what?", "b")}, conversation.TAG_MISMATCH, "0 <image>"),
        ({"conversations": turns("<image> what?", "b")}, conversation.TAG_MISMATCH, "1 <image> in the conversation, 0 images"),
        ({"image": ["a.jpg"], "conversations": turns("<image> <image>", "b")}, conversation.TAG_MISMATCH, "2 <image>"),
        ({"image": "a.jpg", "conversations": turns("what?", "see <image>")}, conversation.TAG_MISMATCH, "in an answer"),
        ({"conversations": turns("what is <vistok>?", "b")}, conversation.RESERVED_TAG, "vistok"),
        ({"conversations": turns("what?", "</vistok>")}, conversation.RESERVED_TAG, "vistok"),
        ({"image": 3, "conversations": turns("<image>", "b")}, conversation.BAD_IMAGE, "3"),
        ({"image": [""], "conversations": turns("<image>", "b")}, conversation.BAD_IMAGE, "''"),
        ({"image": "../a.jpg", "conversations": turns("<image>", "b")}, conversation.OUTSIDE_ROOT, "../a.jpg"),
    ],
)
def test_refused(record: Any, reason: str, detail: str) -> None:
    with pytest.raises(RefusedError) as caught:
        llava(record)
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
    assert llava(record).caption == "a bus in red"
    for bad, reason in (
        ({"conversations": turns("a", "b")}, conversation.NO_IMAGE),
        ({"image": ["a.jpg", "b.jpg"], "conversations": turns("<image><image>", "b")}, conversation.NO_CAPTION),
        ({"image": "a.jpg", "conversations": turns("<image>", "b", "c", "d")}, conversation.NO_CAPTION),
    ):
        with pytest.raises(RefusedError) as caught:
            _ = llava(bad).caption
        assert caught.value.reason == reason


def test_our_record() -> None:
    made = make_record("7", conversation.TEXT_ONLY, ["a", "b"], layout="x")
    assert made == {"id": "7", "task": "text_only", "layout": "x", "conversations": turns("a", "b")}
    assert list(made) == ["id", "task", "layout", "conversations"]


def record(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"id": 7, **fields, "conversations": make_turns(texts)}


def test_both_forms() -> None:
    named = read_record(record("<image>\nWhat?", "A bus.", image="a/b.png"))
    assert (named.id, named.task, named.images, named.keys) == ("7", "image_to_text", ("a/b.png",), ("a/b.png",))
    written = read_record(
        record("<vistok>1-2-3</vistok>\nWhat?", "A bus.", task="decompression", input_mode="sum", layout="L", tokenizer="t")
    )
    assert written.turns == named.turns
    assert np.array_equal(written.images[0], [1, 2, 3])
    assert (written.task, written.input_mode, written.layout, written.tokenizer, written.keys) == ("decompression", "sum", "L", "t", ())


def test_tags_and_runs_keep_their_order() -> None:
    read = read_record(record("<image> and <vistok>1</vistok>", "then <image>.", image=["a", "b"]))
    assert read.turns == ("<image> and <image>", "then <image>.")
    assert read.images[0] == "a" and read.images[1].tolist() == [1] and read.images[2] == "b"


def test_a_picture_not_begun_is_nothing() -> None:
    read = read_record(record("Start <vistok></vistok>", "<vistok>5</vistok>"))
    assert read.turns[0] == "Start " and len(read.images) == 1


@pytest.mark.parametrize(
    ("texts", "task"),
    [(("a", "b"), "text_only"), (("a <vistok>1</vistok>", "b"), "image_to_text"), (("draw", "<vistok>1</vistok>"), "text_to_image")],
)
def test_tasks_that_records_do_not_name(texts: tuple[str, ...], task: str) -> None:
    assert read_record(record(*texts)).task == task


def test_first_rounds_keep_their_images() -> None:
    read = read_record(record("<image>a", "b", "<image>c", "d", image=["x", "y"])).first_rounds(1)
    assert (read.turns, read.images) == (("<image>a", "b"), ("x",))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (record("a", " "), "malformed turns: turn 1, an answer, is empty"),
        (record("<image>", "b"), "image tags do not match images: 1 <image> in the conversation, 0 images"),
        (record("a", "b", image="x"), "0 <image> in the conversation, 1 images"),
        (record("<vistok>1-2", "b"), "malformed ids: turn 0, character 0: <vistok> is never closed"),
        (record("<vistok>1--2</vistok>", "b"), "malformed ids"),
        (record("a", "b", task="dance"), "unknown task: 'dance'; known: image_to_text"),
        (record("a", "b", task=["dance"]), "unknown task"),
        (record("a", "b", input_mode="both"), "unknown input_mode: 'both'; known: ids, sum"),
    ],
)
def test_refused_in_both_forms(broken: Any, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        read_record(broken)


def test_prompts_stay_as_written() -> None:
    read = read_record(record("Draw <vistok></vistok>", " <vistok>1--2", image="a.png", task="dance"), form="written")
    assert (read.turns, read.keys, read.task) == (("Draw <vistok></vistok>", " <vistok>1--2"), ("a.png",), "dance")


def test_published_records_are_read() -> None:
    """UniCode-ECCV24's part records begin with an empty run and end with a full stop."""
    assert len(read_record(record("Draw 'a' on from <vistok></vistok>.", "<vistok>1-2</vistok>.")).runs) == 1
