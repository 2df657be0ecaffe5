"""LLaVA-Bench's judge: question, reference and candidate -> the judge's prompt; its reply -> two scores -> the relative score.

The judge itself is a callable, prompt -> reply, so that any model may be one (`endpoint` is the usual way).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from unicode.metrics.benchmarks.rates import percent

SYSTEM_PROMPT = "You are a helpful and precise assistant for checking the quality of the answer."
"""The system line that LLaVA's reviews were made with."""
CATEGORIES = ("conv", "detail", "complex")
Pair = tuple[float, float]
"""Scores of (reference, candidate)."""


@dataclass(frozen=True)
class Rule:
    """How answers of one category are to be judged: what an answerer is called, and what the judge is told."""

    role: str
    prompt: str


@dataclass(frozen=True)
class Review:
    """What came back for one question. `reply` is None if the judge could not be asked, `pair` if the reply has no two scores."""

    key: str
    category: str
    reply: str | None
    pair: Pair | None


class JudgeError(ConnectionError):
    """The judge cannot be reached or refuses; what it said before is kept."""


_TASK = {
    "conv": "The user asks about a picture that you cannot see; the context above describes it in a few sentences.",
    "detail": "The user asks for a description of a picture that you cannot see; the context above says in a few sentences what is in it.",
    "complex": "The user asks a question about a picture that takes reasoning; you cannot see it, the context above describes it.",
}
_REQUEST = (
    "Two assistants have answered. Rate how helpful, relevant, accurate and detailed each answer is, with one number from 1 to 10 each, "
    "higher for the better answer.\nOn the first line write only these two numbers, for Assistant 1 and then for Assistant 2, with a space "
    "between them. From the second line on, explain your ratings; do not let the order of the answers or their length sway you."
)
DEFAULT_RULES: Mapping[str, Rule] = {name: Rule("Assistant", f"{_TASK[name]} {_REQUEST}") for name in CATEGORIES}
"""Our wording of the three rules, for who does not put LLaVA's rule.json into the data folder."""


def judge_prompt(*, context: str, question: str, reference: str, candidate: str, rule: Rule) -> str:
    """Return the text that the judge reads, block by block in LLaVA's order."""
    blocks = [f"[Context]\n{context}", f"[Question]\n{question}"]
    for number, answer in enumerate((reference, candidate), 1):
        blocks.append(f"[{rule.role} {number}]\n{answer}\n\n[End of {rule.role} {number}]")
    return "\n\n".join([*blocks, f"[System]\n{rule.prompt}\n\n"])


def parse_scores(reply: str) -> Pair | None:
    """Return the two numbers of the first line ("8 7", "8,7", "8, 7"), or None if that is not what it holds."""
    words = reply.split("\n")[0].replace(",", " ").split()
    try:
        first, second = (float(word) for word in words)
    except ValueError:
        return None
    return (first, second) if math.isfinite(first) and math.isfinite(second) else None


def ask_judge(
    prompts: Mapping[str, tuple[str, str]], ask: Callable[[str], str], *, workers: int = 1
) -> tuple[list[Review], ConnectionError | None]:
    """Put {key: (category, prompt)} to the judge; return the reviews in that order and the error that stopped it, if any.

    After an error nothing more is asked; questions that were not put have the reply None.
    """
    error: ConnectionError | None = None
    replies: dict[str, str] = {}
    waiting = iter(prompts.items())
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while error is None and (batch := list(islice(waiting, max(1, workers)))):
            futures = [(key, pool.submit(ask, prompt)) for key, (_, prompt) in batch]
            for key, future in futures:
                try:
                    replies[key] = future.result()
                except ConnectionError as failure:
                    error = failure
    return list(_reviews(prompts, replies)), error


def _reviews(prompts: Mapping[str, tuple[str, str]], replies: Mapping[str, str]) -> Iterator[Review]:
    for key, (category, _) in prompts.items():
        reply = replies.get(key)
        yield Review(key, category, reply, None if reply is None else parse_scores(reply))


def summarize(reviews: Sequence[Review]) -> dict[str, dict[str, Any]]:
    """Return per category, and for "all", the relative score in percent and ten times the mean scores; unparsed replies are left out."""
    groups = {"all": [review.pair for review in reviews if review.pair is not None]}
    for review in reviews:
        if review.pair is not None:
            groups.setdefault(review.category, []).append(review.pair)
    return {name: _relative(groups[name]) for name in sorted(groups)}


def summarize_as_llava(reviews: Sequence[Review]) -> dict[str, float | None]:
    """Return the relative score per category as LLaVA's summary prints it: a reply that is not exactly two numbers counts as -1 and -1."""
    groups: dict[str, list[Pair]] = {"all": []}
    for review in reviews:
        if review.reply is not None:
            pair = _llava_pair(review.reply)
            groups["all"].append(pair)
            groups.setdefault(review.category, []).append(pair)
    values = {}
    for name in sorted(groups):
        reference, candidate = (round(mean, 3) for mean in _means(groups[name]))
        relative = percent(candidate, reference)
        values[name] = None if relative is None else round(relative, 1)
    return values


def _llava_pair(reply: str) -> Pair:
    words = reply.split("\n")[0].replace(",", " ").split(" ")  # "8, 7" makes three words: one reason why replies get lost there
    try:
        first, second = (float(word) for word in words)
    except ValueError:
        return (-1.0, -1.0)
    return (first, second)


def _means(pairs: Iterable[Pair]) -> Pair:
    listed = list(pairs)
    count = max(1, len(listed))
    return sum(pair[0] for pair in listed) / count, sum(pair[1] for pair in listed) / count


def _relative(pairs: Sequence[Pair]) -> dict[str, Any]:
    reference, candidate = _means(pairs)
    return {
        "relative": percent(candidate, reference),
        "reference_x10": 10 * reference,
        "candidate_x10": 10 * candidate,
        "reviews": len(pairs),
    }
