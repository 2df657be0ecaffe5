"""Steps are run once, go on after a failure, and what they cost is written down."""

import sys

import pytest

from unicode.common.files import read_jsonl
from unicode.run.quickstart import Step, choose_steps, run_steps


def make(name, path, *, code=0):
    """A step that appends a letter to a file, and fails where `code` says so."""
    line = f"import sys; open({str(path)!r}, 'a').write('x'); sys.exit({code})"
    return Step(name, (sys.executable, "-c", line), path)


def test_a_step_runs_once_and_is_measured(tmp_path):
    steps = [make("first", tmp_path / "a"), make("second", tmp_path / "b")]
    assert run_steps(steps, tmp_path, environment={}) == 0
    assert run_steps(steps, tmp_path, environment={}) == 0
    assert (tmp_path / "a").read_text() == "x"
    lines = list(read_jsonl(tmp_path / "steps.jsonl"))
    assert [line["step"] for line in lines] == ["first", "second"]
    assert all(line["seconds"] >= 0 and line["peak_mib"] > 1 and not line["skipped"] for line in lines)


def test_what_is_missing_or_was_made_otherwise_is_made_again(tmp_path):
    step = make("first", tmp_path / "a")
    run_steps([step], tmp_path, environment={})
    (tmp_path / "a").unlink()
    run_steps([step], tmp_path, environment={})
    assert (tmp_path / "a").read_text() == "x"
    run_steps([Step("first", (*step.command, "other"), step.made)], tmp_path, environment={})
    assert (tmp_path / "a").read_text() == "xx"


def test_a_failure_ends_the_run_and_the_same_command_goes_on(tmp_path, capsys):
    later = make("later", tmp_path / "b")
    assert run_steps([make("first", tmp_path / "a", code=3), later], tmp_path, environment={}) == 3
    assert not (tmp_path / "b").exists() and "'first' failed (exit code 3)" in capsys.readouterr().out
    assert run_steps([make("first", tmp_path / "a"), later], tmp_path, environment={}) == 0
    assert (tmp_path / "b").exists()


def test_a_step_that_made_nothing_has_failed(tmp_path):
    step = Step("first", (sys.executable, "-c", "pass"), tmp_path / "a")
    assert run_steps([step], tmp_path, environment={}) == 1


def test_steps_are_chosen_by_name(tmp_path):
    steps = [make(name, tmp_path / name) for name in "abc"]
    assert [step.name for step in choose_steps(steps, first="b")] == ["b", "c"]
    assert [step.name for step in choose_steps(steps, only=["c", "a"])] == ["a", "c"]
    with pytest.raises(ValueError, match="no step 'd'; the steps are: a, b, c"):
        choose_steps(steps, first="d")


def test_the_environment_reaches_the_command(tmp_path):
    line = f"import os; open({str(tmp_path / 'a')!r}, 'w').write(os.environ['NUM_RANKS'])"
    run_steps([Step("first", (sys.executable, "-c", line), tmp_path / "a")], tmp_path, environment={"NUM_RANKS": "7"})
    assert (tmp_path / "a").read_text() == "7"


def test_half_a_line_of_the_record_costs_its_step_only(tmp_path):
    steps = [make("first", tmp_path / "one"), make("second", tmp_path / "two")]
    assert run_steps(steps, tmp_path, environment={}) == 0
    record = tmp_path / "steps.jsonl"
    record.write_text(record.read_text()[:-20])
    assert run_steps(steps, tmp_path, environment={}) == 0
    assert (tmp_path / "one").read_text() == "x"
    assert (tmp_path / "two").read_text() == "xx"
    assert [line["step"] for line in read_jsonl(record)] == ["first", "second"]


@pytest.mark.parametrize("line", ['{"step": "first"}', "[1]"])
def test_a_line_that_is_no_step_is_named(tmp_path, line):
    (tmp_path / "steps.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r'steps.jsonl has a line without "step" and "command": .*; delete it, that step is then'):
        run_steps([make("first", tmp_path / "one")], tmp_path, environment={})


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        run_steps([make("first", tmp_path / "one")], tmp_path / "file", environment={})
    assert (tmp_path / "file").read_text() == "kept"
