"""Runs of ids in text: there and back, and every fault named with its place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unicode.ids.text import read_run, split_runs, write_run

IDS = st.lists(st.integers(0, 151_000), min_size=1, max_size=50)
WORDS = st.text(st.characters(exclude_characters="<>", exclude_categories=("Cs",)), max_size=10)


@given(IDS)
def test_one_run_goes_there_and_back(ids: list[int]) -> None:
    text = write_run(ids)
    assert read_run(text).tolist() == ids
    assert write_run(np.array(ids, dtype=np.int32)) == text
    assert write_run(torch.tensor(ids).numpy()) == text


@settings(deadline=None)
@given(st.lists(st.one_of(WORDS, IDS), max_size=6))
def test_turns_are_cut_without_loss(parts: list[str | list[int]]) -> None:
    text = "".join(part if isinstance(part, str) else write_run(part) for part in parts)
    pieces = split_runs(text)
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ids.tolist() for piece in pieces if piece.ids is not None] == [part for part in parts if isinstance(part, list)]


def test_the_form_is_the_published_one() -> None:
    assert write_run([12, 7, 0]) == "<vistok>12-7-0</vistok>"
    pieces = split_runs("Finish <vistok>1-2</vistok>.")
    assert [piece.text for piece in pieces] == ["Finish ", "<vistok>1-2</vistok>", "."]
    assert split_runs("") == []


def test_empty_runs_only_where_allowed() -> None:
    assert read_run("<vistok></vistok>", allow_empty=True).shape == (0,)
    with pytest.raises(ValueError, match="empty run"):
        read_run("<vistok></vistok>")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab<vistok>1-2", "character 2: <vistok> is never closed"),
        ("ab1-2</vistok>", "character 5: </vistok> without"),
        ("<vistok>1<vistok>2</vistok>", "character 9: <vistok> inside"),
        ("<vistok>1-x-2</vistok>", "character 10: 'x' is not an id"),
        ("<vistok>1--2</vistok>", "character 10: '' is not an id"),
        ("<vistok>1-2-</vistok>", "character 12: '' is not an id"),
        ("<vistok>1 - 2</vistok>", "character 8: '1 ' is not an id"),
        ("<vistok>01-2</vistok>", "character 8: '01' is not an id"),
        ("<vistok>1-٣</vistok>", "character 10: '٣' is not an id"),
        ("<vistok>1-99999999999999999999</vistok>", "is not an id"),
    ],
)
def test_faults_name_record_and_position(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        split_runs(text, where="record 17 (id 'abc'), turn 2")
    assert str(caught.value).startswith("record 17 (id 'abc'), turn 2, ")


@pytest.mark.parametrize("ids", [[-1, 2], [1.5], [[1, 2]]])
def test_only_ids_are_written(ids: list) -> None:
    with pytest.raises(ValueError, match="a run holds"):
        write_run(ids)


def test_read_run_wants_nothing_beside_the_run() -> None:
    with pytest.raises(ValueError, match="nothing else"):
        read_run("see <vistok>1</vistok>")
