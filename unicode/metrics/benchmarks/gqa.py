"""GQA: compositional questions about scenes, testdev-balanced. Exact match, with the figures of the official evaluation."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicode.common.files import read_json
from unicode.metrics.benchmarks.base import (
    EVAL_ARCHIVE,
    Answers,
    Benchmark,
    NeededFile,
    Options,
    Score,
    expect,
    ratio,
    share_true,
)

GQA_SOURCE = "download the questions and images of GQA (Stanford) and unpack them in gqa/data"
NOT_A_STEP = ("exist", "query: name", "choose name")
"""Operations of a question's program that the official evaluation does not count as reasoning steps."""


def gqa_prediction(text: str) -> str:
    """Return what LLaVA submits for an answer: lower case, without full stops at the end."""
    return text.rstrip(".").lower()


class Gqa(Benchmark):
    """GQA, testdev-balanced. A missing answer is wrong."""

    name, title, unit = "gqa", "GQA", "% exact match"
    protocol = "testdev-balanced, lower case, final full stops dropped, equality with the gold answer"
    questions = NeededFile("gqa/llava_gqa_testdev_balanced.jsonl", EVAL_ARCHIVE)
    images = NeededFile("gqa/data/images", GQA_SOURCE)
    gold = NeededFile(
        ("gqa/data/testdev_balanced_questions.json", "gqa/data/questions1.2/testdev_balanced_questions.json"),
        GQA_SOURCE,
        to_ask=False,
        to_score=True,
    )
    answer_key = (gold,)

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        predictions = {key: gqa_prediction(record["text"]) for key, record in answers.items()}
        score.files["gqa_predictions.json"] = json.dumps(
            [{"questionId": record["question_id"], "prediction": predictions[key]} for key, record in answers.items()]
        )
        asked = self._match_questions(data, answers, options)
        if score.note_missing_(data, self.gold):
            if asked is not None:
                score.count_answers_(answers, asked, where=self.questions.find(data))
            return
        path = self.gold.require(data)
        with expect(f"{path} is not a question file of GQA", GQA_SOURCE):
            balanced = {key: question for key, question in read_json(path).items() if question["isBalanced"]}
            score.count_answers_(answers, balanced, where=path)
            score.values = evaluate_gqa(balanced, predictions)
        score.headline = score.values["accuracy"]


def evaluate_gqa(questions: Mapping[str, Any], predictions: Mapping[str, str]) -> dict[str, Any]:
    """Return accuracies in percent: all, binary, open, per type, per number of words and of steps; and the distribution score.

    A question is open if its structural type is "query", else binary. Validity, plausibility, consistency and grounding need files that
    LLaVA's evaluation switches off too.
    """
    correct: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for key, question in questions.items():
        right = predictions.get(key) == question["answer"]
        structural, semantic = question["types"]["structural"], question["types"]["semantic"]
        for figure, value in (
            ("all", "accuracy"),
            ("all", "open" if structural == "query" else "binary"),
            ("per_structural_type", structural),
            ("per_semantic_type", semantic),
            ("per_steps", _num_steps(question)),
            ("per_words", len(question["question"].split())),
        ):
            correct[figure][str(value)].append(right)
    rates = {figure: {value: share_true(flags) for value, flags in sorted(groups.items())} for figure, groups in correct.items()}
    totals = rates.pop("all", {})
    return {
        "accuracy": totals.get("accuracy"),
        "binary": totals.get("binary"),
        "open": totals.get("open"),
        "distribution": _distribution(questions, predictions),
        **rates,
    }


def _num_steps(question: Mapping[str, Any]) -> int:
    steps = [f"{step['operation']}: {step['argument']}" for step in question["semantic"]]
    return sum(not any(part in step for part in NOT_A_STEP) for step in steps)


def _distribution(questions: Mapping[str, Any], predictions: Mapping[str, str]) -> float:
    """Chi-square distance of the answers given in a group to its gold answers, averaged over groups by size, / 100; lower is better."""
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for key, question in questions.items():
        group = question["groups"]["global"]
        if group is not None:
            gold[group][question["answer"]] += 1
            if key in predictions:
                given[group][predictions[key]] += 1
    total = sum(counts.total() for counts in gold.values())
    distances = {group: sum((given[group][name] - n) ** 2 / n for name, n in counts.items()) for group, counts in gold.items()}
    return ratio(sum(distances[group] * counts.total() for group, counts in gold.items()), total) / 100
