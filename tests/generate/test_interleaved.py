"""Conversations with pictures in the answers: batches, exact blocks, chat, pages."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.generate.chat import Chat, split_line
from unicode.generate.images import GenerationConfig
from unicode.generate.interleaved import ChatSampler, Dialogue, read_conversations, sample_dialogues, write_pages
from unicode.generate.sampling import Sampling
from unicode.ids.text import split_runs, write_run
from unicode.images.lookup import ImageLookup


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


@pytest.fixture
def source(tmp_path):
    turns = [{"from": who, "value": value} for who, value in [("human", "Draw a bus."), ("gpt", "x"), ("human", "And now?"), ("gpt", "y")]]
    records = [{"id": f"c{number}", "conversations": turns} for number in range(4)]
    (tmp_path / "f.json").write_text(json.dumps([*records, {"id": "bad"}, {"id": "tags", "image": "a.png", "conversations": turns}]))
    return tmp_path / "f.json"


def test_answers_do_not_depend_on_the_batch_and_hold_complete_pictures(eager, source):
    sampler = ChatSampler(eager, words=Sampling(1.5), num_tokens=60, max_pictures=2)
    together, alone = (sample_dialogues(sampler, read_conversations(source), seed=1, batch_size=size) for size in (4, 1))
    assert [one.turns for one in together] == [one.turns for one in alone]
    assert [len(one.turns) for one in together] == [4, 4, 4, 4, 0, 0]
    assert "record 4" in together[4].error and "1 images" in together[5].error
    runs = [piece.ids for one in together for turn in one.turns for piece in split_runs(turn) if piece.ids is not None]
    assert runs and all(len(run) == 20 and np.isin(run, eager.images.row_ids.numpy()).all() for run in runs)


def test_a_conversation_that_grows_too_long_says_so(eager):
    sampler = ChatSampler(eager, words=Sampling(1.5), num_tokens=500)
    (one,) = sample_dialogues(sampler, [Dialogue("a", ("word " * 40,) * 3)])
    assert "no room in the model's context of 512" in one.error


def test_a_private_picture_stays_private(eager, tmp_path):
    (tmp_path / "public").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "secret.png")
    asked = [Dialogue("a", ("<image>\nWhat?",), images=(key,)) for key in ("../secret.png", str(tmp_path / "secret.png"))]
    found = sample_dialogues(ChatSampler(eager, num_tokens=4), asked, pictures=ImageLookup([tmp_path / "public"]))
    assert all("outside the image folders" in one.error and not one.turns for one in found)


@pytest.mark.parametrize("given", [{"guidance": 2.0}, {"candidates": 2}])
def test_guidance_and_candidates_are_for_single_pictures(eager, given):
    with pytest.raises(ValueError, match="both are for a picture drawn by itself, not in an answer; set them to 1"):
        ChatSampler(eager, pictures=Sampling(**given)).answer([["Draw."]], [[]], seeds=[0])


def test_pages(drawing_model, tmp_path):
    ids = drawing_model.images.row_ids[:20].numpy()
    answer = f"See <script>*x*</script>\x1b[2J: {write_run(ids)} and {write_run(ids[:3])}"
    one = Dialogue("<b>first", turns=["[a](http://x)", answer], references=("R",), error="too long")
    write_pages(drawing_model, tmp_path, [one], title="A & B")
    html, markdown = (tmp_path / "page.html").read_text(), (tmp_path / "page.md").read_text()
    assert "A &amp; B" in html and "&lt;b&gt;first" in html and "See &lt;script&gt;" in html and "Content-Security-Policy" in html
    assert "<script" not in html and "\x1b" not in html + markdown and "3 ids that are no complete picture" in html
    assert '<img src="pictures/0000-_b_first-1-0.png"' in html and "![picture of the model](pictures/0000-_b_first-1-0.png)" in markdown
    assert r"\<script\>\*x\*" in markdown and r"\[a\]\(http" in markdown and r"## \<b\>first" in markdown
    assert Image.open(tmp_path / "pictures" / "0000-_b_first-1-0.png").size == (16, 16)
    (line,) = [json.loads(line) for line in (tmp_path / "conversations.jsonl").read_text().splitlines()]
    assert line == {"id": "<b>first", "turns": one.turns, "error": "too long"}


def test_chat(eager, tmp_path):
    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "a b.png")
    chat = Chat(eager, GenerationConfig(guidance=2.0), out=tmp_path / "out", num_tokens=40, word_temperature=1.0)
    chat.say(f'"{tmp_path / "a b.png"}" What is it?')
    assert chat.turns[0] == "<image>\nWhat is it?" and len(chat.contents) == 1
    chat.say("what's more?")
    assert len(chat.turns) == 4
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / f"{chat.count:04d}.png").write_bytes(b"of another process")
    path = chat.say("/draw a red circle")
    assert (tmp_path / "out" / f"{chat.count - 2:04d}.png").read_bytes() == b"of another process"
    assert Image.open(path).size == (16, 16)
    assert "broken" in chat.show(write_run([1, 2])) and ".png" in chat.show(write_run(eager.images.row_ids[:20].tolist()))
    assert chat.show("a\x1b]0;title\x07b\nc") == r"a\x1b]0;title\x07b" + "\nc"
    chat.say("/new")
    assert not chat.turns
    with pytest.raises(ValueError, match=r"none\.png: missing file"):
        chat.say("none.png what?")
    with pytest.raises(ValueError, match="the prompt is empty"):
        chat.say("/draw")
    assert split_line("look at x.jpg, please") == ("look at x.jpg, please", [])
