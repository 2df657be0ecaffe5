"""Pieces decode to themselves, special tokens are only what the template says, and joined pieces are what the tokenizer itself gives."""

import pytest

from unicode.llm.template import AFTER_SPECIAL, INSIDE, TEXT_START, text_encoder

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
    joined = encoder.encode(pieces[0], place=TEXT_START) + [index for piece in pieces[1:] for index in encoder.encode(piece)]
    assert joined == text_tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]


def test_habits_of_the_tokenizer_are_kept_behind_special_tokens(text_tokenizer):
    encoder, end = text_encoder(text_tokenizer), text_tokenizer.eos_token
    own = text_tokenizer(f"dog{end}USER: a dog", add_special_tokens=False)["input_ids"]
    mine = [*encoder.encode("dog", place=TEXT_START), encoder.eos_id, *encoder.encode("USER: a dog", place=AFTER_SPECIAL)]
    assert mine == own
    assert encoder.encode(f"dog{end}USER: a dog", place=TEXT_START, control=True) == own


def test_special_tokens_only_in_control_pieces(byte_level):
    encoder = text_encoder(byte_level)
    start = byte_level.convert_tokens_to_ids("<|im_start|>")
    assert encoder.encode("<|im_start|>user", control=True)[0] == start
    assert start not in encoder.encode("<|im_start|>user")


def test_start_token_only_where_it_is_a_habit(byte_level, legacy):
    assert text_encoder(byte_level).bos_id is None
    assert text_encoder(legacy).bos_id == 1


def test_only_the_first_piece_gets_the_space(legacy):
    encoder = text_encoder(legacy)
    spelled = [legacy.convert_ids_to_tokens(encoder.encode("dog", place=place))[0][0] for place in (TEXT_START, AFTER_SPECIAL, INSIDE)]
    assert spelled == ["▁", "▁", "d"]


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
