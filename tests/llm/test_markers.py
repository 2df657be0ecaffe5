"""Markers: tokens of their names, else reserved ones, else new ones; never padding or another role."""

from copy import deepcopy

import pytest

from unicode.llm.vocabulary import NAMES, Markers, choose_markers


def test_reserved_tokens_come_first_then_new_ones(byte_level):
    tokenizer = deepcopy(byte_level)
    size = len(tokenizer)
    markers = choose_markers(tokenizer, table_rows=size)
    assert markers.image_start == tokenizer.convert_tokens_to_ids("<|reserved_0|>")
    assert markers.ids()[1:] == markers.added == (size, size + 1, size + 2)
    assert tokenizer.convert_ids_to_tokens(size) == "<image_end>"
    assert tokenizer.convert_tokens_to_ids("<|fim_pad|>") not in markers.ids()


def test_the_same_again_for_a_tokenizer_that_was_saved(byte_level, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = deepcopy(byte_level)
    markers = choose_markers(tokenizer, table_rows=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert choose_markers(again, table_rows=len(byte_level)) == markers
    assert choose_markers(again, table_rows=len(again)).added == ()
    assert len(again) == len(tokenizer)


def test_names_of_the_vocabulary_win(legacy):
    tokenizer = deepcopy(legacy)
    tokenizer.add_tokens(["<reserved_7>", *NAMES], special_tokens=True)
    markers = choose_markers(tokenizer, table_rows=len(tokenizer))
    assert tokenizer.convert_ids_to_tokens(list(markers.ids())) == list(NAMES)
    assert not markers.added


def test_rows_that_a_padded_table_already_has_are_not_added(legacy):
    tokenizer = deepcopy(legacy)
    size = len(tokenizer)
    markers = choose_markers(tokenizer, table_rows=size + 3)
    assert markers.ids() == (size, size + 1, size + 2, size + 3)
    assert markers.added == (size + 3,)


def test_tokens_of_the_chat_template_are_not_taken(byte_level):
    tokenizer = deepcopy(byte_level)
    tokenizer.chat_template += "<|reserved_0|>"
    assert choose_markers(tokenizer, table_rows=len(tokenizer)).image_start >= len(byte_level)


def test_there_and_back():
    markers = Markers(3, 4, 5, 6, added=(6,))
    assert Markers.from_dict(markers.to_dict()) == markers
    with pytest.raises(ValueError, match="markers have the keys"):
        Markers.from_dict({"image_start": 3})
    with pytest.raises(ValueError, match="four different"):
        Markers(3, 3, 5, 6)
