"""The command that makes the embedded default language model."""

from unicode.run.make_base_model import main

SIZES = "--vocab-size 140 --width 16 --hidden 24 --layers 1 --heads 2 --context 64"
TINY = [*SIZES.split(), *"--tokenizer-lines 100 --row-tokens 32 --batch-size 2 --steps 2".split()]


def test_a_second_run_keeps_the_first(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "base"), *TINY]
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "base").exists()
    assert main(arguments) == 0
    written = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == written
    assert main([*arguments, "--steps", "3"]) == 2
    assert "other settings" in capsys.readouterr().err
