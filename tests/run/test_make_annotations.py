"""The command behind every annotation function, and the literal commands of the README from a bare clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unicode.run.make_annotations import FUNCTIONS, OPTIONS, SAMPLE, main

ROOT = Path(__file__).parents[2]
NOT_OF_THE_SAMPLE = ("concat_vae_with_vqabench", "get_folder_anno", "get_label_anno", "get_parquet_anno")  # it has only LLaVA's files
MAKERS = [name for name in FUNCTIONS if name not in NOT_OF_THE_SAMPLE]


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch) -> None:
    monkeypatch.delenv("DATA_ROOT", raising=False)


@pytest.mark.parametrize("name", MAKERS)
def test_every_function_runs_on_the_sample(tmp_path, name):
    assert main(["--func", "get_t2v_anno", "--out", str(tmp_path)]) == 0
    assert main(["--func", name, "--root", str(SAMPLE), "--ids", str(SAMPLE / "ids"), "--out", str(tmp_path), "--seed", "3"]) == 0
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.report.json")]
    (report,) = (report for report in reports if report["func"] == name and report["seed"] == 3)
    assert report["read"] > 0 and sum(report["outputs"].values()) > 0
    assert all(Path(output).is_file() for output in report["outputs"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_of_every_function(capsys, name):
    with pytest.raises(SystemExit) as stop:
        main(["--func", name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Writes" in text or "llava_concat" in text
    assert all(option in text for option in ("--root", "--ids", "--out", "--seed", "--dry-run"))
    assert ("--allow-test-images" in text) == (name == "concat_vae_with_vqabench")


def test_overview(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in FUNCTIONS)
    assert all(option.get("flag", "--" + name.replace("_", "-")) in text for name, option in OPTIONS.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--func", "get_t2v_anno", "--ids", "nowhere"], "no store of ids"),
        (["--func", "get_t2v_anno", "--anno", "nothing.json"], "--anno"),
        (["--func", "get_t2v_anno", "--root", "nowhere", "--ids", str(SAMPLE / "ids")], "--root"),
        (["--func", "get_t2v_anno", "--parts", "9"], "choose 0 to 8"),
        (["--func", "get_uncond_anno", "--share", "0"], "share is 0"),
        (["--func", "concat_vae_with_vqabench"], "--allow-test-images"),
        (["--func", "get_folder_anno"], "no images in"),
        (["--func", "get_folder_anno", "--root", "nowhere"], "'nowhere' does not exist"),
        (["--func", "get_folder_anno", "--val-share", "1"], "val_share is 1"),
        (["--func", "get_shapes_anno", "--world", "colors=8"], "did you mean 'colours'"),
        (["--func", "get_shapes_anno", "--world", "colours=80"], "shapes.colours is 80; it must be 2 to 8"),
        (["--func", "get_shapes_anno", "--questions", "0"], "questions is 0"),
        (["--func", "get_shapes_anno", "--limit", "-1"], "limit is -1"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, arguments, message):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err.strip().splitlines()
    assert text[-1].startswith("error: ") and message in text[-1] and "Traceback" not in "".join(text)


def test_what_is_taken_when_nothing_is_named(tmp_path, capsys, caplog):
    with caplog.at_level("INFO"):
        assert main(["--func", "get_decompression_anno", "--ids", str(SAMPLE / "ids"), "--out", str(tmp_path)]) == 0
        assert main(["--func", "get_t2v_anno", "--root", str(SAMPLE), "--out", str(tmp_path)]) == 0
        assert "taking the sample" not in caplog.text
        assert main(["--func", "get_t2v_anno", "--out", str(tmp_path)]) == 0
        assert "taking the sample" in caplog.text
    assert main(["--func", "get_t2v_anno", "--root", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--ids names it or the folder of its tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--func", "get_nothing"], [], ["--func", "concat_llava_anno", "--parts", "2"]])
def test_unknown_options(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_dry_run_writes_nothing(tmp_path):
    assert main(["--func", "get_t2v_anno", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()


def test_data_root_of_the_environment(tmp_path, monkeypatch):
    shutil.copytree(SAMPLE, tmp_path / "data")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    assert main(["--func", "get_llava_uni_anno", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "llava_mix665k.report.json").read_text(encoding="utf-8"))
    assert report["inputs"] == [str(tmp_path / "data" / "llava_v1_5_mix665k.json")]


@pytest.mark.parametrize("command", [["data/unicode", "process.py"], ["data/unicode/process.py"]])
def test_literal_command_from_a_bare_clone(tmp_path, command):
    for folder in ("unicode", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DATA_ROOT")}
    outcome = subprocess.run(
        [sys.executable, *command, "--func", "get_t2v_anno"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    report = json.loads((tmp_path / "outputs" / "annotations" / "llava_laion558k_t2v.report.json").read_text(encoding="utf-8"))
    assert report["inputs"] == [str(tmp_path / "data" / "sample" / "blip_laion_cc_sbu_558k.json")]
    assert report["dropped"]["no ids"]["count"] == 1
