"""Schedules end where they say."""

import pytest

from unicode.common.schedules import language_ratio, learning_rate, quantization_strength


def test_learning_rate_warms_up_and_ends_at_the_minimum() -> None:
    rates = [learning_rate(step, peak=1.0, minimum=0.1, warmup_steps=10, steps=100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[54] == pytest.approx(0.55, abs=0.02)


def test_ratio_rises_to_one_and_stays_for_the_tail() -> None:
    ratios = [language_ratio(step, steps=100, tail=0.2) for step in range(100)]
    assert ratios[0] == 0
    assert ratios == sorted(ratios)
    assert ratios[78] < 1
    assert ratios[80:] == [1.0] * 20
    assert language_ratio(1, steps=1, tail=0.0) == 1


def test_strength_fades_in() -> None:
    assert [quantization_strength(step, steps=100, fade_in=0.1) for step in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    assert quantization_strength(0, steps=100, fade_in=0.0) == 1
