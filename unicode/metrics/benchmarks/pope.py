"""POPE: is an object in the picture? Three ways of choosing the absent ones: random, popular, adversarial."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unicode.common.records import read_jsonl
from unicode.metrics.benchmarks.answers import check_prompts, count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Question, Score, result_text
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import EVAL_ARCHIVE, QuestionLines
from unicode.metrics.benchmarks.rates import ratio

CATEGORIES = ("random", "popular", "adversarial")
SOURCE = "download output/coco of the repository AoiDragon/POPE at commit e3e39262 (its random file has 2,910 rows, as LLaVA's questions)"
PRINTED = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def llava_answer(text: str) -> str:
    """Read "no" if the text before the first full stop has a word `No`, `not` or `no`, else "yes": nothing is unparsable."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def strict_answer(text: str) -> str | None:
    """Read "yes" or "no" from the first word, whatever its case and punctuation; None for anything else."""
    words = text.split()
    word = words[0].strip(".,;:!?\"'()*").lower() if words else ""
    return word if word in ("yes", "no") else None


class Pope(QuestionLines):
    """The description of POPE."""

    name = "pope"
    title = "POPE"
    published = published_scores("pope")
    questions = NeededFile("pope/llava_pope_test.jsonl", EVAL_ARCHIVE, to_score=True)
    images = NeededFile("pope/val2014", "download COCO's val2014 images")
    labels = tuple(NeededFile(f"pope/coco/coco_pope_{name}.json", SOURCE, to_ask=False, to_score=True) for name in CATEGORIES)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, images, and a file of labels per category."""
        return [self.questions, self.images, *self.labels]

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return F1, accuracy and the rest per category; the headline is the mean F1 of the categories in percent."""
        protocol = "no/not/No before the first full stop is no, anything else yes (LLaVA); labels by order; mean F1 of the categories"
        score = Score(self.name, None, "% F1", protocol, num_answered=len(answers))
        score.notes += [file.message(data) for file in (self.questions, *self.labels) if file.find(data) is None]
        path = self.questions.find(data)
        if path is None:
            return score
        questions = self.read_questions(data, options)
        count_answers_(score, answers, {question.key for question in questions}, where=str(path))
        check_prompts(answers, questions, where=str(path))
        strict = {}
        for category, file in zip(CATEGORIES, self.labels, strict=True):
            labels_path = file.find(data)
            if labels_path is None:
                continue
            asked = [question for question in questions if question.fields.get("category") == category]
            labels = _read_labels(labels_path, asked)
            texts = [answers[question.key]["text"] if question.key in answers else None for question in asked]
            score.values[category] = _rate([llava_answer(text) if text is not None else None for text in texts], labels)
            strict[category] = _rate_all(texts, labels, strict_answer)
            score.num_unparsed += sum(strict_answer(text) is None for text in texts if text is not None)
        if score.values:
            score.files["pope.json"] = result_text({name: {key: rates[key] for key in PRINTED} for name, rates in score.values.items()})
            score.headline = _mean(score.values, "f1")
            score.values = {
                **score.values,
                "mean_f1": score.headline,
                "mean_accuracy": _mean(score.values, "accuracy"),
                "strict": {**strict, "mean_f1": _mean(strict, "f1"), "mean_accuracy": _mean(strict, "accuracy")},
            }
            if len(strict) < len(CATEGORIES):
                score.notes.append(f"the mean is over {len(strict)} of {len(CATEGORIES)} categories")
            if score.num_answered < len(questions):
                score.notes.append("questions without an answer are left out of the rates, and wrong in `strict`")
        return score


def _read_labels(path: Path, asked: Sequence[Question]) -> list[str]:
    """Return the labels of a category, after a look whether its rows are the questions that were asked.

    Raises:
        ValueError: another number of rows, another image or text, or a label that is neither yes nor no.
    """
    rows: list[dict[str, Any]] = list(read_jsonl(path))
    if len(rows) != len(asked):
        raise ValueError(f"{path} has {len(rows)} rows, but the question file asks {len(asked)} of this category; {SOURCE}")
    for number, (row, question) in enumerate(zip(rows, asked, strict=True), 1):
        same_image = "image" not in row or row["image"] == question.image
        same_text = "text" not in row or question.text.startswith(row["text"])
        if not (same_image and same_text):
            raise ValueError(
                f"{path}, row {number} asks {row.get('text')!r} about {row.get('image')}, but question {question.id} asks "
                f"{question.text!r} about {question.image}: the labels go by order; {SOURCE}"
            )
        if row.get("label") not in ("yes", "no"):
            raise ValueError(f"{path}, row {number} has the label {row.get('label')!r}; expected yes or no")
    return [row["label"] for row in rows]


def _rate_all(texts: Sequence[str | None], labels: Sequence[str], read: Callable[[str], str | None]) -> dict[str, Any]:
    """Rate strictly: what is missing or cannot be read counts as the wrong answer."""
    wrong = {"yes": "no", "no": "yes"}
    read_texts = [None if text is None else read(text) for text in texts]
    return _rate([answer or wrong[label] for answer, label in zip(read_texts, labels, strict=True)], labels)


def _rate(predictions: Sequence[str | None], labels: Sequence[str]) -> dict[str, Any]:
    """Return the rates in [0, 1] and the counts of one category; a prediction None is not counted."""
    pairs = [(predicted, label) for predicted, label in zip(predictions, labels, strict=True) if predicted is not None]
    true_yes, false_yes = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    true_no, false_no = pairs.count(("no", "no")), pairs.count(("no", "yes"))
    precision, recall = ratio(true_yes, true_yes + false_yes), ratio(true_yes, true_yes + false_no)
    return {
        "accuracy": ratio(true_yes + true_no, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(true_yes + false_yes, len(pairs)),
        "true_yes": true_yes,
        "false_yes": false_yes,
        "true_no": true_no,
        "false_no": false_no,
    }


def _mean(categories: dict[str, dict[str, Any]], name: str) -> float:
    return 100 * sum(rates[name] for rates in categories.values()) / len(categories)
