"""Records of both forms give the same sample, and what is wrong with one is said."""

import numpy as np
import pytest

from unicode.annotations.records import RefusedError, make_turns
from unicode.llm.examples import read_sample


def record(*texts: str, **fields) -> dict:
    return {"id": 7, **fields, "conversations": make_turns(texts)}


def test_both_forms():
    named = read_sample(record("<image>\nWhat?", "A bus.", image="a/b.png"))
    assert (named.id, named.task, named.images, named.keys) == ("7", "image_to_text", ("a/b.png",), ("a/b.png",))
    written = read_sample(
        record("<vistok>1-2-3</vistok>\nWhat?", "A bus.", task="decompression", input_mode="sum", layout="L", tokenizer="t")
    )
    assert written.turns == named.turns
    assert np.array_equal(written.images[0], [1, 2, 3])
    assert (written.task, written.input_mode, written.layout, written.tokenizer, written.keys) == ("decompression", "sum", "L", "t", ())


def test_tags_and_runs_keep_their_order():
    sample = read_sample(record("<image> and <vistok>1</vistok>", "then <image>.", image=["a", "b"]))
    assert sample.turns == ("<image> and <image>", "then <image>.")
    assert sample.images[0] == "a" and sample.images[1].tolist() == [1] and sample.images[2] == "b"


def test_a_picture_not_begun_is_nothing():
    sample = read_sample(record("Start <vistok></vistok>", "<vistok>5</vistok>"))
    assert sample.turns[0] == "Start " and len(sample.images) == 1


@pytest.mark.parametrize(
    ("texts", "task"),
    [(("a", "b"), "text_only"), (("a <vistok>1</vistok>", "b"), "image_to_text"), (("draw", "<vistok>1</vistok>"), "text_to_image")],
)
def test_tasks_that_records_do_not_name(texts, task):
    assert read_sample(record(*texts)).task == task


def test_first_rounds_keep_their_images():
    sample = read_sample(record("<image>a", "b", "<image>c", "d", image=["x", "y"])).first_rounds(1)
    assert (sample.turns, sample.images) == (("<image>a", "b"), ("x",))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ([], "no conversations"),
        ({"conversations": []}, "no conversations"),
        ({"conversations": [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "ho"}]}, "malformed turns: turn 0 is from gpt"),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "the last question has no answer"),
        ({"conversations": [{"from": "system", "value": "hi"}]}, "unknown role"),
        (record("a", " "), "malformed turns: turn 1, an answer, is empty"),
        (record("<image>", "b"), "image tags do not match images: 1 <image> in the conversation, 0 images"),
        (record("a", "b", image="x"), "0 <image> in the conversation, 1 images"),
        (record("<image>", "b", image="../x"), "image path leaves the root"),
        (record("<vistok>1-2", "b"), "malformed ids: turn 0, character 0: <vistok> is never closed"),
        (record("<vistok>1--2</vistok>", "b"), "malformed ids"),
        (record("a", "b", task="dance"), "unknown task: 'dance'; known: image_to_text"),
        (record("a", "b", input_mode="both"), "unknown input_mode: 'both'; known: ids, sum"),
    ],
)
def test_what_is_wrong_is_said(broken, reason):
    with pytest.raises(RefusedError, match=reason):
        read_sample(broken)
