"""The option letter in an answer to a multiple-choice question, read in the ways that are in use."""

import re
from collections.abc import Collection

FAILED = "FAILED"
"""What LLaVA's ScienceQA script calls an answer without a letter."""
_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")  # any one character follows: the full stop of the original is not escaped
_ANY_FORM = re.compile(
    r"(?:(?:the\s+)?answer(?:\s+is)?\s*:?\s*)?[(\[]?([A-Za-z])(?:[)\].:,](?:\s.*)?|)\s*", flags=re.DOTALL | re.IGNORECASE
)


def scienceqa_letter(text: str, letters: Collection[str] = "ABCDE") -> str:
    """Return the letter that LLaVA's ScienceQA script reads, or `FAILED`.

    A letter alone, or "B. cat", or exactly one "The answer is C" followed by any character. "A.", "(A)" and "a" fail.
    """
    if len(text) == 1 and text in letters:
        return text
    if len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        return text[0]
    found = _ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else FAILED


def letter_in_any_form(text: str, letters: Collection[str]) -> str | None:
    """Return the letter of an answer that consists of one, however it is dressed: "A", "a", "A.", "(A)", "A) cat", "Answer: D"."""
    found = _ANY_FORM.fullmatch(text.strip())
    letter = found.group(1).upper() if found else ""
    return letter if letter and letter in letters else None


def first_letter(text: str, letters: Collection[str]) -> str | None:
    """Return the first character if it is an option: the local score of MMBench. "Apple" reads as A."""
    letter = text.strip()[:1].upper()
    return letter if letter and letter in letters else None
