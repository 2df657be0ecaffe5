"""Result files of answers and drawings: filled by several ranks, stopped and resumed, never mixed with results of other settings."""

import json
import os
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from unicode.generate import jobs as module
from unicode.generate.jobs import (
    RESULTS,
    OutputSlot,
    ResultFile,
    answer_line,
    digest_run,
    key_of,
    output_slots,
    save_picture,
    write_contact_sheet,
    write_wall,
)

MADE_BY = {"model": "abc", "max_new_tokens": 8}
KEYS = [key_of({"question_id": number, "prompt": f"question {number}"}) for number in range(7)]


def fill(file: ResultFile, places, *, text="yes", error="", **metadata):
    for place in places:
        head = {"question_id": place, "prompt": f"question {place}"}
        file.put(answer_line(file, head, f"{text} {place}" * (not error), model_id="tiny", metadata=metadata, error=error))


@pytest.fixture
def ranks(monkeypatch):
    """Play one rank of several; barriers are passed."""

    def play(number: int, count: int) -> None:
        monkeypatch.setattr(module, "rank", lambda: number)
        monkeypatch.setattr(module, "world_size", lambda: count)
        monkeypatch.setattr(module, "is_main", lambda: number == 0)
        monkeypatch.setattr(module, "lock_folder", lambda *_: nullcontext())

    return play


def test_answers_come_in_the_order_of_the_questions(tmp_path):
    with ResultFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as file:
        assert file.missing == file.share() == list(range(7))
        fill(file, [6, 2, 0, 5, 1, 4, 3], finished=True)
        summary = file.finish()
    assert (summary.total, summary.done, summary.errors, summary.damaged) == (7, 7, {}, 0)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == list(range(7))
    first = {key: value for key, value in lines[0].items() if key != "answer_id"}
    metadata = {"run": digest_run(MADE_BY), "finished": True}
    assert first == {"question_id": 0, "prompt": "question 0", "text": "yes 0", "model_id": "tiny", "metadata": metadata}
    assert len({line["answer_id"] for line in lines}) == 7
    assert not (tmp_path / "a.jsonl.parts").exists()
    with ResultFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as again:
        assert again.missing == [] and again.finish() == summary
        assert [record["question_id"] for record in again.records().values()] == list(range(7))


def test_what_was_answered_before_a_kill_is_kept_and_half_a_line_asked_again(tmp_path):
    file = ResultFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY)
    fill(file, [4, 1])
    part = tmp_path / "a.jsonl.parts" / "00000.jsonl"
    assert len(part.read_text().splitlines()) == 2, "an answer is in the file as soon as put returns"
    with open(part, "a") as half:
        half.write('{"question_id": 2, "prompt": "ques')
    file.close()  # as the end of the process does
    with ResultFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as again:
        assert again.missing == [0, 2, 3, 5, 6] and again.damaged == 1
        fill(again, again.share(), text="no")
        summary = again.finish()
    assert (summary.done, summary.damaged) == (7, 1)
    texts = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert texts == ["no 0", "yes 1", "no 2", "no 3", "yes 4", "no 5", "no 6"]


@pytest.mark.parametrize("count", [2, 10])
def test_ranks_share_the_questions_and_other_numbers_of_ranks_go_on(tmp_path, ranks, count):
    files = []
    for number in range(count):
        ranks(number, count)
        files.append(ResultFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY))
    shares = [file.missing[number::count] for number, file in enumerate(files)]
    assert sorted(place for share in shares for place in share) == list(range(7))
    for number in range(1, count):  # rank 0 is killed before its first answer
        ranks(number, count)
        fill(files[number], shares[number])
        files[number].close()
    ranks(0, 1)
    with ResultFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as file:
        assert file.missing == shares[0]
        fill(file, file.share())
        assert file.finish().done == 7
    assert [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [f"yes {n}" for n in range(7)]


def test_errors_are_recorded_and_asked_again(tmp_path):
    path = tmp_path / "a.jsonl"
    with ResultFile(path, KEYS, made_by=MADE_BY) as file:
        fill(file, range(6))
        fill(file, [6], error="image lost")
        assert file.finish().errors == {KEYS[6]: "image lost"}
    assert json.loads(path.read_text().splitlines()[6])["text"] == ""
    with ResultFile(path, KEYS, made_by=MADE_BY) as file:
        assert file.missing == [6]
        fill(file, [6], text="found")
        assert file.finish().errors == {}
    assert json.loads(path.read_text().splitlines()[6])["text"] == "found 6"


def test_more_questions_later(tmp_path):
    with ResultFile(tmp_path / "a.jsonl", KEYS[:3], made_by=MADE_BY) as file:
        fill(file, range(3))
        file.finish()
    with ResultFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as file:
        assert file.missing == [3, 4, 5, 6]


def test_answers_of_other_runs_and_questions_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with ResultFile(path, KEYS, made_by=MADE_BY) as file:
        fill(file, range(7))
        file.finish()
    with pytest.raises(ValueError, match=r"a\.jsonl.*max_new_tokens 8, now 9"):
        ResultFile(path, KEYS, made_by={**MADE_BY, "max_new_tokens": 9})
    with pytest.raises(ValueError, match=r"question 0.*not among those asked now"):
        ResultFile(path, KEYS[1:], made_by=MADE_BY)
    path.with_name("a.jsonl.run.json").unlink()
    with pytest.raises(ValueError, match=f"{digest_run(MADE_BY)}"):
        ResultFile(path, KEYS, made_by={})
    path.write_text('{"question_id": 1, "prompt": "question 1", "text": "a"}\n')
    with pytest.raises(ValueError, match="another program"):
        ResultFile(path, KEYS, made_by=MADE_BY)


def test_rounds_and_prompts_tell_questions_of_one_id_apart(tmp_path):
    keys = [key_of({"question_id": "1", "prompt": "a", "round_id": turn}) for turn in (0, 1)] + [
        key_of({"question_id": "1", "prompt": "b"})
    ]
    with ResultFile(tmp_path / "a.jsonl", keys, made_by=MADE_BY) as file:
        heads = [{"prompt": "a", "round_id": 1}, {"prompt": "a", "round_id": 0}, {"prompt": "b"}]
        for head, text in zip(heads, ["second", "first", "third"], strict=True):
            file.put(answer_line(file, {"question_id": "1", **head}, text, model_id="tiny", metadata={}))
        assert file.finish().done == 3
    assert [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == ["first", "second", "third"]


def test_a_full_disk_names_the_part(tmp_path):
    with ResultFile(tmp_path / "a.jsonl", KEYS, made_by=MADE_BY) as file:
        (tmp_path / "a.jsonl.parts" / "00000.jsonl").mkdir()
        with pytest.raises(OSError, match=r"a\.jsonl\.parts"):
            fill(file, [0])


@pytest.mark.parametrize("drawings", [False, True])
def test_a_second_start_is_told_who_fills_the_file(tmp_path, drawings):
    path, keys = tmp_path / RESULTS, [slot.key for slot in SLOTS] if drawings else KEYS
    with ResultFile(path, keys, made_by=MADE_BY, drawings=drawings):
        work = "drawing" if drawings else "answering"
        with pytest.raises(ValueError, match=rf"{RESULTS.split('.')[0]}.*parts is in use: {work} by process {os.getpid()}.*wait for it"):
            ResultFile(path, keys, made_by=MADE_BY, drawings=drawings)
    with ResultFile(path, keys, made_by=MADE_BY, drawings=drawings) as file:
        assert len(file.missing) == len(keys)


SLOTS = output_slots([f"p{number}" for number in range(7)], samples=1)


def open_drawings(folder, slots=SLOTS, **made_by) -> ResultFile:
    return ResultFile(folder / RESULTS, [slot.key for slot in slots], made_by={**MADE_BY, **made_by}, drawings=True)


def draw(file: ResultFile, slots: list[OutputSlot], error: str = "") -> None:
    for slot in slots:
        name = save_picture(file.path.parent, slot, np.zeros((4, 4, 3), np.uint8))
        file.put({"id": slot.id, **({"error": error} if error else {"file": name, "ids": [1]})})


def test_drawings_are_resumed_picture_by_picture(tmp_path):
    with open_drawings(tmp_path) as file:
        draw(file, [SLOTS[place] for place in (0, 1, 2, 4)])
        draw(file, [SLOTS[3]], error="too long")
        with open(tmp_path / "results.parts" / "00000.jsonl", "a") as part:
            part.write('{"id": "p5", "fi')
    with open_drawings(tmp_path) as again:
        assert again.missing == [3, 5, 6] and again.has(SLOTS[4].key) and not again.has(SLOTS[3].key)
        draw(again, [SLOTS[place] for place in again.missing])
        assert again.finish().errors == {}
    lines = list(again.records().values())
    assert [line["id"] for line in lines] == [slot.id for slot in SLOTS]
    assert lines == [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    assert not (tmp_path / "results.parts").exists()
    (tmp_path / lines[2]["file"]).unlink()
    with open_drawings(tmp_path) as again:
        assert again.missing == [2], "the picture of a line is gone"


def test_drawings_of_other_settings_do_not_mix(tmp_path):
    open_drawings(tmp_path, sampling={"temperature": 1.0}).close()
    with pytest.raises(ValueError, match=r"other settings: sampling .*'temperature': 1.0.*now.*2.0"):
        open_drawings(tmp_path, sampling={"temperature": 2.0})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / RESULTS).write_text("")
    with pytest.raises(ValueError, match=r"without settings\.json"):
        open_drawings(tmp_path / "other")


def test_names_of_samples():
    assert [slot.name for slot in output_slots(["a", "b/c.png"], samples=2)] == ["a_0", "a_1", "b/c.png_0", "b/c.png_1"]
    with pytest.raises(ValueError, match=r"two pictures would be called a\.png"):
        output_slots(["a", "a.png"], samples=1)


def test_contact_sheet(tmp_path):
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    write_contact_sheet([tmp_path / f"{number}.png" for number in range(6)], tmp_path / "sheet.png", group=2)
    assert Image.open(tmp_path / "sheet.png").size == (22, 32)


def test_wall(tmp_path):
    for number in range(8):
        Image.new("RGB", (30, 30), (0, 0, 20 * number)).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(8)]
    write_wall(files, ["a circle", *["one of several lines, " * 3] * 7], tmp_path / "wall.png")
    wall = Image.open(tmp_path / "wall.png")
    assert wall.width == 16 + 6 * (150 + 16) and wall.getpixel((16 + 166, 16)) == (0, 0, 20) and wall.getpixel((16 + 149, 165)) == (0, 0, 0)
    below = wall.height // 2 - 16 - 150
    assert wall.crop((16, 170, 166, 166 + below)).getextrema()[0][0] < 100, "no caption"
