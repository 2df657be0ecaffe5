import shutil

import numpy as np
import pytest

from unicode.report.answers import plain, read_answers, shares
from unicode.report.chart import line_chart
from unicode.report.curves import group_series
from unicode.report.drawings import generation_section
from unicode.report.machine import clock
from unicode.report.reconstruction import read_grid
from unicode.report.runs import read_metrics, read_object, read_steps, spread
from unicode.report.scores import benchmarks_section, flatten, read_scores, with_baselines
from unicode.report.vocabulary import Coded, count_ids, draw_map, vocabulary_section


def test_a_line_cut_short_is_passed_over(runs):
    metrics = read_metrics(runs.tokenizer)
    assert [line["step"] for line in metrics] == list(range(20, 420, 20))
    assert read_metrics(runs.root / "nowhere") == [] and read_object(runs.root / "nowhere.json") == {}


def test_groups_keep_what_belongs_together(runs):
    groups = group_series(read_metrics(runs.llm))
    assert next(iter(groups)) == "loss" and set(groups["loss"]) == {"loss", "eval_loss", "train/loss_vqa"}
    assert set(group_series(read_metrics(runs.tokenizer))["usage"]) == {"usage_0", "usage_1"}


@pytest.mark.parametrize("settings", [None, "{}", '{"sampling": [1]}', '{"sampling": {"temperature": "warm", "guidance": null}}'])
def test_drawings_without_a_known_sampling_are_shown_all_the_same(runs, tmp_path, settings):
    shutil.copytree(runs.generation, tmp_path / "drawn")
    lines = (tmp_path / "drawn" / "results.jsonl").read_text().replace('"seconds": 0.25', '"seconds": 131.7')
    (tmp_path / "drawn" / "results.jsonl").write_text(lines)
    (tmp_path / "drawn" / "settings.json").unlink()
    if settings is not None:
        (tmp_path / "drawn" / "settings.json").write_text(settings)
    assert "from a prompt, 130 s each" in generation_section(tmp_path / "drawn")[0].body


def test_a_skipped_step_keeps_the_time_of_its_work(runs):
    steps = read_steps(runs.steps)
    assert [step.name for step in steps] == ["base", "tokenizer", "lora", "vqa"]
    assert steps[0].seconds == 61.2 and not steps[0].skipped and steps[3].peak_mib is None


def test_grid_is_cut_into_its_pictures(runs):
    grid = read_grid(runs.reconstruction / "grid.png", 32)
    assert grid.shape == (3, 6, 32, 32, 3)
    assert tuple(grid[0, 0, 16, 16]) == (200, 40, 40) and tuple(grid[2, 1, 16, 16]) == (40, 160, 60)
    with pytest.raises(ValueError, match="pictures of 31 pixels"):
        read_grid(runs.reconstruction / "grid.png", 31)


def test_answers_are_judged_by_kind(runs):
    asked = read_answers(runs.questions, runs.answers)
    assert len(asked) == 24 and asked[0].right is False and asked[1].right is True
    assert shares(asked) == {"all": (18, 24), "colour": (6, 12), "count": (12, 12)}


def test_plain_answers():
    assert plain(" The Red.") == plain("red") == "red"
    assert plain("two") != plain("2")


def test_scores_of_all_benchmarks(runs):
    assert {name: one["headline"] for name, one in read_scores(runs.benchmarks).items()} == {"GQA": 85.5, "POPE": 85.5}
    assert with_baselines({"this model": runs.benchmarks}) == {"this model": runs.benchmarks, "blind, grey": runs.blind_benchmarks}
    body = benchmarks_section({"this model": runs.benchmarks}).body
    assert "88 of 90" in body and "blind, grey" in body and "one file is missing" in body and ">50<" in body
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": True}) == {"a.b": 1, "a.c.d": None, "e": "True"}


def test_a_map_has_a_dot_for_every_id():
    counts = count_ids([np.array([[1, 1], [2, 3]]), np.arange(4) + 3], size=40)
    assert counts.shape == (2, 40) and counts[0, 1] == 2 and counts[1, 3] == 1
    eligible = np.arange(40) > 0
    pixels = draw_map(counts, eligible).reshape(-1, 4)
    assert pixels[0, 3] == 0 and pixels[1, 3] == 255 > pixels[2, 3] > pixels[30, 3] > 0
    assert len({tuple(pixels[index, :3]) for index in (1, 3, 5, 30)}) == 4  # coarse, both, fine, unused
    assert not pixels[40:].any()


def test_pictures_are_spelled_out():
    levels = (np.array([[1, 2], [1, 1]]), np.full((4, 4), 3))
    words = {1: " red", 2: "<", 3: "\n"}
    picture = Coded(np.zeros((8, 8, 3), np.uint8), "a <red> circle", levels)
    body = vocabulary_section(count_ids(levels, 5), [picture], words.__getitem__, num_images=1).body
    assert body.count("<td>red</td>") == 4 and "<td>&lt;</td>" in body  # three in their places, one in the table of the commonest
    assert "finer: newline (16 times)" in body and "a &lt;red&gt; circle" in body


def test_charts():
    drawn = line_chart("loss", {"a": [(0, 100.0), (10, 1.0), (20, float("nan"))], "b": [(0, 5.0)]})
    assert "logarithmic" in drawn and drawn.count("<polyline") == 1 and 'aria-label="loss over step 0 to 10' in drawn
    assert line_chart("flat", {"a": [(1, 0.0), (2, 0.0)]}).count("<polyline") == 1
    assert line_chart("none", {"a": [(1, 1.0)]}) == ""
    long = line_chart("long", {"a": [(step, step % 7) for step in range(5000)]})
    assert long.count(",") < 500


def test_times_and_choices():
    assert [clock(seconds) for seconds in (0.42, 12.4, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]
    assert spread(range(10), 4) == [0, 2, 5, 7] and spread([1], 4) == [1]
