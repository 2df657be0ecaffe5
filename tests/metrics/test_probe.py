"""Probes of codes: retrieval with equal captions, nearest neighbours and a linear classifier on separable classes."""

import torch

from unicode.metrics.probe import label_probes, retrieval


def test_retrieval_counts_equal_captions_as_one() -> None:
    vectors = torch.eye(6)
    texts = ["a", "b", "c", "d", "e", "a"]
    found = retrieval(vectors, vectors[[5, 1, 2, 3, 4, 0]], texts)
    assert {name: entry["value"] for name, entry in found.items()} == dict.fromkeys(found, 100.0)
    assert "6 (5 different captions)" in found["caption_of_picture_at_1"]["protocol"]
    shifted = retrieval(vectors + 7, vectors.roll(1, 0) - 3, ["a", "b", "c", "d", "e", "f"])
    assert shifted["caption_of_picture_at_1"]["value"] == shifted["picture_of_caption_at_1"]["value"] == 0


def test_probes_find_classes_that_a_line_divides() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(400, 8, generator=generator)
    labels = ["left" if value < 0 else "right" for value in vectors[:, 0].tolist()]
    found = label_probes(vectors[:300], labels[:300], vectors[300:], labels[300:])
    assert found["linear_probe"]["value"] > 95 and 60 < found["knn"]["value"] < 95
    assert found["knn"]["protocol"] == "10 nearest neighbours by cosine; 100 pictures, learned from 300 others, 2 classes"
    noise = label_probes(vectors[:300], labels[100:400], vectors[300:], labels[:100])
    assert 30 < noise["linear_probe"]["value"] < 70, "labels of other pictures"
