"""Conversations about pictures -> a question file in LLaVA's form that knows the right answers: one line for each question.

    {"question_id": 0, "image": "val/0000003.png", "text": "What colour is the circle?\\nAnswer ...", "category": "colour", "answer": "red"}
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unicode.annotations.captioned import SHORT
from unicode.annotations.conversation import IMAGE_TAG, RefusedError, parse_record
from unicode.common.json_stream import read_json_list
from unicode.common.records import write_jsonl


def write_question_file(
    annotations: str | Path,
    out: str | Path,
    *,
    limit: int = 0,
    kinds: tuple[str, ...] = (),
    instruct: bool = True,
    dry_run: bool = False,
) -> int:
    """Write the questions of an annotation file, JSON Lines, and return their number.

    Args:
        annotations: LLaVA conversations about one picture each, as `get_shapes_anno` and `get_folder_anno` write; their turns are asked one
            by one.
        out: the file to write.
        limit: the first so many questions; 0: all.
        kinds: keep questions of these kinds (the "kinds" of the records); all if empty.
        instruct: put the benchmarks' instruction on how to answer after every question; without it, after none.
        dry_run: find the first question and write nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, a record is no conversation about one picture, or nothing is left.
    """
    questions: list[dict[str, Any]] = []
    for question in _questions(annotations, instruct):
        if not kinds or question["category"] in kinds:
            questions.append({"question_id": len(questions), **question})
        if len(questions) == (1 if dry_run else limit):
            break
    if not questions:
        wanted = f" of the kinds {', '.join(kinds)}" if kinds else ""
        raise ValueError(f"{annotations} holds no questions{wanted}; give a file of questions, as shapes_questions_val.json")
    if not dry_run:
        write_jsonl(out, questions)
    return len(questions)


def _questions(annotations: str | Path, instruct: bool) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(read_json_list(annotations)):
        try:
            conversation = parse_record(record)
        except RefusedError as refused:
            raise ValueError(f"{annotations}, record {number}: {refused.reason}, {refused.detail}") from refused
        if len(conversation.images) != 1:
            raise ValueError(f"{annotations}, record {number} is about {len(conversation.images)} pictures; a question is about one")
        turns, kinds = conversation.turns, record.get("kinds") or []
        for place, (asked, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
            text = asked.replace(IMAGE_TAG, "").replace(SHORT, "").strip()
            yield {
                "image": conversation.images[0],
                "text": f"{text}\n{SHORT}" if instruct else text,
                "category": kinds[place] if place < len(kinds) else "",
                "answer": answer,
            }
