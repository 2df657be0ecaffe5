"""Question files; images of questions: found in stores first, decoded ahead, read in batches, blank, errors named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.generate.answers import AnswerConfig, answer_questions
from unicode.generate.questions import AskedQuestion, ImageReader, read_questions
from unicode.ids.store import Store
from unicode.images.dataset import open_images
from unicode.images.decode import to_float
from unicode.images.lookup import ImageLookup
from unicode.images.shapes import ShapesConfig, find_scene
from unicode.llm.load import open_model
from unicode.tokenizer.encode import EncodeConfig, encode_images
from unicode.tokenizer.load import load_tokenizer


@pytest.fixture(scope="module")
def model(tuned):
    return open_model(tuned.run, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(5):
        kind = "jpg" if index % 2 else "png"
        Image.fromarray(generator.integers(0, 255, (60 + index, 90, 3), dtype=np.uint8)).save(folder / f"{index}.{kind}")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (400_000, 1)).save(folder / "thin.png")
    return folder


@pytest.fixture(scope="module")
def store(tuned, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    encode_images(load_tokenizer(tuned.image_tokenizer), open_images(pictures, image_size=16), folder, config=EncodeConfig(num_workers=0))
    return Store(folder)


def test_files_give_the_ids_of_a_store(model, pictures, store):
    names = ["0.png", "1.jpg", "2.png", "3.jpg", "4.png", "1.jpg"]
    looked, nothing = ImageLookup([pictures]), ImageLookup([])
    with ImageReader(model, pictures=looked, batch_size=2) as files, ImageReader(model, stores=[store], pictures=nothing) as stored:
        files.prefetch(names)
        found, expected = files.read(names), stored.read(names)
    assert list(found) == list(expected) == names[:5]
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])
        np.testing.assert_array_equal(found[name], store[name])


def test_each_image_is_encoded_once_and_in_batches(model, pictures, monkeypatch):
    sizes = []
    original = type(model).read_pictures
    monkeypatch.setattr(type(model), "read_pictures", lambda self, pixels: sizes.append(len(pixels)) or original(self, pixels))
    with ImageReader(model, pictures=ImageLookup([pictures]), batch_size=3) as reader:
        reader.read(["0.png", "1.jpg", "2.png", "3.jpg", "0.png"])
        reader.read(["2.png", "0.png"])
        reader.prefetch(["0.png"])
        assert not reader._decoding
    assert sizes == [3, 1]


def test_unreadable_images_are_named(model, pictures, store):
    names = ["broken.png", "empty.png", "thin.png", "absent.png", "0.png"]
    with ImageReader(model, stores=[store], pictures=ImageLookup([pictures])) as reader:
        found = reader.read(names)
    for name, reason in {"broken.png": "not an image", "empty.png": "empty file", "thin.png": "too thin", "absent.png": "missing"}.items():
        assert name in str(found[name]) and reason in str(found[name]) and str(pictures) in str(found[name])
    assert isinstance(found["0.png"], np.ndarray)


def test_missing_names_the_images_without_opening_them(model, pictures, store):
    with ImageReader(model, stores=[store], pictures=ImageLookup([pictures])) as reader:
        assert reader.missing(["0.png", "absent.png", "broken.png", "absent.png"]) == ["absent.png"]
    with ImageReader(model, blank="grey") as reader:
        assert reader.missing(["0.png"]) == []


def test_pictures_from_several_sources(model, pictures):
    both, folder = ImageLookup([pictures, "shapes"], side=16), ImageLookup([pictures])
    with ImageReader(model, pictures=both) as reader, ImageReader(model, pictures=folder) as files:
        found = reader.read(["0.png", "val/0000000.png", "unknown.png"])
        np.testing.assert_array_equal(found["0.png"], files.read(["0.png"])["0.png"])
        assert reader.missing(["0.png", "val/0000000.png", "unknown.png"]) == ["unknown.png"]
    scene = find_scene(ShapesConfig(image_size=16), "val/0000000.png").pixels()
    expected = model.image_ids(to_float(torch.from_numpy(np.ascontiguousarray(scene)))[None])[0]
    np.testing.assert_array_equal(found["val/0000000.png"], expected)
    assert "unknown.png" in str(found["unknown.png"])


def test_a_private_picture_is_not_read(model, pictures, tmp_path):
    (tmp_path / "link.png").symlink_to(pictures / "0.png")
    with ImageReader(model, pictures=ImageLookup([tmp_path])) as reader:
        keys = [str(pictures / "0.png"), f"../{pictures.name}/0.png", "link.png"]
        assert reader.missing(keys) == keys
        assert all("outside the image folders" in str(error) for error in reader.read(keys).values())
        assert isinstance(reader.read([pictures / "0.png"])[str(pictures / "0.png")], np.ndarray), "a Path is the caller's own"


def test_blank_images(model, pictures, monkeypatch):
    questions = [
        AskedQuestion("<image>\ntwo", ("0.png",)),
        AskedQuestion("two", ("absent.png",)),
        AskedQuestion("two <image> red", ("1.jpg",)),
    ]
    config = AnswerConfig(max_new_tokens=3)
    prompts = []
    original = type(model).prompt
    monkeypatch.setattr(
        type(model), "prompt", lambda self, turns, contents=(): prompts.append((turns, contents)) or original(self, turns, contents)
    )
    grey = model.image_ids(torch.full((1, 3, 16, 16), 128 * 2 / 255 - 1))[0].numpy()
    black = model.image_ids(torch.full((1, 3, 16, 16), -1.0))[0].numpy()
    for blank, ids in (("grey", grey), ("black", black)):
        prompts.clear()
        with ImageReader(model, pictures=ImageLookup([pictures]), blank=blank) as images:
            assert not any(answer.error for _, answer in answer_questions(model, questions, config=config, images=images))
        assert [turns for turns, _ in prompts] == [["<image>\ntwo"], ["<image>\ntwo"], ["two <image> red"]]
        assert all(np.array_equal(contents[0], ids) for _, contents in prompts)
    prompts.clear()
    with ImageReader(model, blank="none") as images:
        assert not any(answer.error for _, answer in answer_questions(model, questions, config=config, images=images))
    assert [turns for turns, _ in prompts] == [["two"], ["two"], ["two  red"]]
    with pytest.raises(ValueError, match="grey, black, none"):
        ImageReader(model, blank="white")


def test_a_store_of_another_tokenizer_is_refused(model, make_tuned, pictures, tmp_path):
    other = load_tokenizer(model.tokenizer_path)
    with torch.no_grad():
        other.quant_conv.weight.add_(1.0)
    other.__dict__.pop("fingerprint", None)
    encode_images(other, open_images(pictures, image_size=16), tmp_path / "other", config=EncodeConfig(num_workers=0))
    with pytest.raises(ValueError, match=f"{model.card.fingerprint}.*{other.fingerprint}"):
        ImageReader(model, stores=[Store(tmp_path / "other")])


def test_question_files(tmp_path, caplog):
    path = tmp_path / "q.jsonl"
    lines = [
        {"question_id": 3, "image": "coco/3.jpg", "text": "What is it?\nAnswer briefly.", "category": "x"},
        {"question_id": "a/b", "image": ["1.png", "2.png"], "text": "<image>\n<image>\nWhich?"},
        {"question_id": 5, "text": "Two and two?"},
    ]
    path.write_text("\ufeff" + "\n".join(map(json.dumps, lines)) + '\n\n{"question_id": 9, "te\n{"text": "no id"}\n[1]\n', encoding="utf-8")
    questions = read_questions(path)
    assert [(one.id, one.images, one.text) for one in questions] == [
        (3, ("coco/3.jpg",), "What is it?\nAnswer briefly."),
        ("a/b", ("1.png", "2.png"), "<image>\n<image>\nWhich?"),
        (5, (), "Two and two?"),
    ]
    assert questions[0].fields == {"category": "x"} and questions[0].key == ("3", "0", "What is it?\nAnswer briefly.")
    assert [record.args[1] for record in caplog.records] == [5, 6, 7]

    listed = tmp_path / "q.json"
    turns = [{"from": "human", "value": "<image>\nWhat?\nA. one"}, {"from": "gpt", "value": "A"}]
    listed.write_text(json.dumps([{"id": "7", "image": "7/image.png", "conversations": turns}]))
    (question,) = read_questions(listed)
    assert (question.id, question.images, question.text) == ("7", ("7/image.png",), "<image>\nWhat?\nA. one")


def test_question_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "q.jsonl"
    with pytest.raises(FileNotFoundError):
        read_questions(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(path)
    path.write_text('{"question_id": 1, "text": "a"}\n{"question_id": 1, "text": "b"}\n{"question_id": 1, "text": "a"}\n')
    with pytest.raises(ValueError, match=r"q\.jsonl asks question '1' \('a'\) twice"):
        read_questions(path)
    (tmp_path / "q.json").write_text("[{")
    with pytest.raises(ValueError, match=r"q\.json is not valid JSON"):
        read_questions(tmp_path / "q.json")
