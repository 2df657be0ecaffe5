"""What LLaVA's own scripts made of the golden answers comes out of the command, file by file."""

from pathlib import Path

import pytest

from unicode.common.files import read_json, read_jsonl
from unicode.run import benchmark

GOLDEN = Path(__file__).parents[1] / "golden" / "benchmarks"
FILES = sorted(path.name for path in (GOLDEN / "expected").iterdir() if path.name != "evalai_normalisation.json")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all golden answers."""
    folder = tmp_path_factory.mktemp("scores")
    assert benchmark.main(["all", "--answers", str(GOLDEN / "answers"), "--data", str(GOLDEN), "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", FILES)
def test_expected_files(out: Path, name: str) -> None:
    made = out / name.split(".")[0].split("_")[0] / name
    read = read_json if name.endswith(".json") else lambda path: list(read_jsonl(path))
    assert read(made) == read(GOLDEN / "expected" / name)


def test_one_benchmark_by_its_file(tmp_path: Path) -> None:
    words = ["--data", str(GOLDEN), "--out", str(tmp_path)]
    assert benchmark.main(["pope", "--answers", str(GOLDEN / "answers" / "pope.jsonl"), *words]) == 0
    report = read_json(tmp_path / "pope" / "scores.json")
    assert report["n_expected"] == report["n_answered"] == 240
    assert report["headline"] == pytest.approx(100 * (0.6923076923076923 + 0.7123287671232877 + 0.7526881720430108) / 3)
