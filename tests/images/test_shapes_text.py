"""The world in words: captions determine their scene, every question has the one answer that it comes with."""

import re
from collections import Counter
from itertools import islice
from random import Random

import pytest

from unicode.images.shapes import Scene, ShapesConfig, Thing, draw_scene
from unicode.images.shapes_text import (
    CAPTIONS,
    KINDS,
    QUESTIONS,
    REQUESTS,
    THINGS,
    fact,
    scene_caption,
    scene_questions,
    typed_caption,
    typed_question,
    world_text,
)

WORLDS = [
    ShapesConfig(),
    ShapesConfig(colours=8, shapes=4, sizes=2, max_objects=4),
    ShapesConfig(image_size=64, places=3, colours=8, shapes=6, max_objects=6),
]


def understood(text: str, config: ShapesConfig) -> set[Thing]:
    """Read a caption: nouns and places, each noun beside its own place."""
    places = "|".join(sorted(config.place_names, key=len, reverse=True))
    noun = rf"an? (?:(small|large) )?({'|'.join(config.colour_names)}) ({'|'.join(config.shape_names)})"
    forward = re.findall(rf"{noun}(?: is)? (?:at|in) the ({places})", text, re.IGNORECASE)
    backward = [(*found[1:], found[0]) for found in re.findall(rf"at the ({places}) (?:there )?is {noun}", text, re.IGNORECASE)]
    return {Thing(colour, shape, size or "large", place) for size, colour, shape, place in (backward or forward)}


def answer(text: str, things: tuple[Thing, ...], config: ShapesConfig) -> str:
    """Answer a question of the world by looking at its things."""
    words = text.rstrip("?")
    colour = next((name for name in config.colour_names if re.search(rf"\b{name}\b", words)), None)
    shape = next((name for name in config.shape_names if re.search(rf"\b{name}(s|es)?\b", words)), None)
    place = next((name for name in sorted(config.place_names, key=len, reverse=True) if words.replace(f"the {name}", "") != words), None)
    wanted = {"colour": colour, "shape": shape, "place": place}
    match = [thing for thing in things if all(getattr(thing, name) == value for name, value in wanted.items() if value)]
    if words.startswith("How many"):
        return str(len(match))
    if words.startswith("Is "):
        return "yes" if match else "no"
    assert len(match) == 1, f"'{text}' is about {len(match)} things"
    start = {"What color": "colour", "What is the color": "colour", "What shape": "shape", "Where": "place", "What size": "size"}
    return str(getattr(match[0], next(name for words, name in start.items() if text.startswith(words))))


@pytest.mark.parametrize("config", WORLDS)
def test_captions_determine_their_scene(config: ShapesConfig) -> None:
    rng = Random(0)
    for index in range(300):
        scene = draw_scene(config, "train", index)
        for text in (scene_caption(scene), scene_caption(scene, rng)):
            assert understood(text, config) == set(scene.things), text


def test_every_template_occurs_and_starts_like_a_sentence() -> None:
    scene = draw_scene(ShapesConfig(), "train", 4)
    texts = [scene_caption(scene, Random(seed)) for seed in range(300)]
    assert len({text.split()[0] for text in texts}) >= 4
    assert len(CAPTIONS) >= 6
    assert all(text[0].isupper() and text.endswith(".") for text in texts)
    assert scene_caption(Scene((), ShapesConfig())) == "There is nothing."
    orange = Scene((Thing("orange", "ring", "large", "top left"),), ShapesConfig(colours=8, shapes=6))
    assert "an orange" in scene_caption(orange).lower()


@pytest.mark.parametrize("config", WORLDS)
def test_answers_are_right(config: ShapesConfig) -> None:
    rng = Random(0)
    for index in range(300):
        scene = draw_scene(config, "val", index)
        asked = scene_questions(scene, rng)
        assert len({question.text for question in asked}) == len(asked)
        for question in asked:
            assert question.answer == answer(question.text, scene.things, config), (question, scene.things)


def test_kinds_take_turns_and_yes_is_as_frequent_as_no() -> None:
    config = ShapesConfig()
    answers: Counter[str] = Counter()
    for index in range(500):
        asked = scene_questions(draw_scene(config, "train", index), Random(index))
        assert {question.kind for question in asked[:5]} >= {"colour", "shape", "count", "yesno"}
        assert {question.kind for question in asked} <= set(KINDS) - {"size"}
        answers.update(question.answer for question in asked if question.kind == "yesno")
    assert 0.45 < answers["yes"] / answers.total() < 0.58


def test_sizes_are_asked_for_where_there_are_some() -> None:
    config = ShapesConfig(sizes=2)
    assert "size" in {question.kind for question in scene_questions(draw_scene(config, "train", 0), Random(0))}


@pytest.mark.parametrize("config", WORLDS)
@pytest.mark.parametrize("held", [False, True])
def test_typed_words_mean_the_same(config: ShapesConfig, held: bool) -> None:
    rng = Random(0)
    places = "|".join(sorted(config.place_names, key=len, reverse=True))
    for index in range(200):
        scene = draw_scene(config, "train", index)
        text = typed_caption(scene, rng, held=held).lower()
        sizes = re.findall("small|large", text) or ["large"] * len(scene.things)
        found = [re.findall(rf"\b({names})\b", text) for names in ("|".join(config.colour_names), "|".join(config.shape_names), places)]
        assert {Thing(*words) for words in zip(*found[:2], sizes, found[2], strict=True)} == set(scene.things), text
        for question in scene_questions(scene, rng):
            typed = typed_question(question, rng, held=held)
            assert (typed.answer, typed.kind) == (question.answer, question.kind)
            names = rf"\b(?:{places}|{'|'.join(config.colour_names + config.shape_names)})"
            assert sorted(re.findall(names, typed.text.lower())) == sorted(re.findall(names, question.text))


def test_held_out_forms_are_other_orders_of_known_words() -> None:
    tables = [THINGS, REQUESTS, *QUESTIONS.values()]
    seen, held = ({word for table in tables for text in table[part] for word in re.findall(r"[a-z']+", text.lower())} for part in (0, 1))
    assert not held - seen and all(not set(table.seen) & set(table.held) for table in tables)
    scene = draw_scene(ShapesConfig(), "train", 4)
    texts = [{typed_caption(scene, Random(seed), held=part) for seed in range(400)} for part in (False, True)]
    assert not texts[0] & texts[1] and min(map(len, texts)) > 150
    assert any(text.islower() and text[-1] != "." for text in texts[0])


def test_facts_are_sentences() -> None:
    rng = Random(0)
    texts = {fact(ShapesConfig(), rng) for _ in range(500)}
    assert len(texts) > 40
    assert all(text[0].isupper() and text.endswith(".") for text in texts)


def test_world_text() -> None:
    lines = list(islice(world_text(seed=1), 400))
    assert lines == list(islice(world_text(seed=1), 400))
    assert lines != list(islice(world_text(seed=2), 400))
    assert lines[:50] == list(islice(world_text(seed=1), 50))
    assert all(line and "\n" not in line for line in lines)
    assert 0.6 < sum("Question:" in line for line in lines) / 400 < 0.95


def test_captions_and_questions_of_a_scene() -> None:
    scene = draw_scene(ShapesConfig(), "train", 11)
    assert scene_caption(scene) == scene_caption(scene)
    assert len({scene_caption(scene, Random(seed)) for seed in range(30)}) > 3
    assert scene_questions(scene, Random(1)) == scene_questions(scene, Random(1))
