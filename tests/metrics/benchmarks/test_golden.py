"""Every file that LLaVA's own scripts made of the golden answers comes out again, and is written as it should be."""

import json
from pathlib import Path

import pytest

from unicode.metrics.benchmarks import BENCHMARKS
from unicode.metrics.benchmarks.base import Options, Score, read_answers
from unicode.metrics.benchmarks.vqa import normalize_answer

GOLDEN = Path(__file__).parents[2] / "golden" / "benchmarks"
EXPECTED = {
    "vqav2": ["vqav2_upload.json"],
    "gqa": ["gqa_predictions.json"],
    "sqa": ["sqa.json"],
    "textvqa": ["textvqa.json"],
    "pope": ["pope.json"],
    "seed": ["seed.json", "seed_upload.jsonl"],
}


def golden_score(name: str) -> Score:
    benchmark = BENCHMARKS[name]
    answers, notes = read_answers(GOLDEN / "answers" / f"{name}.jsonl", benchmark.key_of)
    assert not notes
    return benchmark.score(GOLDEN, answers, Options())


@pytest.mark.parametrize("name", EXPECTED)
def test_the_expected_files_come_out(name, tmp_path):
    made = {path.name: path.read_text() for path in golden_score(name).write_files(tmp_path)}
    for file in EXPECTED[name]:
        expected = (GOLDEN / "expected" / file).read_text()
        if file.endswith(".jsonl") or "upload" in file or "predictions" in file:
            assert made[file] == expected
        assert (
            [json.loads(line) for line in made[file].splitlines()] == [json.loads(line) for line in expected.splitlines()]
            if (file.endswith(".jsonl"))
            else json.loads(made[file]) == json.loads(expected)
        )


def test_every_expected_file_is_looked_at():
    looked_at = {file for files in EXPECTED.values() for file in files} | {"evalai_normalisation.json"}
    assert {path.name for path in (GOLDEN / "expected").iterdir()} == looked_at


def test_evalai_normalisation():
    pairs = json.loads((GOLDEN / "expected" / "evalai_normalisation.json").read_text())
    assert len(pairs) == 500
    assert [normalize_answer(pair["raw"]) for pair in pairs] == [pair["normalised"] for pair in pairs]


@pytest.mark.parametrize(
    ("name", "headline", "expected", "answered", "unparsed"),
    [
        ("vqav2", None, 80, 68, 0),
        ("gqa", None, None, 60, 0),
        ("sqa", 34.85, 150, 144, 54),
        ("textvqa", 52.17, 120, 120, 0),
        ("pope", 71.91, 240, 240, 59),
        ("seed", 44.17, 120, 120, 0),
    ],
)
def test_counts(name, headline, expected, answered, unparsed):
    score = golden_score(name)
    assert score.headline == (None if headline is None else pytest.approx(headline, abs=0.005))
    assert (score.num_expected, score.num_answered, score.num_unparsed, score.num_unknown) == (expected, answered, unparsed, 0)


def test_a_report_is_json(tmp_path):
    for name in EXPECTED:
        report = json.loads(json.dumps(golden_score(name).to_dict(), allow_nan=False))
        assert report["files"] == sorted(EXPECTED[name])
        assert report["protocol"]
