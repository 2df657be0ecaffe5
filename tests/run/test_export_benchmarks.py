"""The command that writes the shapes world as benchmarks."""

from pathlib import Path

import pytest

from unicode.run import export_benchmarks


def test_writes_what_is_named(tmp_path: Path) -> None:
    assert export_benchmarks.main(["pope", "gqa", "--out", str(tmp_path), "--scenes", "3", "--train", "4", "--world", "colours=4"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gqa", "pope", "shapes_forms_train.json"]
    assert len(list((tmp_path / "pope/val2014").glob("*.png"))) == 3


def test_dry_run(tmp_path: Path) -> None:
    assert export_benchmarks.main(["--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["popo"], "benchmark 'popo'; known benchmarks: pope"),
        (["--scenes", "0"], "at least 1 scene"),
        (["--world", "colour=3"], "did you mean 'colours'"),
    ],
)
def test_bad_input(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_benchmarks.main([*words, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
