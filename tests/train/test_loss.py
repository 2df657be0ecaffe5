"""Losses by kind and task: targets found, normalized over a step, and equal to the language model's own loss where both apply."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from unicode.train import loss
from unicode.train.loss import IMAGE, TASK_NAMES, TEXT, LossTable, Targets, combine, find_targets, prepare_forward_, target_losses

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


def targets_of(made: dict[str, torch.Tensor], *, weights: tuple[float, float] = (1.0, 1.0)) -> Targets:
    return find_targets(made["labels"], made["is_image"], made["tasks"], torch.tensor(weights))


def losses_of(made: dict[str, torch.Tensor], targets: Targets) -> torch.Tensor:
    return target_losses(made["logits"].flatten(0, 1)[targets.at], targets)


def test_every_target_has_the_loss_that_transformers_gives_it() -> None:
    made = batch(0)
    targets = targets_of(made)
    expected = F.cross_entropy(made["logits"][:, :-1].flatten(0, 1), made["labels"][:, 1:].flatten(), ignore_index=-100)
    assert torch.allclose(losses_of(made, targets).mean(), expected)
    assert targets.kinds.sum() == (made["is_image"][:, 1:] & (made["labels"][:, 1:] != -100)).sum()


def test_logits_are_computed_only_where_something_is_learned(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.randint(0, 60, (2, 6))
    labels = torch.full((2, 6), -100)
    labels[0, 3], labels[1, 5] = 4, 7
    targets = find_targets(labels, torch.zeros(2, 6, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.long), torch.ones(1))
    assert (targets.at.tolist(), targets.ids.tolist()) == ([2, 10], [4, 7])
    expected = model(input_ids=ids).logits
    prepare_forward_(model)
    found = model(input_ids=ids, logits_at=targets.at).logits
    assert found.shape == (1, 2, 60)
    torch.testing.assert_close(found[0], expected.flatten(0, 1)[targets.at])
    assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_of_large_logits_change_nothing(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    made = batch(1, rows=8)
    targets = targets_of(made)
    found = []
    for chunk in (loss.CHUNK, 3 * V + 1, 1):
        monkeypatch.setattr(loss, "CHUNK", chunk)
        logits = made["logits"].to(dtype).flatten(0, 1)[targets.at].requires_grad_()
        nll = target_losses(logits, targets)
        (nll * torch.linspace(1, 2, len(nll))).sum().backward()
        found.append((nll.detach(), logits.grad))
    for nll, gradient in found[1:]:
        assert torch.equal(nll, found[0][0]) and torch.equal(gradient, found[0][1])


def test_no_float32_copy_of_large_logits_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = batch(2, rows=8)
    targets = targets_of(made)
    monkeypatch.setattr(loss, "CHUNK", 4 * V)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        target_losses(made["logits"].bfloat16().flatten(0, 1)[targets.at].requires_grad_(), targets)
    assert not [tensor for tensor in kept if tensor.dtype == torch.float32 and tensor.numel() >= V]


def test_shares_of_micro_batches_add_up_to_the_loss_of_the_step() -> None:
    weights, kind_weights = (2.0, 0.5), torch.tensor([1.0, 0.3])
    parts = [batch(seed) for seed in range(4)]
    found = [targets_of(made, weights=weights) for made in parts]
    nlls = [losses_of(made, targets) for made, targets in zip(parts, found, strict=True)]
    totals = torch.stack([targets.total_weights() for targets in found]).sum(0).float()
    shares = sum(combine(nll, targets, totals=totals, kind_weights=kind_weights) for nll, targets in zip(nlls, found, strict=True))
    nll, kinds, weight = (torch.cat(values) for values in (nlls, [t.kinds for t in found], [t.weights for t in found]))
    means = [(nll * weight)[kinds == kind].sum() / weight[kinds == kind].sum() for kind in (TEXT, IMAGE)]
    assert torch.allclose(torch.as_tensor(shares), means[0] + 0.3 * means[1])


def test_one_kind_alone_is_the_plain_mean() -> None:
    made = batch(5)
    made["is_image"] = torch.zeros_like(made["is_image"])
    targets = targets_of(made)
    nll = losses_of(made, targets)
    assert torch.allclose(combine(nll, targets, totals=targets.total_weights().float(), kind_weights=torch.ones(2)), nll.mean())


def test_the_table_gives_means_by_kind_and_task() -> None:
    table, made = LossTable(torch.device("cpu")), batch(7)
    targets = targets_of(made)
    nll = losses_of(made, targets)
    table.add(nll, targets)
    table.add(nll + 100, targets, weight=0.0)
    found = table.take()
    assert found["text_loss"] == pytest.approx(float(nll[targets.kinds == TEXT].mean()))
    assert found["image_targets"] == int((targets.kinds == IMAGE).sum())
    assert found[f"loss/{TASK_NAMES[0]}"] == pytest.approx(float(nll[targets.tasks == 0].mean()))
    assert f"loss/{TASK_NAMES[2]}" not in found
    assert table.take() == {}
