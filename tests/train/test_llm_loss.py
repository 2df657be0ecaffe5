"""Losses by kind and task: targets found, normalized over a step, and equal to the language model's own loss where both apply."""

import pytest
import torch
import torch.nn.functional as F

from unicode.train.loss import IMAGE, TEXT, LossTable, combine, find_targets, target_losses

V = 11


def batch(seed: int, rows: int = 3, length: int = 9) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, V, (rows, length), generator=random)
    labels[torch.rand(rows, length, generator=random) < 0.5] = -100
    return {
        "logits": torch.randn(rows, length, V, generator=random),
        "labels": labels,
        "is_image": torch.rand(rows, length, generator=random) < 0.5,
        "tasks": torch.randint(0, 2, (rows, 1), generator=random).expand(rows, length),
    }


def targets_of(made: dict[str, torch.Tensor], *, keep: bool, weights: tuple[float, float] = (1.0, 1.0)):
    return find_targets(made["labels"], made["is_image"], made["tasks"], torch.tensor(weights), keep_logits=keep)


@pytest.mark.parametrize("keep", [False, True])
def test_every_target_has_the_loss_that_transformers_gives_it(keep: bool) -> None:
    made = batch(0)
    targets = targets_of(made, keep=keep)
    logits = made["logits"] if targets.keep is None else made["logits"][:, targets.keep]
    expected = F.cross_entropy(made["logits"][:, :-1].flatten(0, 1), made["labels"][:, 1:].flatten(), ignore_index=-100)
    assert torch.allclose(target_losses(logits, targets).mean(), expected)
    assert targets.kinds.sum() == (made["is_image"][:, 1:] & (made["labels"][:, 1:] != -100)).sum()


def test_logits_that_nothing_learns_from_are_not_asked_for() -> None:
    labels = torch.full((2, 6), -100)
    labels[0, 3], labels[1, 5] = 4, 7
    targets = find_targets(labels, torch.zeros(2, 6, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.long), torch.ones(1))
    assert targets.keep is not None
    assert targets.keep.tolist() == [2, 4]
    assert targets.at.tolist() == [0, 3]
    assert targets.ids.tolist() == [4, 7]


def test_shares_of_micro_batches_add_up_to_the_loss_of_the_step() -> None:
    weights, kind_weights = (2.0, 0.5), torch.tensor([1.0, 0.3])
    parts = [batch(seed) for seed in range(4)]
    found = [targets_of(made, keep=False, weights=weights) for made in parts]
    nlls = [target_losses(made["logits"], targets) for made, targets in zip(parts, found, strict=True)]
    totals = torch.stack([targets.total_weights() for targets in found]).sum(0).float()
    shares = sum(combine(nll, targets, totals=totals, kind_weights=kind_weights) for nll, targets in zip(nlls, found, strict=True))
    nll, kinds, weight = (torch.cat(values) for values in (nlls, [t.kinds for t in found], [t.weights for t in found]))
    means = [(nll * weight)[kinds == kind].sum() / weight[kinds == kind].sum() for kind in (TEXT, IMAGE)]
    assert torch.allclose(torch.as_tensor(shares), means[0] + 0.3 * means[1])


def test_one_kind_alone_is_the_plain_mean() -> None:
    made = batch(5)
    made["is_image"] = torch.zeros_like(made["is_image"])
    targets = targets_of(made, keep=False)
    nll = target_losses(made["logits"], targets)
    assert torch.allclose(combine(nll, targets, totals=targets.total_weights().float(), kind_weights=torch.ones(2)), nll.mean())


def test_the_table_gives_means_by_kind_and_task() -> None:
    table, made = LossTable(["a", "b", "c"], torch.device("cpu")), batch(7)
    targets = targets_of(made, keep=False)
    nll = target_losses(made["logits"], targets)
    table.add(nll, targets)
    table.add(nll + 100, targets, weight=0.0)
    found = table.take()
    assert found["text_loss"] == pytest.approx(float(nll[targets.kinds == TEXT].mean()))
    assert found["image_targets"] == int((targets.kinds == IMAGE).sum())
    assert found["loss/a"] == pytest.approx(float(nll[targets.tasks == 0].mean()))
    assert "loss/c" not in found
    assert table.take() == {}
