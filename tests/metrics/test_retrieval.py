"""Retrieval: the nearest picture, equal properties, the baseline of shuffled prompts."""

import pytest
import torch

from unicode.metrics.retrieval import VisionFeatures, featurize, nearest, pixel_features, retrieval_metrics

ATTRIBUTES = [{"concept": "a", "tone": "dark"}, {"concept": "a", "tone": "light"}, {"concept": "b"}, {"concept": "c", "tone": "dark"}]


def test_the_nearest_is_that_of_all_distances():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (70, 3, 4, 4), generator=generator, dtype=torch.uint8)
    queries, gallery = featurize(pixel_features, images[:30], batch_size=7), featurize(pixel_features, images[20:])
    expected = torch.cdist(queries, gallery).argmin(1)
    assert torch.equal(nearest(queries, gallery, chunk=8), expected)
    assert expected[20:].tolist() == list(range(10))


def test_shares_by_property():
    report = retrieval_metrics([0, 0, 2, 0], [0, 1, 2, 3], ATTRIBUTES, name="pixels", how="toy")
    shares = {name: entry["value"] for name, entry in report.items()}
    assert shares["nearest_pixels"] == 50 and shares["nearest_pixels_concept"] == 75
    assert shares["nearest_pixels_tone"] == pytest.approx(200 / 3)  # of three: the one without a tone does not count
    assert shares["shuffled_nearest_pixels"] < 50 and report["nearest_pixels"]["protocol"].startswith("toy")


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_features_of_a_vision_model(tmp_path, kind):
    from transformers import BitImageProcessor, CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    square = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    if kind == "clip":
        words = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10}
        CLIPModel(CLIPConfig(text_config=words, vision_config=sizes, projection_dim=6)).save_pretrained(tmp_path)
        CLIPImageProcessor(**square).save_pretrained(tmp_path)
    else:
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path)
        BitImageProcessor(**square).save_pretrained(tmp_path)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    features = featurize(VisionFeatures(tmp_path), images, batch_size=2)
    assert features.shape == (5, 6 if kind == "clip" else 8)
    assert torch.allclose(features.norm(dim=1), torch.ones(5))
    assert nearest(features, features).tolist() == list(range(5))


def test_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="--features"):
        VisionFeatures(tmp_path)
