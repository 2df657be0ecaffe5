"""Strings in one block."""

import pickle

import pytest

from unicode.images.listing import PackedStrings


def test_packed_strings() -> None:
    strings = ["a/b.jpg", "", "käse/日本.png", "x" * 300]
    packed = PackedStrings(iter(strings))
    assert list(pickle.loads(pickle.dumps(packed))) == strings
    assert len(packed) == 4
    assert packed[0] == "a/b.jpg"
    for index in (-1, 4):
        with pytest.raises(IndexError):
            packed[index]
    assert list(PackedStrings([])) == []
