import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unicode.ids.store import Store
from unicode.images.listing import spread
from unicode.images.lookup import ImageLookup
from unicode.report.page import clock, line_chart, number, picture
from unicode.report.sections import (
    benchmarks_section,
    count_right,
    flatten,
    generation_section,
    plain,
    read_answers,
    read_curves,
    read_grid,
    read_object,
    read_steps,
)
from unicode.report.words import count_words, draw_map, find_examples, read_words, shared_words, word_card
from unicode.run.report import main, named

SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "ids"


def test_curves_are_grouped_and_a_line_cut_short_is_skipped(runs):
    groups = read_curves(runs.llm)
    assert next(iter(groups)) == "loss" and set(groups["loss"]) == {"loss", "eval_loss", "train/loss_vqa"}
    assert [step for step, _ in groups["loss"]["loss"]] == list(range(20, 420, 20))
    assert set(read_curves(runs.tokenizer)["usage"]) == {"usage_0", "usage_1"}
    assert read_curves(runs.root / "nowhere") == {} and read_object(runs.root / "nowhere.json") == {}


@pytest.mark.parametrize("settings", [None, "{}", '{"sampling": [1]}', '{"sampling": {"temperature": "warm", "guidance": null}}'])
def test_drawings_without_a_known_sampling_are_shown_all_the_same(runs, tmp_path, settings):
    shutil.copytree(runs.generation, tmp_path / "drawn")
    lines = (tmp_path / "drawn" / "results.jsonl").read_text().replace('"seconds": 0.25', '"seconds": 131.7')
    (tmp_path / "drawn" / "results.jsonl").write_text(lines)
    (tmp_path / "drawn" / "settings.json").unlink()
    if settings is not None:
        (tmp_path / "drawn" / "settings.json").write_text(settings)
    assert "from a prompt, 130 s each" in generation_section(tmp_path / "drawn").blocks[0]["text"]


def test_drawings_outside_the_folder_are_not_read(runs, tmp_path):
    shutil.copytree(runs.generation, tmp_path / "drawn")
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    lines = (tmp_path / "drawn" / "results.jsonl").read_text()
    for name in ("../private.png", str(tmp_path / "private.png")):
        (tmp_path / "drawn" / "results.jsonl").write_text(lines.replace('"0.png"', f'"{name}"'))
        assert generation_section(tmp_path / "drawn").blocks[0]["text"].startswith("8 images")


def test_a_skipped_step_keeps_the_time_of_its_work(runs):
    steps = read_steps(runs.steps)
    assert [step["step"] for step in steps] == ["base", "tokenizer", "lora", "vqa"]
    assert steps[0]["seconds"] == 61.2 and not steps[0]["skipped"] and steps[3]["peak_mib"] is None


def test_grid_is_cut_into_its_pictures(runs):
    grid = read_grid(runs.reconstruction / "grid.png", 32)
    assert grid.shape == (3, 6, 32, 32, 3)
    assert tuple(grid[0, 0, 16, 16]) == (200, 40, 40) and tuple(grid[2, 1, 16, 16]) == (40, 160, 60)
    with pytest.raises(ValueError, match="pictures of 31 pixels"):
        read_grid(runs.reconstruction / "grid.png", 31)


def test_answers_are_counted_by_split_and_form(tmp_path):
    about = [("unseen", "seen", "tone"), ("unseen", "held", "tone"), ("new", "held", "what")]
    lines = [dict(zip(("split", "form", "category"), one, strict=True)) | {"question_id": n, "answer": "a"} for n, one in enumerate(about)]
    for name, texts in (("questions", lines), ("answers", [{"question_id": n, "text": "ab"[n == 1]} for n in range(3)])):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in texts))
    assert count_right(read_answers(tmp_path / "questions", tmp_path / "answers")) == {
        "all": (2, 3), "new, held forms of words": (1, 1), "new, what": (1, 1),
        "unseen, held forms of words": (0, 1), "unseen, seen forms of words": (1, 1), "unseen, tone": (1, 2),
    }  # fmt: skip


def test_answers_are_counted_by_kind(runs):
    asked = read_answers(runs.questions, runs.answers)
    assert len(asked) == 24 and asked[0].right is False and asked[1].right is True
    assert count_right(asked) == {"all": (18, 24), "colour": (6, 12), "count": (12, 12)}
    assert plain(" The Red.") == plain("red") == "red" and plain("two") != plain("2")


def test_scores_of_all_benchmarks(runs):
    table, *numbers = benchmarks_section({"this model": runs.benchmarks}).blocks
    assert table["head"] == ["benchmark", "this model", "blind, grey", "unit", "answered"]
    assert table["rows"][0] == ["GQA", 85.5, 50.0, "%", "88 of 90"]
    assert "one file is missing" in [block.get("text") for block in numbers[0]["blocks"]]
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": True}) == {"a.b": 1, "a.c.d": None, "e": "True"}


def test_a_map_has_a_dot_for_every_id():
    counts = np.stack([np.bincount(ids, minlength=40) for ids in ([1, 1, 2, 3], [3, 4, 5, 6])])
    eligible = np.arange(40) > 0
    pixels = draw_map(counts, eligible).reshape(-1, 4)
    assert pixels[0, 3] == 0 and pixels[1, 3] == 255 > pixels[2, 3] > pixels[30, 3] > 0
    assert len({tuple(pixels[index, :3]) for index in (1, 3, 5, 30)}) == 4  # coarse, both, fine, unused
    assert not pixels[40:].any()


def test_words_stand_in_the_places_of_the_coarse_codes():
    words = {1: " red", 2: "<", 3: "\n"}
    card = word_card(np.zeros((8, 8, 3), np.uint8), "a circle", (np.array([[1, 2], [1, 1]]), np.full((4, 4), 3)), words.__getitem__)
    assert card.words == [["red", "<"], ["red", "red"]] and card.lines == ["finer: newline (16 times)"]
    wide = word_card(np.zeros((8, 8, 3), np.uint8), "a circle", (np.full((9, 9), 1),), words.__getitem__)
    assert wide.words == [] and wide.lines == ["coarse: red (81 times)"]


def test_words_of_a_store(tmp_path, tiny_llama):
    store = Store(SAMPLE)
    counts, num_images = count_words([store])
    assert num_images == len(store) and counts.shape == (2, 32000) and counts.sum() == num_images * 320
    key = next(iter(store))
    (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(tmp_path / key)
    (tmp_path / key).with_suffix(".txt").write_text("Something else.")
    (card,) = find_examples([store], ImageLookup([tmp_path]), str, about="red circle")
    coarse = store.layout.split(store.layout.restore(store[key]))[0].reshape(8, 8)
    assert card.title == "Something else." and card.words == [[str(index) for index in row] for row in coarse]
    word = read_words(tiny_llama)
    assert any(word(index).startswith(" ") for index in range(50)) and word(31_999) == "31999"
    out = tmp_path / "page.html"
    assert main(["--out", str(out), "--ids", str(SAMPLE), "--base", str(tiny_llama), "--images", str(tmp_path)]) == 0
    assert "Something else." in out.read_text(encoding="utf-8")


def test_tokens_that_pictures_about_something_share():
    layout, ids = SimpleNamespace(vocab_size=9), {"a": [1, 2, 2], "b": [1, 3, 4], "c": [3, 4, 4], "d": [3, 3, 3]}
    store = type("Made", (dict,), {"spec": layout})({key: np.array(row) for key, row in ids.items()})
    captions = SimpleNamespace(caption=lambda key: "a Face" if key in "ab" else "")
    title, shares = shared_words([store], captions, str, about="face")
    assert title["text"] == 'What pictures about "face" share' and shares["head"][1:] == ['of 2 pictures about "face", %', "of 2 others, %"]
    assert shares["rows"][:2] == [["1", 100.0, 0.0], ["2", 50.0, 0.0]] and shares["rows"][-1][1:] == [50.0, 100.0]
    assert shared_words([store], captions, str, about="nothing") == []


def test_charts():
    chart = line_chart("loss", {"a": [(0, 100.0), (10, 1.0), (20, float("nan"))], "b": [(0, 5.0)]})
    assert chart["logarithmic"] and len(chart["series"]) == 1 and chart["label"].startswith("loss over step 0 to 10")
    assert len(line_chart("flat", {"a": [(1, 0.0), (2, 0.0)]})["series"]) == 1
    assert line_chart("none", {"a": [(1, 1.0)]}) is None
    assert line_chart("long", {"a": [(step, step % 7) for step in range(5000)]})["series"][0][2].count(",") < 500


def test_pictures_are_small_and_described():
    noise = np.random.default_rng(0).integers(0, 255, (900, 600, 3), dtype=np.uint8)
    assert picture(noise, "noise")["uri"].startswith("data:image/jpeg")
    assert picture(Image.new("RGBA", (300, 300)), "nothing")["uri"].startswith("data:image/png")
    small = picture(noise[:32, :32], "noise")
    assert small["uri"].startswith("data:image/png") and (small["style"], small["width"], small["height"]) == ("pixels", 32, 32)
    with pytest.raises(AssertionError, match="no alternative text"):
        picture(noise, " ")


NUMBERS = [(3, "3"), (12345, "12,345"), (0.123456, "0.1235"), (35.5, "35.5"), (0.0, "0"), (1234.56, "1,235")]


def test_numbers_and_names():
    assert [number(value) for value, _ in NUMBERS] == [shown for _, shown in NUMBERS]
    assert [clock(seconds) for seconds in (0.42, 12.4, 200, 7500)] == ["0.42 s", "12 s", "3.3 min", "2.1 h"]
    assert spread(range(10), 4) == [0, 2, 5, 7] and spread([1], 4) == [1]
    assert named(["a/b", "c/blind.jsonl", "x=d=e"]) == {"this model": "a/b", "blind": "c/blind.jsonl", "x": "d=e"}
    with pytest.raises(ValueError, match="two things are called b"):
        named(["a", "x/b", "y/b"])
