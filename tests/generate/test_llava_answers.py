"""The LLaVA baseline answers through the same loop: pixels in place of ids, one batch or single questions, merged or not."""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.generate.answers import AnswerConfig, answer_questions
from unicode.generate.questions import AskedQuestion, ImageReader
from unicode.images.decode import to_float
from unicode.llm.card import read_card, write_card
from unicode.llm.llava import VisionSettings, build_projector, build_tower, save_projector
from unicode.llm.load import open_model
from unicode.run.answer import main
from unicode.run.merge_lora import main as merge


@pytest.fixture(scope="module")
def run(tuned, tmp_path_factory):
    """A run folder of the baseline: the adapter of the tiny model, a projector of random weights, the tower of its image tokenizer."""
    folder = tmp_path_factory.mktemp("llava") / "run"
    shutil.copytree(tuned.run, folder)
    settings = VisionSettings(enabled=True, kind="tokenizer", path=str(tuned.image_tokenizer))
    tower = build_tower(settings)
    torch.manual_seed(2)
    projector = build_projector(settings.projector, tower.width, 32)
    for parameter in projector.parameters():
        parameter.data.mul_(4)
    save_projector(folder, projector.state_dict())
    kept = {
        name: value for name, value in asdict(settings).items() if name in ("enabled", "kind", "path", "layer", "fit", "dtype", "projector")
    }
    vision = {**kept, "feature": settings.chosen_feature, "fingerprint": tower.fingerprint}
    write_card(folder, replace(read_card(folder), kind="llava", layout=None, image_tokenizer=None, vision=vision))
    return folder


@pytest.fixture(scope="module")
def model(run):
    return open_model(run, device="cpu")


@pytest.fixture(scope="module")
def questions():
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)) for _ in range(4)]
    words = ["two", "how many blue", "red squares are there ? " * 3]
    return [AskedQuestion(words[index % 3], tuple(pictures[place] for place in range(index % 3)), id=index) for index in range(12)]


def test_a_batch_answers_as_single_questions_do(model, questions):
    alone = dict(answer_questions(model, questions, config=AnswerConfig(batch_size=1, max_new_tokens=8)))
    assert dict(answer_questions(model, questions, config=AnswerConfig(batch_size=6, max_new_tokens=8))) == alone
    assert not any(answer.error for answer in alone.values())
    shared = [replace(question, images=questions[number % 2 + 1].images) for number, question in enumerate(questions)]
    alone_shared = dict(answer_questions(model, shared, config=AnswerConfig(batch_size=1, max_new_tokens=8)))
    assert dict(answer_questions(model, shared, config=AnswerConfig(batch_size=12, max_new_tokens=8))) == alone_shared
    without = dict(answer_questions(model, [replace(question, images=()) for question in questions], config=AnswerConfig(max_new_tokens=8)))
    assert any(alone[place].ids != without[place].ids for place in alone if questions[place].images), "the pictures change nothing"


def test_features_stand_at_the_places_of_the_pictures(model, questions):
    pixels = [model.picture(picture) for picture in questions[2].images]
    inputs = model.inputs([model.prompt(["two"]), model.prompt(["<image>\nthings <image>"], pixels)])
    seen = model.lm.project(model.lm.tower(to_float(torch.stack(pixels)))).flatten(0, 1)
    prompt = model.prompt(["<image>\nthings <image>"], pixels)
    embeddings = inputs["inputs_embeds"][1, -len(prompt) :]
    torch.testing.assert_close(embeddings[prompt.example.is_image], seen)
    assert int(inputs["attention_mask"][0].sum()) == len(model.prompt(["two"]))


def test_ids_and_stores_are_no_pictures(model):
    ((_, answer),) = answer_questions(model, [AskedQuestion("two", (np.arange(20),))])
    assert "reads pixels" in answer.error
    with pytest.raises(ValueError, match="reads pixels"):
        _ = model.images


def test_blank_pictures(model, questions):
    config = AnswerConfig(max_new_tokens=4)
    with ImageReader(model, blank="grey") as images:
        grey = dict(answer_questions(model, questions, config=config, images=images))
    assert grey[1].ids == replace(grey[1]).ids and not any(answer.error for answer in grey.values())
    with ImageReader(model, blank="none") as images:
        none = dict(answer_questions(model, questions, config=config, images=images))
    assert none[2].ids == none[5].ids == none[11].ids


def test_the_tower_must_be_the_right_one(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    card = read_card(run)
    write_card(tmp_path / "run", replace(card, vision={**card.vision, "fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match=f"{card.vision['fingerprint']}.*{'0' * 16}"):
        open_model(tmp_path / "run", device="cpu")
    write_card(tmp_path / "run", card)
    (tmp_path / "run" / "projector.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="projector"):
        open_model(tmp_path / "run", device="cpu")


def test_merged_and_by_command(run, questions, tmp_path):
    assert merge([str(run), str(tmp_path / "merged")]) == 0
    merged, plain = open_model(tmp_path / "merged", device="cpu"), open_model(run, device="cpu")
    assert merged.reads_pixels and merged.card.kind == "llava"
    config = AnswerConfig(max_new_tokens=6)
    assert dict(answer_questions(merged, questions, config=config)) == dict(answer_questions(plain, questions, config=config))
    questions[1].images[0].save(tmp_path / "1.png")
    (tmp_path / "q.jsonl").write_text('{"question_id": 0, "image": "1.png", "text": "two"}\n')
    files = ["--questions", tmp_path / "q.jsonl", "--images", tmp_path, "--answers", tmp_path / "a.jsonl"]
    assert main([*map(str, ["--model", run, *files]), "--device", "cpu", "--max-new-tokens", "4"]) == 0
    assert "error" not in (tmp_path / "a.jsonl").read_text()
