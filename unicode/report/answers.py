"""Questions and answers: a question file, answers of one or more models and the pictures -> right and wrong ones to look at, and shares."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from unicode.report.page import Figure, Section, gallery, missing, paragraph, table
from unicode.report.picture import figure, image_tag
from unicode.report.runs import lines_of, spread

NUM_SHOWN = 8
EXPECTED = ("answer", "answers", "label", "gt_answer")
"""Fields of a question that may hold the right answer, or several of them."""
PROTOCOL = "An answer is right if it equals an expected one, small letters, without punctuation and articles."

FindPicture = Callable[[str], Image.Image | None]
"""Image name of a question -> the picture, None where it cannot be found."""


@dataclass(frozen=True)
class Asked:
    """One question and what a model said."""

    identity: str
    image: str
    text: str
    kind: str
    expected: tuple[str, ...]
    answer: str

    @property
    def right(self) -> bool | None:
        """Whether the answer is one of the expected ones; None when none is known."""
        return plain(self.answer) in {plain(one) for one in self.expected} if self.expected else None


def plain(text: str) -> str:
    """Return an answer as it is compared."""
    words = re.sub(r"[^\w\s]", " ", text.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def read_answers(questions: str | Path, answers: str | Path) -> list[Asked]:
    """Return the questions that were answered, in the order of the question file.

    Args:
        questions: JSON Lines of LLaVA's form (question_id, image, text, category or kind), with the right answer in one of `EXPECTED`.
        answers: JSON Lines with question_id and text.
    """
    said = {str(line.get("question_id")): str(line.get("text", "")) for line in lines_of(answers)}
    asked = []
    for line in lines_of(questions):
        identity = str(line.get("question_id"))
        if identity in said:
            known = next((line[name] for name in EXPECTED if line.get(name) not in (None, "", [])), ())
            expected = tuple(map(str, known)) if isinstance(known, list | tuple) else (str(known),)
            kind = str(line.get("kind") or line.get("category") or "")
            text = str(line.get("text", "")).replace("<image>", "").strip()
            image = line.get("image") or ""
            first = str(image[0] if isinstance(image, list) else image)
            asked.append(Asked(identity, first, text, kind, expected, said[identity]))
    return asked


def shares(asked: Sequence[Asked]) -> dict[str, tuple[int, int]]:
    """Return kind -> (right, judged), with "all" first."""
    counts: dict[str, tuple[int, int]] = {"all": (0, 0)}
    for one in asked:
        if one.right is not None:
            for kind in dict.fromkeys(("all", one.kind or "all")):
                right, judged = counts.get(kind, (0, 0))
                counts[kind] = (right + one.right, judged + 1)
    return counts


def answers_section(
    questions: str | Path | None, answers: Mapping[str, str | Path], find_picture: FindPicture
) -> tuple[Section, list[Figure]]:
    """Return the section and the figures for the top of the page.

    Args:
        questions: file of questions; None if there is none.
        answers: name of a model -> file of its answers, the model itself first, then what it is compared with.
        find_picture: gives the picture of a question.
    """
    title, short = "Questions about pictures", "Questions"
    asked = {name: read_answers(questions, path) for name, path in answers.items()} if questions else {}
    asked = {name: found for name, found in asked.items() if found}
    if not asked:
        command = "python -m unicode.run.answer --model DIR --questions FILE --images DIR --answers FILE"
        return Section(title, missing("No question was answered. Answers come from", command), short), []
    first = next(iter(asked))
    parts, figures = [], []
    counts = {name: shares(found) for name, found in asked.items()}
    right, judged = counts[first]["all"]
    if judged:
        others = [f"{name} {_percent(counts[name]['all'])}" for name in asked if name != first]
        figures.append(Figure("questions answered right", _percent(counts[first]["all"]), ", ".join(others) or f"{judged:,} questions"))
        parts.append(paragraph(f"{right:,} of {judged:,} questions about pictures are answered right. {PROTOCOL}"))
        kinds = ["all", *sorted(kind for kind in counts[first] if kind != "all")]
        rows = [[kind, counts[first][kind][1], *(_value(counts[name].get(kind)) for name in asked)] for kind in kinds]
        parts.append(table(["kind", "questions", *(f"{name}, %" for name in asked)], rows))
    else:
        parts.append(paragraph(f"{len(asked[first]):,} questions were answered; the question file does not say what is right."))
    for heading, mark in (("Answered right", True), ("Answered wrong", False), ("Answers", None)):
        chosen = _varied([one for one in asked[first] if one.right is mark])
        if chosen:
            parts.append(f"<h3>{heading}</h3>" + gallery([_card(one, find_picture) for one in chosen]))
    return Section(title, "\n".join(parts), short), figures


def _varied(asked: Sequence[Asked]) -> list[Asked]:
    """Some questions of every kind."""
    kinds: dict[str, list[Asked]] = {}
    for one in asked:
        kinds.setdefault(one.kind, []).append(one)
    share = -(-NUM_SHOWN // max(len(kinds), 1))
    return [one for found in kinds.values() for one in spread(found, share)][:NUM_SHOWN]


def _card(one: Asked, find_picture: FindPicture) -> str:
    picture = find_picture(one.image) if one.image else None
    seen = paragraph("(picture not found)", "note")
    if picture is not None:
        seen = image_tag(picture, f"the picture that is asked about: {one.text}")
    if one.right is None:
        verdict = escape(one.answer)
    elif one.right:
        verdict = f'<span class="right">✓ {escape(one.answer)}</span>'
    else:
        expected = escape(" / ".join(dict.fromkeys(one.expected)))
        verdict = f'<span class="wrong">✗ {escape(one.answer) or "(nothing)"}</span>, right: {expected}'
    return figure(seen, f"<b>{escape(_first_lines(one.text))}</b><br>{verdict}")


def _first_lines(text: str) -> str:
    """A question without the instruction on how to answer that LLaVA's files add."""
    return re.sub(r"\s*Answer (?:the question )?(?:using|with) .*$", "", text, flags=re.DOTALL) or text


def _percent(counts: tuple[int, int]) -> str:
    return f"{100 * counts[0] / counts[1]:.1f} %" if counts[1] else "not judged"


def _value(counts: tuple[int, int] | None) -> Any:
    return round(100 * counts[0] / counts[1], 1) if counts and counts[1] else None
