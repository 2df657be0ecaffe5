"""Scores of drawn images beside torchmetrics' own, and shares of right scenes by hand."""

import pytest
import torch
from torch import nn
from torchmetrics.image.inception import InceptionScore

from unicode.metrics import NotComputed
from unicode.metrics.frechet import frechet_distance
from unicode.metrics.generation import ASPECTS, GenerationMetrics, load_clip, scene_metrics, scene_shares, shuffled

NOTHING = NotComputed("not there", "put it there")
RED, BLUE, LEFT = ("red", "circle", "large", "top left"), ("blue", "ring", "large", "top right"), ("red", "circle", "large", "top right")


class Features(nn.Module):
    """Stands in for Inception: 6 features of a picture, 1008 classes from them."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(6, 3, generator=generator)
        self.class_weight = torch.randn(1008, 6, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float().mean((2, 3)) / 50) @ self.weight.T


class Logits(Features):
    num_features = 1008

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) @ self.class_weight.T


def pictures(number: int, seed: int) -> torch.Tensor:
    colours = torch.randint(0, 256, (number, 3, 1, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return colours.expand(number, 3, 8, 8).contiguous()


def test_inception_score_is_torchmetrics():
    images = pictures(40, 0)
    metrics = GenerationMetrics(inception=Features(), clip=NOTHING, splits=1)
    for first in range(0, 40, 16):
        metrics.add_drawn(images[first : first + 16], first=first)
    theirs = InceptionScore(feature=Logits(), splits=1)
    theirs.update(images)
    ours = metrics.compute(reference="")["inception_score"]
    assert ours["value"] == pytest.approx(float(theirs.compute()[0]), rel=1e-4)


def test_fid_of_features():
    drawn, real = pictures(30, 1), pictures(50, 2)
    metrics = GenerationMetrics(inception=Features(), clip=NOTHING, splits=2)
    metrics.add_drawn(drawn, first=0)
    metrics.add_real(real)
    fid = metrics.compute(reference="a folder")["fid"]

    def gaussian(images):
        rows = Features()(images).double()
        return rows.mean(0), rows.T.cov()

    assert fid["value"] == pytest.approx(frechet_distance(gaussian(real), gaussian(drawn)), rel=1e-6)
    assert "30 drawn images against 50 of a folder" in fid["protocol"]


def test_what_is_not_there_is_no_number():
    report = GenerationMetrics(inception=NOTHING, clip=load_clip("")).compute(reference="")
    assert all(one["value"] is None and one["remedy"] for one in report.values())
    alone = GenerationMetrics(inception=Features(), clip=NOTHING)
    alone.add_drawn(pictures(3, 0), first=0)
    report = alone.compute(reference="")
    assert "--images" in report["fid"]["remedy"] and "splits=1" in report["inception_score"]["remedy"]
    with pytest.raises(FileNotFoundError, match="--clip"):
        load_clip("nowhere")


def test_clip_score_pair_by_pair(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    text = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {**sizes, "vocab_size": len(tokens), "max_position_embeddings": 12, "bos_token_id": 52, "eos_token_id": 53}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=words, vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=8))
    for parameter in model.parameters():
        parameter.data *= 5
    model.eval().save_pretrained(tmp_path)
    picture = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    CLIPProcessor(image_processor=picture, tokenizer=text).save_pretrained(tmp_path)
    images, prompts = pictures(5, 0), ["a cat", "two red dogs", "bus", "a very long caption indeed", "b"]
    metrics = GenerationMetrics(inception=NOTHING, clip=load_clip(tmp_path))
    metrics.add_drawn(images[:3], first=0, prompts=prompts[:3])
    metrics.add_drawn(images[3:], first=3, prompts=prompts[3:])
    single = []
    with torch.no_grad():
        for image, prompt in zip(images, prompts, strict=True):
            seen = model.vision_model(pixel_values=picture(image, return_tensors="pt")["pixel_values"]).pooler_output
            read = model.text_model(**text(prompt, return_tensors="pt", truncation=True, max_length=12)).pooler_output
            cosine = torch.cosine_similarity(model.visual_projection(seen), model.text_projection(read))
            single.append(max(0.0, 100 * float(cosine)))
    assert metrics.compute(reference="")["clip_score"]["value"] == pytest.approx(sum(single) / 5, abs=1e-3)
    assert max(single) > 1


def test_scenes_by_hand():
    wanted = [[RED], [RED, BLUE], [RED], [RED]]
    seen = [[RED], [BLUE, RED], [LEFT], []]
    shares = scene_shares(wanted, seen)
    assert shares == {"colour": 0.75, "shape": 0.75, "size": 0.75, "place": 0.5, "count": 0.75, "all": 0.5}
    report = scene_metrics(wanted, seen)
    assert report["all"]["value"] == 50 and report["all_2"]["value"] == 100 and report["all_1"]["value"] == pytest.approx(100 / 3)
    assert {f"shuffled_{aspect}" for aspect in ASPECTS} <= report.keys()
    with pytest.raises(ValueError, match="no drawn image"):
        scene_metrics([], [])


@pytest.mark.parametrize("number", [2, 3, 50])
def test_nothing_keeps_its_place(number):
    order = shuffled(number, seed=1)
    assert sorted(order) == list(range(number)) and all(place != value for place, value in enumerate(order))
