"""Which tokens are no pieces of ordinary text, for the two ways in which language models spell bytes."""

import pytest

from unicode.llm.vocabulary import BYTE, SPECIAL, UNUSED, Vocabulary, first_line, is_raw_byte, read_vocabulary, spells_bytes


def vocabulary(*tokens: str, **marked: set[int]) -> Vocabulary:
    return Vocabulary(dict(enumerate(tokens)), {reason: frozenset(ids) for reason, ids in marked.items()})


def test_sentencepiece_spelling():
    unfit = vocabulary("<unk>", "<s>", "<0x0A>", "<0xFF>", "▁", "▁red", "é", "Ġ", "a", "▁▁", **{SPECIAL: {0, 1}}).unfit()
    assert unfit == {SPECIAL: [0, 1], BYTE: [2, 3, 4], UNUSED: []}


def test_byte_level_spelling():
    unfit = vocabulary("!", "~", "a", "Ġ", "Ċ", "é", "Ġred", "éĠ").unfit()
    assert unfit == {SPECIAL: [], BYTE: [3, 4, 5], UNUSED: []}


def test_spelling_is_told_by_the_space():
    assert spells_bytes(["Ġ", "a"])
    assert not spells_bytes(["Ġ", "▁"])
    assert not spells_bytes(["a"])


@pytest.mark.parametrize(
    "token", ["<unused12>", "[unused3]", "<|reserved_special_token_5|>", "<reserved_7>", "<extra_id_0>", "<|pad|>", "madeupword0001"]
)
def test_reserved_names(token):
    assert vocabulary(token, "red").unfit()[UNUSED] == [0]


@pytest.mark.parametrize("token", ["unused", "reserved", "padding", "[", "<a>", "</p>"])
def test_ordinary_words_stay(token):
    assert not any(vocabulary(token).unfit().values())


def test_an_id_appears_under_its_first_reason_only():
    unfit = vocabulary("<0x00>", "<unused0>", **{SPECIAL: {0}, BYTE: {1}}).unfit()
    assert unfit == {SPECIAL: [0], BYTE: [1], UNUSED: []}


@pytest.mark.parametrize("token", ["", " ", "\n", "<0x41>"])
def test_white_space_and_fallback_bytes_in_any_spelling(token):
    assert is_raw_byte(token, byte_level=False)


def test_folder_without_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="no tokenizer that opens"):
        read_vocabulary(tmp_path)


def test_first_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 999))) == 160
