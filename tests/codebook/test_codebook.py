"""The four modes: gradients, updates, scale, restart, and the mathematics of each."""

import pytest
import torch
import torch.nn.functional as F

from unicode.codebook.codebook import Codebook, CodebookConfig, build_codebooks, update_codebooks_
from unicode.codebook.embedding_table import LanguageTable
from unicode.codebook.quantizers import commitment_loss, straight_through

ALL = ("free", "frozen", "language", "projected")


def build(mode: str, table: LanguageTable, **changes: object) -> Codebook:
    torch.manual_seed(0)
    values = {"mode": mode, "num_rows": 40, "width": 24 if mode == "free" else 0} | changes
    return build_codebooks(CodebookConfig(**values), table, channels=[24])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ALL)
def test_straight_through_has_gradient_one_and_the_exact_value(mode: str, table: LanguageTable) -> None:
    codebook = build(mode, table)
    latents = torch.randn(2, 5, codebook.width, requires_grad=True)
    quantized = codebook.lookup(codebook.search(latents))
    values = straight_through(latents, quantized)
    assert torch.equal(values, quantized)
    values.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


@pytest.mark.parametrize("mode", ALL)
def test_commitment_pulls_latents_and_only_projected_rows_take_gradient(mode: str, table: LanguageTable) -> None:
    codebook = build(mode, table)
    latents = torch.randn(2, 5, codebook.width, requires_grad=True)
    rows = codebook.training_rows()
    loss = commitment_loss(latents, codebook.lookup(codebook.search(latents, rows), rows), beta=0.25)
    loss.backward()
    assert latents.grad.norm() > 0
    assert [name for name, parameter in codebook.named_parameters() if parameter.grad is not None] == (
        ["projection"] if mode == "projected" else []
    )


@pytest.mark.parametrize("mode", ALL)
def test_search_is_the_definition_with_scale(mode: str, table: LanguageTable) -> None:
    codebook = build(mode, table)
    codebook.scale.fill_(3.0)
    latents = torch.randn(4, 6, codebook.width)
    distances = torch.cdist(latents.flatten(0, 1) / 3.0, codebook.rows)
    codes = codebook.search(latents)
    assert torch.equal(codes.flatten(), distances.argmin(1))
    assert torch.allclose(codebook.lookup(codes), 3.0 * codebook.rows[codes])


def test_average_is_the_decayed_sum_over_the_decayed_count(table: LanguageTable) -> None:
    codebook = build("free", table, restart_threshold=0.0)
    sums, counts = torch.zeros_like(codebook.rows), torch.zeros(40)
    start = codebook.rows.clone()
    for step in range(5):
        latents = torch.randn(30, 24, generator=torch.Generator().manual_seed(step))
        codes = codebook.search(latents)
        codebook.accumulate(latents, codes)
        update_codebooks_([codebook])
        sums, counts = sums * 0.99, counts * 0.99
        sums.index_add_(0, codes, 0.01 * latents)
        counts += 0.01 * torch.bincount(codes, minlength=40)
        used = counts > 0
        assert torch.allclose(codebook.rows[used], sums[used] / counts[used, None], atol=1e-5)
        assert torch.equal(codebook.rows[~used], start[~used])


def test_several_batches_of_a_step_are_one(table: LanguageTable) -> None:
    once, twice = build("free", table, restart_threshold=0.0), build("free", table, restart_threshold=0.0)
    latents = torch.randn(64, 24)
    codes = once.search(latents)
    once.accumulate(latents, codes)
    for part, part_codes in zip(latents.chunk(2), codes.chunk(2), strict=True):
        twice.accumulate(part, part_codes)
    update_codebooks_([once])
    update_codebooks_([twice])
    assert torch.allclose(once.rows, twice.rows, atol=1e-6)


def test_language_rows_equal_the_table_to_the_last_bit_at_ratio_one(table: LanguageTable) -> None:
    codebook = build("language", table)
    for ratio in (0.0, 0.4, 1.0):
        codebook.ratio.fill_(ratio)
        latents = torch.randn(50, 24)
        codebook.accumulate(latents, codebook.search(latents))
        update_codebooks_([codebook])
        language = table.rows[codebook.row_ids]
        expected = (1 - ratio) * codebook.ema.average + ratio * language  # type: ignore[union-attr, operator]
        assert torch.allclose(codebook.rows, expected, atol=1e-5)
    assert torch.equal(codebook.rows, language)


def test_projected_rows_are_standardized_projected_and_of_length_one(table: LanguageTable) -> None:
    codebook = build("projected", table, width=6)
    rows = table.rows[codebook.row_ids]
    standardized = (rows - rows.mean(0)) / rows.std(0, correction=0)
    assert torch.allclose(codebook.rows, F.normalize(standardized @ codebook.projection, dim=1), atol=1e-6)  # type: ignore[operator]


def test_scale_is_the_running_mean_of_lengths_and_constant_in_use(table: LanguageTable) -> None:
    codebook = build("frozen", table)
    latents = 7 * torch.randn(200, 24)
    codebook.accumulate(latents, codebook.search(latents))
    update_codebooks_([codebook])
    expected = latents.norm(dim=1).mean() / codebook.rows.norm(dim=1).mean()
    assert torch.allclose(codebook.scale, expected, rtol=1e-5)
    before = codebook.scale.clone()
    codebook.eval()
    codebook.search(100 * latents)
    update_codebooks_([codebook])
    assert torch.equal(codebook.scale, before)


def test_dead_rows_restart_at_latents_with_sum_and_count(table: LanguageTable) -> None:
    codebook = build("free", table, restart_threshold=0.1)
    latents = torch.full((64, 24), 9.0) + 0.01 * torch.randn(64, 24)
    for _ in range(3):
        codebook.accumulate(latents, codebook.search(latents))
        update_codebooks_([codebook])
    distances = torch.cdist(codebook.rows, latents).min(1).values
    assert (distances < 0.5).all()
    assert (codebook.ema.count > 0).all()  # type: ignore[union-attr, operator]


def test_usage_is_counted_once_and_entropy_prefers_spread(table: LanguageTable) -> None:
    codebook = build("projected", table, width=6)
    latents = torch.randn(4, 5, 6)
    codes = codebook.search(latents)
    codebook.accumulate(latents.flatten(0, 1), codes.flatten())
    assert codebook.take_usage().sum() == 20
    assert codebook.take_usage().sum() == 0
    spread = codebook.rows[:20].view(4, 5, 6)
    same = codebook.rows[:1].expand(20, 6).reshape(4, 5, 6)
    assert codebook.soft_assignment_entropy(spread, codebook.rows) < codebook.soft_assignment_entropy(same, codebook.rows)


@pytest.mark.parametrize("mode", ["language", "projected"])
def test_levels_share_one_table_wherever_they_are_moved(mode: str, table: LanguageTable) -> None:
    stack = torch.nn.ModuleList(build_codebooks(CodebookConfig(mode=mode, num_rows=40), table, channels=[24, 24]))
    for moved in (stack, stack.to(torch.float64), stack.to("meta")):
        first, second = (book.target if mode == "language" else book.table for book in moved)
        assert first.rows is second.rows
    assert not any("target" in name or "table" in name for name in stack.state_dict())


@pytest.mark.parametrize("mode", ALL)
def test_statistics_do_not_wait_for_the_device(
    mode: str, table: LanguageTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("bincount was called")

    monkeypatch.setattr(torch, "bincount", refuse)
    codebook = build(mode, table)
    latents = torch.randn(30, codebook.width)
    codebook.accumulate(latents, codebook.search(latents))
    update_codebooks_([codebook])
    assert codebook.take_usage().sum() == 30


def test_the_entropy_term_is_float32_under_autocast(table: LanguageTable) -> None:
    codebook = build("projected", table, width=6)
    latents = torch.randn(4, 5, 6)
    expected = codebook.soft_assignment_entropy(latents, codebook.rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.soft_assignment_entropy(latents, codebook.rows), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "fre"}, "choose one of"),
        ({"mode": "free"}, "num_rows"),
        ({"decay": 1.0}, "decay"),
        ({"normalize": "x"}, "normalize"),
        ({"num_rows": -1}, "negative"),
    ],
)
def test_nonsense_is_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodebookConfig(**changes)  # type: ignore[arg-type]


def test_missing_table_and_wrong_width_name_the_remedy(table: LanguageTable) -> None:
    with pytest.raises(ValueError, match="export_codebook"):
        build_codebooks(CodebookConfig(mode="language"), None, channels=[8])
    with pytest.raises(ValueError, match=r"width 7 differs.*projected"):
        build_codebooks(CodebookConfig(mode="frozen", width=7), table, channels=[8])
