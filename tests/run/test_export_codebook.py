"""The command that takes the embedding table out of a language model."""

from safetensors import safe_open

from unicode.codebook.embedding_table import load_table
from unicode.run.export_codebook import main


def test_file(tiny_llama, tmp_path, capsys):
    first, second = tmp_path / "a" / "table.safetensors", tmp_path / "b.safetensors"
    assert main(["--model", str(tiny_llama), "--out", str(first)]) == 0
    assert main(["--model", str(tiny_llama), "--out", str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    table = load_table(first)
    assert table.rows.shape == (60, 32)
    assert len(table.select_ids(0)) == 40
    with safe_open(first, "pt") as file:
        assert file.metadata() | {"sha256": ""} == {
            "format": "unicode-table-1", "model": "tiny-llama", "vocab_size": "60", "width": "32", "sha256": ""
        }
    text = capsys.readouterr().out
    assert "60 rows of width 32" in text
    assert "excluded      5  special or added token: 0 '<unk>'" in text
    assert "eligible     40" in text


def test_only_the_last_rows(tiny_llama, tmp_path, capsys):
    options = ["--model", str(tiny_llama), "--out", str(tmp_path / "table")]
    assert main(options) == 0
    eligible = load_table(tmp_path / "table").select_ids(0)
    assert main([*options, "--last", "12"]) == 0
    assert load_table(tmp_path / "table").select_ids(0).equal(eligible[-12:])
    assert main([*options, "--last", "41"]) == 2
    assert "has 40 eligible rows" in capsys.readouterr().err


def test_dry_run_writes_nothing(tiny_llama, tmp_path):
    assert main(["--model", str(tiny_llama), "--out", str(tmp_path / "table"), "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())


def test_mistakes(tmp_path, capsys):
    assert main(["--model", str(tmp_path / "nothing"), "--out", str(tmp_path / "table")]) == 2
    assert "hf download" in capsys.readouterr().err
