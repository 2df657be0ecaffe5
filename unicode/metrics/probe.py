"""Vectors of pictures, of their captions, and labels -> retrieval both ways, nearest neighbours, a linear probe."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unicode.metrics import entry

NEIGHBOURS = 10
DECAY = 1e-3  # of the weights of the linear probe


def centred(vectors: Tensor) -> Tensor:
    """(N, D) -> (N, D) of length one, after their mean is subtracted."""
    return F.normalize(vectors - vectors.mean(0), dim=1)


def retrieval(pictures: Tensor, captions: Tensor, texts: Sequence[str]) -> dict[str, Any]:
    """Return name -> entry: how often the right caption is among the nearest 1 and 5 of a picture, and the reverse.

    `pictures`, `captions`: (N, D), compared by cosine after each mean is subtracted. `texts`: the captions; equal ones count as one.
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    groups = torch.tensor([numbers[text] for text in texts])
    first, second = centred(pictures), centred(captions)
    report = {}
    for name, queries, gallery in (("caption_of_picture", first, second), ("picture_of_caption", second, first)):
        found = torch.cat([(part @ gallery.T).topk(min(5, len(gallery))).indices for part in queries.split(1024)])
        right = groups[found] == groups[:, None]
        for at in (1, 5):
            how = f"share of {len(texts)} ({len(numbers)} different captions) with the right one among the nearest {at}; means of word rows"
            report[f"{name}_at_{at}"] = entry(100 * float(right[:, :at].any(1).float().mean()), unit="%", protocol=how)
    return report


def label_probes(train: Tensor, known: Sequence[str], test: Tensor, wanted: Sequence[str]) -> dict[str, Any]:
    """Return name -> entry: accuracy of nearest neighbours and of a linear classifier, learned from some pictures, on others.

    `train`, `test`: (N, D) and (M, D). `known`, `wanted`: their labels, at least two different ones.
    """
    names = {name: number for number, name in enumerate(sorted({*known, *wanted}))}
    classes, right = (torch.tensor([names[label] for label in labels]) for labels in (known, wanted))
    unit, shared = F.normalize(train, dim=1), f"{len(test)} pictures, learned from {len(train)} others, {len(names)} classes"
    near = torch.cat([(F.normalize(part, dim=1) @ unit.T).topk(min(NEIGHBOURS, len(train))).indices for part in test.split(1024)])
    guessed = F.one_hot(classes[near], len(names)).sum(1).argmax(1)
    mean, deviation = train.mean(0), train.std(0, correction=0).clamp_min(1e-6)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    weight, bias = torch.zeros(len(names), train.shape[1], requires_grad=True), torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(train, weight, bias), classes) + DECAY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = {"knn": guessed, "linear_probe": F.linear(test, weight, bias).argmax(1)}
    how = {"knn": f"{NEIGHBOURS} nearest neighbours by cosine", "linear_probe": f"logistic regression, weight decay {DECAY:g}"}
    shares = {name: float((classes == right).float().mean()) for name, classes in found.items()}
    return {name: entry(100 * share, unit="%", protocol=f"{how[name]}; {shared}") for name, share in shares.items()}
