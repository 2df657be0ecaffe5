"""Answering: a batch gives what single questions give, whatever images, prompts and sampling; mistakes stay with their question."""

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.generate import answers as module
from unicode.generate.answers import AnswerConfig, answer_questions, place_tags
from unicode.generate.engine import Decoded
from unicode.generate.questions import AskedQuestion, ImageReader
from unicode.images.lookup import ImageLookup
from unicode.llm.load import open_model
from unicode.tokenizer.load import load_tokenizer

WORDS = "how many big blue circles are left of the green things at top two red squares there is a".split()


@pytest.fixture(scope="module", params=["ids", "sum"])
def model(make_tuned, request):
    return open_model(make_tuned(input_mode=request.param).run, device="cpu")


@pytest.fixture(scope="module")
def plain(tuned):
    return open_model(tuned.run, device="cpu")


def random_ids(model, generator) -> np.ndarray:
    return generator.choice(load_tokenizer(model.tokenizer_path).row_ids.numpy(), model.layout.num_codes)


def random_questions(model, number: int) -> list[AskedQuestion]:
    """Questions of 1 to 30 words about no, one or two images, some with earlier turns."""
    generator = np.random.default_rng(0)
    questions = []
    for index in range(number):
        text = " ".join(generator.choice(WORDS, generator.integers(1, 30)))
        images = tuple(random_ids(model, generator) for _ in range(index % 3))
        questions.append(AskedQuestion(text, images, id=index, history=("two ?", "red") if index % 5 == 0 else ()))
    return questions


def answers(model, questions, **settings):
    return dict(answer_questions(model, questions, config=AnswerConfig(**settings)))


def shared_questions(model) -> list[AskedQuestion]:
    """Questions of which several are about the same images, others about none or one of their own."""
    generator = np.random.default_rng(1)
    images = [random_ids(model, generator) for _ in range(3)]
    shown = [(images[0],), (images[1],), (images[0],), (), (images[0], images[1]), (images[2],), (images[1],), (images[0], images[1]), ()]
    history = {2: ("two ?", "red"), 4: ("<image>\ntwo", "red"), 7: ("<image>\ntwo", "red")}
    texts = [" ".join(generator.choice(WORDS, 2 + 3 * (number % 4))) for number in range(len(shown))]
    return [
        AskedQuestion(text, images, number, history.get(number, ())) for number, (text, images) in enumerate(zip(texts, shown, strict=True))
    ]


def test_a_beginning_that_is_shared_is_read_once(model, monkeypatch):
    questions = shared_questions(model)
    alone = answers(model, questions, batch_size=1, max_new_tokens=8)
    read = []
    original = type(model).inputs
    monkeypatch.setattr(type(model), "inputs", lambda self, prompts: read.append(sum(map(len, prompts))) or original(self, prompts))
    assert answers(model, questions, batch_size=9, max_new_tokens=8) == alone
    whole = sum(len(model.prompt(place_tags(one.text, one.history, len(one.images)), one.images)) for one in questions)
    assert len(read) == 2 and sum(read) < 0.8 * whole
    assert answers(model, questions, batch_size=4, max_new_tokens=8) == alone
    assert len({answer.ids for answer in alone.values()}) == len(questions)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_answers_as_single_questions_do(model, temperature):
    questions = random_questions(model, 12)
    settings = {"max_new_tokens": 6, "temperature": temperature, "top_p": 0.95}
    alone = answers(model, questions, batch_size=1, **settings)
    assert answers(model, questions, batch_size=8, **settings) == alone
    assert len({answer.ids for answer in alone.values()}) > 8, "the answers do not depend on the questions"
    assert all(not answer.error and 0 < answer.num_tokens <= 6 for answer in alone.values())


def test_greedy_answers_are_what_the_model_finds_likeliest(model):
    for question in random_questions(model, 4):
        ((_, answer),) = answer_questions(model, [question], config=AnswerConfig(max_new_tokens=6))
        prompt = model.prompt(place_tags(question.text, question.history, len(question.images)), question.images)
        inputs = model.inputs([prompt])
        embeddings = inputs.get("inputs_embeds")
        if embeddings is None:
            embeddings = model.lm.get_input_embeddings()(inputs["input_ids"])
        found: list[int] = []
        with torch.no_grad():
            while len(found) < 6 and not (found and found[-1] in model.end_ids):
                found.append(int(model.lm(inputs_embeds=embeddings).logits[0, -1].argmax()))
                embeddings = torch.cat((embeddings, model.lm.get_input_embeddings()(torch.tensor([[found[-1]]]))), 1)
        assert answer.ids == tuple(token for token in found if token not in model.end_ids)
        assert answer.finished == (found[-1] in model.end_ids)


def test_sampling_belongs_to_seed_and_question(plain):
    questions = random_questions(plain, 6)
    first = answers(plain, questions, temperature=2.0, max_new_tokens=8, seed=1)
    assert answers(plain, questions[::-1], temperature=2.0, max_new_tokens=8, seed=1) == {5 - place: first[place] for place in first}
    assert answers(plain, questions, temperature=2.0, max_new_tokens=8, seed=2) != first
    same = [AskedQuestion("two red squares", id=name) for name in range(20)]
    assert len({answer.ids for answer in answers(plain, same, temperature=2.0, max_new_tokens=8).values()}) > 15


def test_sampling_follows_the_probabilities(plain):
    question = AskedQuestion("two red squares")
    with torch.no_grad():
        logits = plain.lm(**plain.inputs([plain.prompt([question.text])])).logits[0, -1]
    expected = (logits / 2).softmax(-1)
    drawn = answers(
        plain, [AskedQuestion(question.text, id=name) for name in range(600)], temperature=2.0, max_new_tokens=1, batch_size=100
    )
    counts = torch.bincount(torch.tensor([(*one.ids, plain.end_ids[0])[0] for one in drawn.values()]), minlength=len(expected)) / 600
    assert float((counts - expected).abs().sum()) < 0.35
    few = answers(plain, [AskedQuestion(question.text, id=name) for name in range(50)], temperature=2.0, top_p=1e-6, max_new_tokens=4)
    assert {one.ids for one in few.values()} == {answers(plain, [question], max_new_tokens=4)[0].ids}


def test_an_answer_ends_with_the_context_of_its_own_row(make_tuned):
    model = open_model(make_tuned(context=230).run, device="cpu")
    questions = [AskedQuestion("two red squares", (np.arange(20) + 30,) * number, id=number) for number in (1, 2, 0)]
    alone = answers(model, questions, batch_size=1, max_new_tokens=60)
    assert answers(model, questions, batch_size=3, max_new_tokens=60) == alone
    lengths = [len(model.prompt(place_tags(one.text, (), len(one.images)), one.images)) for one in questions]
    for place, length in enumerate(lengths):
        assert alone[place].num_tokens == min(60, 230 - length) or alone[place].finished
    (too_long,) = answers(model, [AskedQuestion("a " * 200)]).values()
    assert "tokens" in too_long.error and "230" in too_long.error and not too_long.text


def test_windows_and_errors_lose_no_question(plain, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 4)
    asked: list[int] = []

    class Counted(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    good = random_questions(plain, 11)
    bad = {
        2: AskedQuestion("<image> <image> two", (np.arange(20) + 30,)),
        5: AskedQuestion("two", (np.arange(7) + 30,)),
        6: AskedQuestion("two", (np.full(20, 4000),)),
        9: AskedQuestion("two", ("nowhere.png",)),
    }
    questions = Counted(bad.get(place, question) for place, question in enumerate(good))
    found = answers(plain, questions, batch_size=3, max_new_tokens=5)
    assert sorted(found) == list(range(11)) and asked == list(range(11))
    assert {place for place, answer in found.items() if answer.error} == set(bad)
    for place, word in {2: "2 <image> tags for 1", 5: "20", 6: "4000", 9: "nowhere.png"}.items():
        assert word in found[place].error
    alone = answers(plain, good, batch_size=1, max_new_tokens=5)
    assert all(found[place] == alone[place] for place in set(found) - set(bad))
    assert list(answer_questions(plain, [])) == []


def test_images_as_files_pictures_and_ids_are_one(plain, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    ids = plain.read_pictures(plain.picture(picture)[None])[0]
    kinds = ["a.png", tmp_path / "a.png", picture, (tmp_path / "a.png").read_bytes(), ids, torch.from_numpy(ids)]
    with ImageReader(plain, pictures=ImageLookup([tmp_path])) as images:
        found = dict(answer_questions(plain, [AskedQuestion("two", (kind,)) for kind in kinds], images=images))
    assert len({answer.ids for answer in found.values()}) == 1 and not any(answer.error for answer in found.values())
    config = AnswerConfig(max_new_tokens=20)
    other = dict(answer_questions(plain, [AskedQuestion("two"), AskedQuestion("two", (ids,))], config=config))
    assert other[0].ids != other[1].ids, "the image changes nothing"


def test_text_of_an_answer(plain):
    markers, ids = plain.markers, [40, 41, 42]
    words = plain.text("a red circle", add_special_tokens=False)["input_ids"]
    assert (
        plain.read_text([*words, markers.image_start, *ids, markers.image_end, *words])
        == "a red circle<vistok>40-41-42</vistok>a red circle"
    )
    assert plain.read_text([*words, markers.image_start, *ids]) == "a red circle"
    assert plain.read_text([1, *words, markers.compressed_end]) == "a red circle"
    assert plain.read_text([]) == ""


def test_a_template_without_end_token_stops_at_its_text(tuned, monkeypatch):
    model = open_model(tuned.run, device="cpu")
    newline = model.text("\n", add_special_tokens=False)["input_ids"][-1]
    word = model.text("red", add_special_tokens=False)["input_ids"]
    from unicode.llm.template import get_template

    model.template = get_template("plain")
    monkeypatch.setattr(module, "decode_answers", lambda *_, **__: Decoded([[*word, newline, *word]], [False], [3]))
    ((_, answer),) = answer_questions(model, [AskedQuestion("two")])
    assert (answer.text, answer.finished) == ("red", True)


def test_stop_text_ends_generation(tuned):
    from unicode.llm.template import get_template

    model = open_model(tuned.run, device="cpu")
    model.template = get_template("plain")
    questions = random_questions(model, 6)
    alone = answers(model, questions, batch_size=1, max_new_tokens=30, temperature=3.0)
    together = answers(model, questions, batch_size=6, max_new_tokens=30, temperature=3.0)
    assert together == alone and any(one.finished and one.num_tokens < 30 for one in alone.values())


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError):
        AnswerConfig(**settings)


def test_tags_are_put_where_they_are_missing():
    assert place_tags("What?", (), 2) == ["<image>\n<image>\nWhat?"]
    assert place_tags("<image> What?", (), 1) == ["<image> What?"]
    assert place_tags("And now?", ("<image>\nWhat?", "A bus."), 1) == ["<image>\nWhat?", "A bus.", "And now?"]
    assert place_tags("And now?", ("<image>\nWhat?", "A bus."), 2) == ["<image>\nWhat?", "A bus.", "<image>\nAnd now?"]
    with pytest.raises(ValueError, match="2 <image> tags for 1"):
        place_tags("<image><image>", (), 1)
