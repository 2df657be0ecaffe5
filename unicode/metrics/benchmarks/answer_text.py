"""Short free-form answers -> normalised text -> soft accuracy against ten annotators: VQAv2, VizWiz and TextVQA.

The rules are those of the EvalAI servers, quirks included, for a submission is scored by them; `tests` hold their outputs.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from unicode.common.records import read_json
from unicode.metrics.benchmarks.answers import count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Score
from unicode.metrics.benchmarks.rates import percent
from unicode.metrics.benchmarks.vqa_words import ARTICLES, CONTRACTIONS, NUMBER_WORDS, PUNCTUATION

MAX_FULL_STOPS = 32
"""The servers delete at most so many full stops: a flag of theirs stands where the count belongs."""
_FULL_STOP = re.compile(r"\.(?!\d)")
ANNOTATORS_TO_AGREE = 3


@lru_cache(maxsize=1 << 16)  # people agree: the annotators of VQAv2 val give each answer a hundred times
def normalize_answer(answer: str) -> str:
    """Return an answer as the EvalAI servers compare it.

    "Two men, one dog" -> "2 men 1 dog", "isnt it?" -> "isn't it", "N/A" -> "n". A single option letter "A" becomes empty, so
    multiple choice must not come here.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [NUMBER_WORDS.get(word, word) for word in _without_punctuation(text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """A sign that has a space beside it anywhere in the text is deleted everywhere, any other becomes a space."""
    stripped = text
    for sign in PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        stripped = stripped.replace(sign, "" if beside_space else " ")
    return _FULL_STOP.sub("", stripped, count=MAX_FULL_STOPS)


def soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Return the mean over the annotators of min(1, agreeing others / 3), in [0, 1]; all texts are already normalised.

    With ten annotators 1, 2, 3 and 4 agreeing ones give 0.3, 0.6, 0.9 and 1.0 (VQA, Antol et al. 2015, as M4C evaluates it).
    """
    agreeing = sum(reference == prediction for reference in references)
    scores = [min(1, (agreeing - (reference == prediction)) / ANNOTATORS_TO_AGREE) for reference in references]
    return sum(scores) / len(scores) if scores else 0.0


def score_val(
    name: str, data: Path, file: NeededFile, answers: Answers, *, by_key: Callable[[Any], Mapping[str, Mapping[str, Any]]]
) -> Score:
    """Score a val split with published answers: soft accuracy in percent over all its questions and per `answer_type`.

    A question without an answer scores 0; without the annotation file there is no headline.

    Args:
        by_key: content of the file -> {key: {"answers": [{"answer": text}, ...], "answer_type": optional}}, as VQAv2 and VizWiz publish it.

    Raises:
        ValueError: the file is another one, or the answers are those of another split.
    """
    score = Score(name, None, "% soft accuracy", "val split, mean over leave-one-out annotators, EvalAI normalisation")
    path = file.find(data)
    if path is None:
        score.num_answered = len(answers)
        score.notes.append(file.message(data))
        return score
    try:
        references = {
            key: (str(record.get("answer_type", "all")), [normalize_answer(str(reference["answer"])) for reference in record["answers"]])
            for key, record in by_key(read_json(path)).items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold questions with answers ({error!r}); {file.source}") from error
    count_answers_(score, answers, references, where=str(path))
    by_type: dict[str, list[float]] = {}
    for key, (kind, texts) in references.items():
        value = soft_accuracy(normalize_answer(answers[key]["text"]), texts) if key in answers else 0.0
        by_type.setdefault(kind, []).append(value)
    score.headline = percent(sum(map(sum, by_type.values())), len(references))
    score.values = {
        "accuracy": score.headline,
        "per_answer_type": {kind: percent(sum(values), len(values)) for kind, values in sorted(by_type.items())},
    }
    return score
