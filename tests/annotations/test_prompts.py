"""Templates: enough, sound, drawn evenly and by seed and record alone."""

import re
from collections import Counter

import pytest

from unicode.annotations.templates import (
    CAPTION,
    DECOMPRESSION,
    FIRST_ROW,
    LABEL_CAPTION,
    LABEL_CHOICE,
    LABEL_CLAIM,
    LABEL_WHAT,
    NEXT_ROW,
    TEMPLATES,
    TEXT_TO_IMAGE,
    UNCONDITIONAL,
    draw,
    draw_share,
    fill,
)

SLOTS = {
    TEXT_TO_IMAGE: ["caption"],
    NEXT_ROW: ["caption", "ids"],
    FIRST_ROW: ["caption"],
    UNCONDITIONAL: [],
    DECOMPRESSION: ["ids"],
    CAPTION: [],
    LABEL_CAPTION: ["noun"],
    LABEL_WHAT: [],
    LABEL_CHOICE: ["choice"],
    LABEL_CLAIM: ["noun"],
}


def test_every_task_has_many_different_templates_with_its_slots() -> None:
    assert set(TEMPLATES) == set(SLOTS)
    for task, templates in TEMPLATES.items():
        assert len(templates) >= 16
        assert len(set(templates)) == len(templates)
        for template in templates:
            assert sorted(re.findall(r"{(\w*)}", template)) == SLOTS[task], template
            assert template == template.strip() and template.isascii() and "<" not in template


def test_values_stay_as_they_are() -> None:
    caption = 'a {caption} "with" {0} braces {{}} \\1'
    for seed in range(40):
        assert caption in fill(TEXT_TO_IMAGE, seed, "key", caption=caption)


def test_draws_depend_on_seed_and_key_alone() -> None:
    assert draw(1000, 3, "a", "b") == draw(1000, 3, "a", "b")
    assert len({draw(10**6, seed, key) for seed in range(10) for key in ("a", "b", "ab")}) == 30
    assert draw(10**9, 0, "a", "bc") != draw(10**9, 0, "ab", "c")
    assert fill(UNCONDITIONAL, 5, "\ud800")  # half a surrogate pair in an id is no reason to stop


def test_draws_are_even() -> None:
    counts = Counter(draw(8, 0, "row", str(number)) for number in range(8000))
    assert set(counts) == set(range(8)) and all(880 < count < 1120 for count in counts.values())  # 4 sigma
    shares = [draw_share(0, str(number)) for number in range(4000)]
    assert min(shares) >= 0 and max(shares) < 1 and abs(sum(shares) / 4000 - 0.5) < 0.02
    drawn = Counter(fill(UNCONDITIONAL, 0, str(number)) for number in range(3200))
    assert set(drawn) == set(TEMPLATES[UNCONDITIONAL]) and min(drawn.values()) > 120


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="no templates for task 'nothing'"):
        fill("nothing", 0, "key")
    with pytest.raises(ValueError, match="one at least"):
        draw(0, 0)
