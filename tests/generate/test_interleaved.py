"""Conversations with pictures in the answers: batches, exact blocks, chat, pages."""

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.generate.chat import Chat, split_line
from unicode.generate.images import GenerationConfig, decode_pictures
from unicode.generate.interleaved import ChatSampler, hold_conversations, parse_conversations
from unicode.generate.page import PictureFiles, Turn, write_pages
from unicode.generate.sampling import Sampling
from unicode.ids.text import split_runs, write_run


@pytest.fixture(scope="module")
def eager(drawing_model):
    """The model with start markers as likely as anything else."""
    model, start = drawing_model, drawing_model.markers.image_start
    head = model.lm.get_output_embeddings().weight
    before = head[start].clone()
    with torch.no_grad():
        head[start] = 3 * head[torch.tensor([5, 30, 60])].mean(0)
    yield model
    with torch.no_grad():
        head[start] = before


def conversations():
    turns = [{"from": who, "value": value} for who, value in [("human", "Draw a bus."), ("gpt", "x"), ("human", "And now?"), ("gpt", "y")]]
    records = [{"id": f"c{number}", "conversations": turns} for number in range(4)]
    return parse_conversations([*records, {"id": "bad"}, {"id": "tags", "image": "a.png", "conversations": turns}], source="f.json")


def test_answers_do_not_depend_on_the_batch_and_hold_whole_pictures(eager):
    sampler = ChatSampler(eager, words=Sampling(1.5), num_tokens=60, max_pictures=2)
    asked = conversations()
    seen = [[] for _ in asked]
    together = hold_conversations(sampler, asked, seen, seed=1, batch_size=4)
    alone = hold_conversations(sampler, asked, seen, seed=1, batch_size=1)
    assert [talk.turns for talk in together] == [talk.turns for talk in alone]
    assert [len(talk.turns) for talk in together] == [4, 4, 4, 4, 0, 0]
    assert "record 4" in together[4].error and "1 images" in together[5].error
    runs = [piece.ids for talk in together for turn in talk.turns for piece in split_runs(turn) if piece.ids is not None]
    assert runs and all(len(run) == 20 and np.isin(run, eager.images.row_ids.numpy()).all() for run in runs)


def test_a_conversation_that_grows_too_long_says_so(eager):
    sampler = ChatSampler(eager, words=Sampling(1.5), num_tokens=500)
    turns = [{"from": ("human", "gpt")[number % 2], "value": "word " * 40} for number in range(6)]
    (talk,) = hold_conversations(sampler, parse_conversations([{"id": "a", "conversations": turns}], source="f"), [[]])
    assert "no room in the model's context of 512" in talk.error


def test_guidance_is_for_single_pictures(eager):
    with pytest.raises(ValueError, match="only a picture drawn by itself can be guided"):
        ChatSampler(eager, pictures=Sampling(guidance=2.0)).answer([["Draw."]], [[]], seeds=[0])


def test_pages(drawing_model, tmp_path):
    ids = drawing_model.images.row_ids[:20].numpy()
    files = PictureFiles(drawing_model, tmp_path, decode=lambda row: decode_pictures(drawing_model, row))
    pieces = files.pieces(f"See <this>: {write_run(ids)} and {write_run(ids[:3])}", "name")
    assert [bool(piece.picture) for piece in pieces] == [False, True, False, False] and "3 ids that are no whole picture" in pieces[3].text
    write_pages(tmp_path, "A & B", [("first", [Turn("model", pieces)])])
    html, markdown = (tmp_path / "page.html").read_text(), (tmp_path / "page.md").read_text()
    assert "A &amp; B" in html and "See &lt;this&gt;" in html and '<img src="pictures/name-0.png"' in html
    assert "![picture of the model](pictures/name-0.png)" in markdown
    assert Image.open(tmp_path / "pictures" / "name-0.png").size == (16, 16)


def test_chat(eager, tmp_path):
    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "a b.png")
    chat = Chat(eager, GenerationConfig(guidance=2.0), out=tmp_path / "out", num_tokens=40, word_temperature=1.0)
    chat.say(f'"{tmp_path / "a b.png"}" What is it?')
    assert chat.turns[0] == "<image>\nWhat is it?" and len(chat.contents) == 1
    chat.say("what's more?")
    assert len(chat.turns) == 4
    path = chat.say("/draw a red circle")
    assert Image.open(path).size == (16, 16)
    assert "broken" in chat.show(write_run([1, 2])) and ".png" in chat.show(write_run(eager.images.row_ids[:20].tolist()))
    chat.say("/new")
    assert not chat.turns
    with pytest.raises(ValueError, match=r"none\.png: missing file"):
        chat.say("none.png what?")
    with pytest.raises(ValueError, match="the prompt is empty"):
        chat.say("/draw")
    assert split_line("look at x.jpg, please") == ("look at x.jpg, please", [])
