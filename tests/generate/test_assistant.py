"""The object for notebooks: answers and draws as the functions below it do."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from unicode.generate.answers import AnswerConfig, answer_questions
from unicode.generate.chat import Assistant, load_model
from unicode.generate.images import ImageSampler, caption_request, decode_pictures
from unicode.generate.questions import AskedQuestion
from unicode.generate.sampling import Sampling


@pytest.fixture(scope="module")
def assistant(tuned):
    return load_model(tuned.run, device="cpu")


def test_answers_as_the_batch_does(assistant):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    question = AskedQuestion("how many", (picture,), history=("two", "red"))
    ((_, expected),) = answer_questions(assistant.model, [question], config=AnswerConfig(max_new_tokens=6))
    assert assistant.answer("how many", [picture], history=["two", "red"], max_new_tokens=6) == expected.text
    assert assistant.answer("how many", picture, history=["two", "red"], max_new_tokens=6) == expected.text
    assert assistant.answer("how many", max_new_tokens=6, temperature=2.0, seed=3) == assistant.answer(
        "how many", max_new_tokens=6, temperature=2.0, seed=3
    )


def test_what_cannot_be_answered_is_an_error(assistant):
    with pytest.raises(ValueError, match=r"nowhere\.png"):
        assistant.answer("how many", ["nowhere.png"])
    with pytest.raises(ValueError, match="<image>"):
        assistant.answer("<image> <image> how many", [np.arange(20) + 30])


def test_draws_as_the_batch_does(assistant):
    picture = assistant.draw("a red circle", seed=1, guidance=2.0, top_k=5)
    assert picture.size == (16, 16) and picture.mode == "RGB"
    assert np.array_equal(picture, assistant.draw("a red circle", seed=1, guidance=2.0, top_k=5))
    sampling = Sampling(1.0, top_k=5, guidance=2.0)
    (drawing,) = ImageSampler(assistant.model, sampling=sampling).draw([caption_request("a red circle", seed=1)])
    tokenizer = assistant.model.images
    ids = drawing.ids[None]
    assert set(ids[0].tolist()) <= set(tokenizer.row_ids.tolist())
    asked = Assistant(replace(assistant.model, card=replace(assistant.model.card, request="{caption}")))
    (bare,) = ImageSampler(assistant.model).draw([caption_request("a red circle", seed=1, template="{caption}")])
    assert np.array_equal(asked.draw("a red circle", seed=1), decode_pictures(assistant.model, bare.ids[None])[0])
    assert not np.array_equal(picture, assistant.draw("a red circle", seed=2, guidance=2.0, top_k=5))
    with pytest.raises(ValueError, match="empty"):
        assistant.draw(" ")
