"""Question files: one line a turn, the right answer beside it, the same picture."""

import json
from pathlib import Path

import pytest

from unicode.annotations.captioned import SHORT, get_shapes_anno
from unicode.annotations.exports import write_question_file
from unicode.run.export_questions import main


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    get_shapes_anno(folder, limit=10, questions=3)
    return folder / "shapes_questions_val.json"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_turn_becomes_a_question(annotations: Path, tmp_path: Path) -> None:
    out = tmp_path / "questions.jsonl"
    assert main(["--anno", str(annotations), "--out", str(out)]) == 0
    records, questions = json.loads(annotations.read_text()), lines(out)
    turns = [(record, turn) for record in records for turn in range(len(record["kinds"]))]
    assert [question["question_id"] for question in questions] == list(range(len(turns)))
    for question, (record, turn) in zip(questions, turns, strict=True):
        assert question["image"] == record["image"] and question["category"] == record["kinds"][turn]
        asked, answer = (record["conversations"][2 * turn + part]["value"] for part in (0, 1))
        assert question["answer"] == answer and question["text"].endswith(f"\n{SHORT}") and question["split"] == "val"
        assert question["text"].partition("\n")[0] in asked and "<image>" not in question["text"]


def test_some_questions(annotations: Path, tmp_path: Path) -> None:
    out = tmp_path / "questions.jsonl"
    assert write_question_file(annotations, out, limit=4, kinds=("colour", "count"), instruct=False) == 4
    assert {line["category"] for line in lines(out)} <= {"colour", "count"} and not any(SHORT in line["text"] for line in lines(out))


def test_a_dry_run_reads_and_writes_nothing(annotations: Path, tmp_path: Path) -> None:
    assert main(["--anno", str(annotations), "--out", str(tmp_path / "q.jsonl"), "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())


def test_what_holds_no_questions(annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "q.jsonl"
    with pytest.raises(ValueError, match="no questions of the kinds taste"):
        write_question_file(annotations, out, kinds=("taste",))
    (tmp_path / "bad.json").write_text('[{"id": "a", "conversations": []}]')
    with pytest.raises(ValueError, match=r"bad\.json, record 0: "):
        write_question_file(tmp_path / "bad.json", out)
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    (tmp_path / "wordy.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    with pytest.raises(ValueError, match="record 0 is about 0 pictures"):
        write_question_file(tmp_path / "wordy.json", out)
    assert main(["--anno", str(annotations), "--out", str(tmp_path / "q.json")]) == 2
    assert "has to be a .jsonl file" in capsys.readouterr().err
    assert not out.exists()
