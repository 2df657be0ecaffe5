from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unicode.ids.store import Store
from unicode.images.lookup import ImageLookup
from unicode.run.report import count_words, find_examples, find_stores, main, named, read_words

SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "ids"


def test_words_of_a_store(tmp_path, tiny_llama):
    stores = find_stores([SAMPLE], None)
    counts, number = count_words(stores)
    assert number == len(stores[0]) and counts.shape == (2, 32000) and counts.sum() == number * 320
    key = next(iter(Store(SAMPLE)))
    (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(tmp_path / key)
    (tmp_path / key).with_suffix(".txt").write_text("Something else.")
    examples = find_examples(stores, ImageLookup([tmp_path]), "red circle")
    assert [one.caption for one in examples] == ["Something else."]
    assert [level.shape for level in examples[0].levels] == [(8, 8), (16, 16)]
    np.testing.assert_array_equal(stores[0].layout.split(stores[0].layout.restore(stores[0][key]))[1], examples[0].levels[1].ravel())
    word = read_words(tiny_llama)
    assert any(word(index).startswith(" ") for index in range(50)) and word(31_999) == "31999"
    out = tmp_path / "page.html"
    assert main(["--out", str(out), "--ids", str(SAMPLE), "--base", str(tiny_llama), "--images", str(tmp_path)]) == 0
    assert "Something else." in out.read_text(encoding="utf-8")


def test_names_of_things_that_are_compared():
    assert named(["a/b", "c/blind.jsonl", "x=d=e"]) == {"this model": "a/b", "blind": "c/blind.jsonl", "x": "d=e"}
    with pytest.raises(ValueError, match="two things are called b"):
        named(["a", "x/b", "y/b"])
