"""Pictures drawn from requests: the right prompt, exact given rows, the same picture in every batch, guidance, errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from unicode.generate.engine import CachedDecoder
from unicode.generate.images import (
    FREE_QUESTION,
    SEEDS_APART,
    DrawRequest,
    ImageSampler,
    caption_request,
    decode_pictures,
    most_typical,
)  # fmt: skip
from unicode.generate.sampling import Sampling
from unicode.ids.text import write_run
from unicode.llm.examples import ExampleBuilder


def requests(number: int) -> list[DrawRequest]:
    words = ["a red circle", "two blue squares and a very green triangle at the top left", "a cross"]
    return [caption_request(words[index % 3], seed=index) for index in range(number)]


def test_the_prompt_is_what_training_shows(drawing_model):
    sampler, ids = ImageSampler(drawing_model), drawing_model.images.row_ids[:20].numpy()
    request = caption_request("a red circle")
    builder = ExampleBuilder(drawing_model.template, drawing_model.text, drawing_model.markers, drawing_model.layout)
    whole = builder.build([request.question, write_run(ids)]).input_ids.tolist()
    start = whole.index(drawing_model.markers.image_start)
    assert sampler.prompt(request).input_ids.tolist() == whole[: start + 1]
    begun = DrawRequest(request.question, given=ids[:10])
    assert sampler.prompt(begun).input_ids.tolist() == whole[: start + 11]
    assert sampler.prompt(begun).is_image.sum() == 10


SAMPLINGS = {"plain": Sampling(), "guided": Sampling(0.8, 12, 0.9, 3.0), "greedy": Sampling(0.0), "typical": Sampling(0.9, candidates=3)}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_a_picture_does_not_depend_on_its_batch(drawing_model, sampling):
    sampler = ImageSampler(drawing_model, sampling=sampling)
    together, alone = sampler.draw(requests(6)), [sampler.draw([request])[0] for request in requests(6)]
    decoder = CachedDecoder(drawing_model.causal, cache="static")
    sampler = ImageSampler(drawing_model, sampling=sampling, decoder=decoder)
    static = [*sampler.draw(requests(6)[:4]), *sampler.draw(requests(6)[4:])]
    for place in range(6):
        assert not together[place].error and together[place].ids.shape == (20,)
        assert np.array_equal(together[place].ids, alone[place].ids)
        assert np.array_equal(together[place].ids, static[place].ids)
    assert set(np.concatenate([drawing.ids for drawing in together])) <= set(drawing_model.images.row_ids.tolist())


def test_seeds_matter_and_repeat(drawing_model):
    sampler = ImageSampler(drawing_model)
    first, second, again = (sampler.draw([caption_request("a ring", seed=seed)])[0].ids for seed in (1, 2, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, second)


def test_given_rows_are_kept(drawing_model):
    sampler, layout = ImageSampler(drawing_model, sampling=Sampling(guidance=2.0)), drawing_model.layout
    given = drawing_model.images.row_ids[5:15].numpy()
    (drawing,) = sampler.draw([DrawRequest("Draw a ring.", seed=3, given=given)])
    assert drawing.ids.shape == (layout.num_codes,) and np.array_equal(drawing.ids[:10], given)
    assert decode_pictures(drawing_model, drawing.ids[None]).shape == (1, 16, 16, 3)


def test_guidance_one_is_none_and_more_changes_the_picture(drawing_model):
    plain, one, three = (
        ImageSampler(drawing_model, sampling=Sampling(guidance=guidance)).draw(requests(2)) for guidance in (1.0, 1.000001, 3.0)
    )
    assert np.array_equal(plain[1].ids, one[1].ids) and not np.array_equal(plain[1].ids, three[1].ids)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_candidate_most_like_the_others_is_kept(drawing_model, guidance):
    asked, number = [*requests(3), DrawRequest("Draw a ring.", seed=5, given=drawing_model.images.row_ids[5:15].numpy())], 5
    kept = ImageSampler(drawing_model, sampling=Sampling(guidance=guidance, candidates=number)).draw(asked)
    one_by_one, differ = ImageSampler(drawing_model, sampling=Sampling(guidance=guidance)), 0
    for request, drawing in zip(asked, kept, strict=True):
        seeds = (torch.tensor(request.seed) + torch.arange(number) * SEEDS_APART).tolist()
        ids = np.stack([one.ids for one in one_by_one.draw([replace(request, seed=seed) for seed in seeds])])
        pictures = decode_pictures(drawing_model, ids).reshape(number, -1).astype(float)
        sums = ((pictures[:, None] - pictures[None]) ** 2).sum((1, 2))
        assert np.array_equal(drawing.ids, ids[sums.argmin()])
        differ += int(sums.argmin() != 0)
    assert differ, "not always the first"
    greedy = [ImageSampler(drawing_model, sampling=Sampling(0, candidates=some)).draw(asked)[0].ids for some in (1, 4)]
    assert np.array_equal(*greedy)


def test_the_most_typical_picture():
    grey = np.full((4, 2, 2, 3), [[[[10]]], [[[250]]], [[[90]]], [[[60]]]], dtype=np.uint8)
    assert most_typical(grey) == 2 and most_typical(grey[:1]) == 0 and most_typical(grey[[1, 1]]) == 0


def test_compressed_questions(drawing_model):
    sampler, ids = ImageSampler(drawing_model, sampling=Sampling(temperature=0)), drawing_model.images.row_ids[:20].numpy()
    request = DrawRequest(f"Restore {write_run(ids)}.", compressed=True)
    example = sampler.prompt(request)
    assert example.is_image.sum() == 4 and len(example.extra_at) == 4
    assert drawing_model.markers.compressed_start in example.input_ids
    both = sampler.draw([request, DrawRequest("Draw it, please.")])
    assert np.array_equal(both[0].ids, sampler.draw([request])[0].ids)


def test_errors_name_the_request_and_the_others_go_on(drawing_model):
    long = caption_request("red " * 400)
    broken = DrawRequest("Draw.", given=np.arange(3))
    found = ImageSampler(drawing_model).draw([requests(1)[0], long, broken, requests(2)[1]])
    assert [bool(found[place].error) for place in range(4)] == [False, True, True, False]
    assert "fit into the model's context of 512" in found[1].error and "whole rows" in found[2].error
    with pytest.raises(ValueError, match="the prompt is empty"):
        caption_request("  ")
    with pytest.raises(ValueError, match=r"only slot is \{caption\}"):
        caption_request("a", template="{words}")


def test_a_model_without_image_ids_cannot_draw(drawing_model, tiny_llama):
    from unicode.llm.load import open_model

    with pytest.raises(ValueError, match="cannot draw"):
        ImageSampler(open_model(tiny_llama, device="cpu"))


def test_an_adapter_draws_as_the_merged_model_does(drawing_model):
    from copy import deepcopy
    from dataclasses import replace

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(deepcopy(drawing_model.lm), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False,
                                                                    modules_to_save=["lm_head"])).eval()  # fmt: skip
    model = replace(drawing_model, lm=adapted)
    drawn = ImageSampler(model).draw(requests(3))
    merged = ImageSampler(replace(drawing_model, lm=deepcopy(adapted).merge_and_unload())).draw(requests(3))
    assert all(np.array_equal(one.ids, other.ids) for one, other in zip(drawn, merged, strict=True))
    assert not np.array_equal(drawn[0].ids, ImageSampler(drawing_model).draw(requests(3))[0].ids)


def test_the_free_question_is_one_of_the_annotations(drawing_model):
    from unicode.annotations.templates import TEMPLATES, UNCONDITIONAL

    assert FREE_QUESTION in TEMPLATES[UNCONDITIONAL]
