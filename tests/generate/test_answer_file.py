"""Question files read, answer files filled by several ranks, stopped and gone on with; nothing is mixed and nothing asked twice."""

import json

import pytest

from unicode.generate import jobs as module
from unicode.generate.jobs import AnswerFile, check_unique, digest_run, key_of, read_questions

MADE_BY = {"model": "abc", "max_new_tokens": 8}
KEYS = [key_of({"question_id": number, "prompt": f"question {number}"}) for number in range(7)]


def fill(file: AnswerFile, places, *, text="yes", **metadata):
    for place in places:
        file.put(place, f"question {place}", f"{text} {place}", metadata=metadata)


@pytest.fixture
def ranks(monkeypatch):
    """Play one rank of several; barriers are passed."""

    def play(number: int, count: int) -> None:
        monkeypatch.setattr(module, "rank", lambda: number)
        monkeypatch.setattr(module, "world_size", lambda: count)
        monkeypatch.setattr(module, "is_main", lambda: number == 0)

    return play


def test_answers_come_in_the_order_of_the_questions(tmp_path):
    with AnswerFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY, model_id="tiny") as file:
        assert file.missing == file.share() == list(range(7))
        fill(file, [6, 2, 0, 5, 1, 4, 3], finished=True)
        summary = file.finish()
    assert (summary.num_questions, summary.num_answered, summary.errors, summary.damaged) == (7, 7, {}, 0)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == list(range(7))
    first = {key: value for key, value in lines[0].items() if key != "answer_id"}
    metadata = {"run": digest_run(MADE_BY), "finished": True}
    assert first == {"question_id": 0, "prompt": "question 0", "text": "yes 0", "model_id": "tiny", "metadata": metadata}
    assert len({line["answer_id"] for line in lines}) == 7
    assert not (tmp_path / "a.jsonl.parts").exists()
    with AnswerFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as again:
        assert again.missing == [] and again.finish() == summary
        assert [record["question_id"] for record in again.records().values()] == list(range(7))


def test_what_was_answered_before_a_kill_is_kept_and_half_a_line_asked_again(tmp_path):
    file = AnswerFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY)
    fill(file, [4, 1])
    part = tmp_path / "a.jsonl.parts" / "00000.jsonl"
    assert len(part.read_text().splitlines()) == 2, "an answer is in the file as soon as put returns"
    with open(part, "a") as half:
        half.write('{"question_id": 2, "prompt": "ques')
    with AnswerFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as again:
        assert again.missing == [0, 2, 3, 5, 6] and again.damaged == 1
        fill(again, again.share(), text="no")
        summary = again.finish()
    assert (summary.num_answered, summary.damaged) == (7, 1)
    texts = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert texts == ["no 0", "yes 1", "no 2", "no 3", "yes 4", "no 5", "no 6"]


@pytest.mark.parametrize("count", [2, 10])
def test_ranks_share_the_questions_and_other_numbers_of_ranks_go_on(tmp_path, ranks, count):
    files = []
    for number in range(count):
        ranks(number, count)
        files.append(AnswerFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY))
    shares = [file.missing[number::count] for number, file in enumerate(files)]
    assert sorted(place for share in shares for place in share) == list(range(7))
    for number in range(1, count):  # rank 0 is killed before its first answer
        ranks(number, count)
        fill(files[number], shares[number])
        files[number].close()
    ranks(0, 1)
    with AnswerFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as file:
        assert file.missing == shares[0]
        fill(file, file.share())
        assert file.finish().num_answered == 7
    assert [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [f"yes {n}" for n in range(7)]


def test_errors_are_recorded_and_asked_again(tmp_path):
    path = tmp_path / "a.jsonl"
    with AnswerFile(path, KEYS, made_by=MADE_BY) as file:
        fill(file, range(6))
        file.put(6, "question 6", "", metadata={"error": "image lost"})
        assert file.finish().errors == {KEYS[6]: "image lost"}
    assert json.loads(path.read_text().splitlines()[6])["text"] == ""
    with AnswerFile(path, KEYS, made_by=MADE_BY) as file:
        assert file.missing == [6]
        file.put(6, "question 6", "found")
        assert file.finish().errors == {}
    assert json.loads(path.read_text().splitlines()[6])["text"] == "found"


def test_more_questions_later(tmp_path):
    with AnswerFile(tmp_path / "a.jsonl", KEYS[:3], made_by=MADE_BY) as file:
        fill(file, range(3))
        file.finish()
    with AnswerFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as file:
        assert file.missing == [3, 4, 5, 6]


def test_answers_of_other_runs_and_questions_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with AnswerFile(path, KEYS, made_by=MADE_BY) as file:
        fill(file, range(7))
        file.finish()
    with pytest.raises(ValueError, match=r"a\.jsonl.*max_new_tokens 8, now 9"):
        AnswerFile(path, KEYS, made_by={**MADE_BY, "max_new_tokens": 9})
    with pytest.raises(ValueError, match=r"question 0.*not among those asked now"):
        AnswerFile(path, KEYS[1:], made_by=MADE_BY)
    path.with_name("a.jsonl.run.json").unlink()
    with pytest.raises(ValueError, match=f"{digest_run(MADE_BY)}"):
        AnswerFile(path, KEYS, made_by={})
    path.write_text('{"question_id": 1, "prompt": "question 1", "text": "a"}\n')
    with pytest.raises(ValueError, match="another program"):
        AnswerFile(path, KEYS, made_by=MADE_BY)


def test_rounds_and_prompts_tell_questions_of_one_id_apart(tmp_path):
    keys = [key_of({"question_id": "1", "prompt": "a", "round_id": turn}) for turn in (0, 1)] + [
        key_of({"question_id": "1", "prompt": "b"})
    ]
    with AnswerFile(tmp_path / "a.jsonl", keys, made_by=MADE_BY) as file:
        file.put("1", "a", "second", round_id=1)
        file.put("1", "a", "first", round_id=0)
        file.put("1", "b", "third")
        assert file.finish().num_answered == 3
    assert [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == ["first", "second", "third"]
    with pytest.raises(ValueError, match=r"q\.jsonl asks question '1' .* twice"):
        check_unique([*keys, keys[1]], "q.jsonl")


def test_a_full_disk_names_the_part(tmp_path):
    file = AnswerFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY)
    (tmp_path / "a.jsonl.parts").write_text("in the way")
    with pytest.raises(OSError, match=r"a\.jsonl\.parts"):
        fill(file, [0])


def test_question_files(tmp_path, caplog):
    path = tmp_path / "q.jsonl"
    lines = [
        {"question_id": 3, "image": "coco/3.jpg", "text": "What is it?\nAnswer briefly.", "category": "x"},
        {"question_id": "a/b", "image": ["1.png", "2.png"], "text": "<image>\n<image>\nWhich?"},
        {"question_id": 5, "text": "Two and two?"},
    ]
    path.write_text("\ufeff" + "\n".join(map(json.dumps, lines)) + '\n\n{"question_id": 9, "te\n{"text": "no id"}\n[1]\n', encoding="utf-8")
    questions = read_questions(path)
    assert [(one.id, one.images, one.text) for one in questions] == [
        (3, ("coco/3.jpg",), "What is it?\nAnswer briefly."),
        ("a/b", ("1.png", "2.png"), "<image>\n<image>\nWhich?"),
        (5, (), "Two and two?"),
    ]
    assert questions[0].fields == {"category": "x"} and questions[0].key == ("3", "0", "What is it?\nAnswer briefly.")
    assert [record.args[1] for record in caplog.records] == [5, 6, 7]

    listed = tmp_path / "q.json"
    turns = [{"from": "human", "value": "<image>\nWhat?\nA. one"}, {"from": "gpt", "value": "A"}]
    listed.write_text(json.dumps([{"id": "7", "image": "7/image.png", "conversations": turns}]))
    (question,) = read_questions(listed)
    assert (question.id, question.images, question.text) == ("7", ("7/image.png",), "<image>\nWhat?\nA. one")


def test_question_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "q.jsonl"
    with pytest.raises(FileNotFoundError):
        read_questions(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(path)
    path.write_text('{"question_id": 1, "text": "a"}\n{"question_id": 1, "text": "b"}\n{"question_id": 1, "text": "a"}\n')
    with pytest.raises(ValueError, match=r"question '1'.*twice"):
        read_questions(path)
    (tmp_path / "q.json").write_text("[{")
    with pytest.raises(ValueError, match=r"q\.json is not valid JSON"):
        read_questions(tmp_path / "q.json")
