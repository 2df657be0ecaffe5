"""The command that writes other people's weights in this project's form."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unicode import load_tokenizer
from unicode.run.convert_tokenizer import main

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("name", "order"),
    [("hq_pixelshuffle", "80 ids per image, hierarchical 4x4 + 8x8 in order 'nested'"), ("uc_hq_rela", "'rows'"), ("rq_shared", "'depth'")],
)
def test_published_weights_give_the_same_codes_after_conversion(
    name: str, order: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(GOLDEN / name), str(tmp_path / "out")]) == 0
    images = load_file(GOLDEN / name / "io.safetensors")["x"]
    before, after = load_tokenizer(GOLDEN / name), load_tokenizer(tmp_path / "out")
    assert torch.equal(before.encode(images), after.encode(images))
    assert torch.equal(before.row_ids, after.row_ids)
    told = capsys.readouterr().out
    assert order in told
    assert before.fingerprint in told
    assert "128 of width" in told


def test_the_order_of_ids_can_be_changed_for_cells(tmp_path: Path) -> None:
    assert main([str(GOLDEN / "uc_hq_rela"), str(tmp_path / "out"), "--order", "nested"]) == 0
    before, after = load_tokenizer(GOLDEN / "uc_hq_rela"), load_tokenizer(tmp_path / "out")
    assert (before.layout.order, after.layout.order) == ("rows", "nested")
    assert before.fingerprint != after.fingerprint
    codes = before.encode(load_file(GOLDEN / "uc_hq_rela" / "io.safetensors")["x"])
    assert torch.equal(before.from_ids(before.to_ids(codes)), after.from_ids(after.to_ids(codes)))


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN / "rq_shared"), str(tmp_path / "out"), "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())
    assert "rqvae" in capsys.readouterr().out


def test_again_is_fine_but_another_tokenizer_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main([str(GOLDEN / "rq_shared"), str(tmp_path)]) == 0
    kept = (tmp_path / "model.safetensors").read_bytes()
    assert main([str(GOLDEN / "uc_hq_rela"), str(tmp_path)]) == 2
    assert "holds another tokenizer" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == kept


def test_what_does_not_read_back_the_same_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_tokenizer(GOLDEN / "hq_pixelshuffle")
    given = iter([load_tokenizer(GOLDEN / "uc_hq_rela"), other])
    monkeypatch.setattr("unicode.tokenizer.load.load_tokenizer", lambda path: next(given))
    assert main(["source", str(tmp_path)]) == 2
    assert "does not give what its source gives" in capsys.readouterr().err


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for source, out, message in [
        (tmp_path / "nothing", tmp_path / "out", "no folder"),
        (tmp_path / "empty", tmp_path / "out", "holds no tokenizer"),
        (GOLDEN / "rq_shared", tmp_path / "file", "is a file"),
    ]:
        assert main([str(source), str(out)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
