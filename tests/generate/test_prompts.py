"""Prompts of every form; bad lines say where they are and let the others go on."""

import json
from pathlib import Path

import pytest

from unicode.generate.drawing_tasks import read_prompts
from unicode.generate.images import FREE_QUESTION
from unicode.images.shapes import ShapesConfig, find_scene


def test_lines_of_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeffa red bus\n\n  a {blue} bus \n\n")
    first, empty, last = read_prompts(str(path))
    assert (first.id, first.text, last.id, last.text) == ("000001", "a red bus", "000003", "a {blue} bus")
    assert last.request(seed=0).question == 'Draw a picture of "a {blue} bus".'
    assert last.request(seed=0, template="{caption}").question == "a {blue} bus"
    with pytest.raises(ValueError, match=r"a\.txt, line 2: the prompt is empty"):
        empty.request(seed=0)


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        '{"id": 7, "prompt": "a bus", "seed": 3}', '{"caption": "a cat"}', "{", '{"id": "x"}', '{"id": "7", "text": "again"}',
        '{"id": "../up", "text": "a dog"}', '{"id": "e", "prompt": " "}', "",
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    prompts = read_prompts(str(path))
    assert [(one.id, one.text) for one in prompts[:2]] == [("7", "a bus"), ("000002", "a cat")]
    faults = [one.error for one in prompts[2:]]
    for fault, word in zip(faults, ["no JSON", "expected", "'7' is that of", "cannot name a picture", "empty"], strict=True):
        assert word in fault
    assert len({one.id for one in prompts}) == len(prompts)
    assert prompts[0].request(seed=1).seed == prompts[0].request(seed=2).seed != prompts[0].request(seed=1, sample=1).seed
    assert prompts[1].request(seed=1).seed != prompts[1].request(seed=2).seed


def test_conversations(tmp_path):
    def record(name, human, gpt, **fields):
        return {"id": name, **fields, "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]}

    records = [
        record("caption", "<image>\nDescribe it.", "A  red bus.", image="a/b.jpg"),
        record("asked", 'Paint "a red bus".', "<vistok>1-2-3</vistok>", task="text_to_image"),
        record("row", "<vistok>1</vistok> Next?", "<vistok>2</vistok>", task="next_row"),
        record("seen", "<image> Change it.", "<vistok>2</vistok>", image="a.jpg"),
        {"id": "none"},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records))
    caption, asked, *bad = read_prompts(str(path))
    assert caption.request(seed=0).question == 'Draw a picture of "A red bus.".' and caption.reference == "a/b.jpg"
    assert asked.request(seed=0).question == 'Paint "a red bus".'
    for prompt, word in zip(bad, ["task 'next_row'", "--reference", "no conversation"], strict=True):
        assert word in prompt.error and f"'{prompt.id}'" in prompt.where


def test_the_world():
    world = ShapesConfig(image_size=16)
    prompts = read_prompts("shapes:val", world=world, limit=20)
    assert len(prompts) == 20 and prompts[3].id == "val/0000003"
    for prompt in prompts:
        scene = find_scene(world, prompt.reference)
        assert all(word in prompt.text.lower() for thing in scene.things for word in (thing.colour, thing.shape, thing.place))
    assert len({prompt.text.split(" ")[0] for prompt in prompts}) > 2, "the wording varies"
    assert prompts == read_prompts("shapes:val", world=world, limit=20)


def test_nothing_in_particular():
    prompts = read_prompts("unconditional:5", limit=3)
    assert [one.request(seed=0).question for one in prompts] == [FREE_QUESTION] * 3
    assert len({one.request(seed=0).seed for one in prompts}) == 3


def test_typed_prompts_name_what_they_describe(tmp_path):
    (tmp_path / "typed.txt").write_text("a red apple\t1f34e\nplain\n")
    prompts = read_prompts(str(tmp_path / "typed.txt"))
    assert [(prompt.text, prompt.reference) for prompt in prompts] == [("a red apple", "1f34e"), ("plain", "")]


def test_scenes_in_held_out_words():
    seen, held = (read_prompts(f"shapes:{name}", limit=20) for name in ("val", "held"))
    assert [one.reference for one in seen] == [one.reference for one in held]
    assert not {one.text for one in seen} & {one.text for one in held}


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.csv", "a", ValueError, "no known format; known: .txt"),
        ("a.txt", None, FileNotFoundError, "no file of prompts"),
        ("a.txt", "\n", ValueError, "holds no prompts"),
        ("a.json", "{}", ValueError, "not a JSON list|list"),
        ("shapes:test", None, ValueError, "splits train and val"),
    ],
)
def test_bad_sources(tmp_path, name, content, error, message):
    path = name if ":" in name else str(tmp_path / name)
    if content is not None:
        Path(path).write_text(content)
    with pytest.raises(error, match=message):
        read_prompts(path)
