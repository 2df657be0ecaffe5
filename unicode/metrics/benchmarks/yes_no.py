"""POPE and MME: yes-no questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unicode.common.files import read_jsonl
from unicode.metrics.benchmarks.base import DATA, SHORT_ANSWER, Answers, Benchmark, Options, Question, Score, ratio, result_text

CATEGORIES = ("random", "popular", "adversarial")
POPE_SOURCE = DATA["sources"]["pope"]
PRINTED = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def llava_answer(text: str) -> str:
    """Read "no" if the text before the first full stop has a word `No`, `not` or `no`, else "yes": nothing is unparsable."""
    return "no" if {"No", "not", "no"} & set(text.split(".")[0].replace(",", "").split(" ")) else "yes"


def strict_answer(text: str) -> str | None:
    """Read "yes" or "no" from the first word, whatever its case and punctuation; None for anything else."""
    words = text.split()
    word = words[0].strip(".,;:!?\"'()*").lower() if words else ""
    return word if word in ("yes", "no") else None


class Pope(Benchmark):
    """POPE: is the object there? F1 and other rates per category, the labels by the order of the questions."""

    name = "pope"

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        """Rate as LLaVA does, which leaves out missing answers, and strictly: what is missing or cannot be read is wrong."""
        score.note_missing_(data, self.files["questions"], *(self.files[category] for category in CATEGORIES))
        questions = self._match_questions(data, answers, options)
        if questions is None:
            return
        score.count_answers_(answers, questions, where=self.files["questions"].find(data))
        rates, strict = {}, {}
        for category in CATEGORIES:
            path = self.files[category].find(data)
            if path is None:
                continue
            asked = [question for question in questions.values() if question.fields.get("category") == category]
            labels = _read_labels(path, asked)
            texts = [answers[question.key]["text"] if question.key in answers else None for question in asked]
            rates[category] = _pope_rates([llava_answer(text) if text is not None else None for text in texts], labels)
            read = [strict_answer(text or "") for text in texts]
            wrong = ["no" if label == "yes" else "yes" for label in labels]
            strict[category] = _pope_rates([answer or other for answer, other in zip(read, wrong, strict=True)], labels)
            score.num_unparsed += read.count(None) - texts.count(None)
        if not rates:
            return
        score.files["pope.json"] = result_text({name: {key: values[key] for key in PRINTED} for name, values in rates.items()})
        score.values = {**rates, **_means(rates), "strict": {**strict, **_means(strict)}}
        score.headline = score.values["mean_f1"]
        if len(rates) < len(CATEGORIES):
            score.notes.append(f"the mean is over {len(rates)} of {len(CATEGORIES)} categories")
        if score.num_answered < len(questions):
            score.notes.append("questions without an answer are left out of the rates, and wrong in `strict`")


def _read_labels(path: Path, asked: Sequence[Question]) -> list[str]:
    """Return the labels of a category; its rows have to be the questions that were asked.

    Raises ValueError: another number of rows, another image or text, or a label that is neither yes nor no.
    """
    rows: list[dict[str, Any]] = list(read_jsonl(path))
    if len(rows) != len(asked):
        raise ValueError(f"{path} has {len(rows)} rows, but the question file asks {len(asked)} of this category; {POPE_SOURCE}")
    for number, (row, question) in enumerate(zip(rows, asked, strict=True), 1):
        same_image = "image" not in row or row["image"] == question.image
        same_text = "text" not in row or question.text.startswith(row["text"])
        if not (same_image and same_text):
            raise ValueError(
                f"{path}, row {number} asks {row.get('text')!r} about {row.get('image')}, but question {question.id} asks "
                f"{question.text!r} about {question.image}: the labels go by order; {POPE_SOURCE}"
            )
        if row.get("label") not in ("yes", "no"):
            raise ValueError(f"{path}, row {number} has the label {row.get('label')!r}; expected yes or no")
    return [row["label"] for row in rows]


def _pope_rates(predictions: Sequence[str | None], labels: Sequence[str]) -> dict[str, Any]:
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


def _means(categories: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Means over the categories in percent."""
    return {f"mean_{name}": 100 * sum(rates[name] for rates in categories.values()) / len(categories) for name in ("f1", "accuracy")}


PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
YES_NO = "Please answer yes or no."
MME_SOURCE = DATA["sources"]["mme"]
_BREAKS = str.maketrans("\t\r\n", "   ")


Task = dict[str, dict[str, tuple[str, str]]]
"""The questions of a task: "image.txt" -> bare question -> (question as its file has it, "Yes" or "No"), in the order of the files."""


def mme_answer(text: str) -> str:
    """Read yes, no or other as the official calculation does: from the first four characters.

    "Yes." -> yes, "know" -> no, "  yes" -> other.
    """
    lowered = text.lower()
    return "yes" if "yes" in lowered[:4] else "no" if "no" in lowered[:4] else "other"


def bare_question(prompt: str) -> str:
    """Return a question without the instruction how to answer, stripped."""
    return prompt.replace(SHORT_ANSWER, "").replace(YES_NO, "").strip()


class Mme(Benchmark):
    """MME: points per task, their sums over perception (of 2000) and cognition (of 800).

    A task scores 100 * accuracy + 100 * accuracy+, the share of images with both answers right; missing answers are wrong.
    Both questions about an image have its path as their id, so a key is that and the question.
    """

    name = "mme"

    def key_of(self, record: Mapping[str, Any]) -> str:
        name = str(record["question_id"])
        return _key(name.split("/")[0], name.split("/")[-1].split(".")[0] + ".txt", bare_question(str(record.get("prompt", ""))))

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        if score.note_missing_(data, self.files["images"]):
            return
        folder = self.files["images"].require(data)
        gold = read_gold(folder)
        if not gold:
            score.notes.append(f"no questions with answers in {folder}; {MME_SOURCE}")
            return
        known = {_key(task, file, question) for task, files in gold.items() for file, questions in files.items() for question in questions}
        score.count_answers_(answers, known, where=folder)
        texts = {key: record["text"] for key, record in answers.items()}
        score.num_unparsed = sum(mme_answer(text) == "other" for key, text in texts.items() if key in known)
        tasks = {task: _mme_rates(task, files, texts) for task, files in gold.items()}
        for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
            present = [tasks[task]["score"] for task in members if task in tasks]
            score.values[name] = sum(present) if present else None
            if len(present) < len(members):
                score.notes.append(f"the sum over {name} has {len(present)} of {len(members)} tasks, {200 * len(present)} points at most")
        score.values["tasks"] = tasks
        score.headline = score.values["perception"]
        score.files |= {f"mme/{task}.txt": _table(task, files, answers) for task, files in gold.items()}


def read_gold(folder: Path) -> dict[str, Task]:
    """Read the answers of MME's release: a folder per task, a text file per image, a line "question<TAB>Yes" per question.

    The text files lie beside the images or, in some tasks, in `questions_answers_YN`. Raises ValueError: a line is damaged, or an image has
    other than two questions; the message names the file.
    """
    gold: dict[str, Task] = {}
    for task_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        inner = task_folder / "questions_answers_YN"
        files: Task = {}
        for path in sorted((inner if inner.is_dir() else task_folder).glob("*.txt")):
            pairs = [line.strip().split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if len(pairs) != 2 or any(len(pair) != 2 or pair[1].lower() not in ("yes", "no") for pair in pairs):
                raise ValueError(f"{path} holds {pairs}; expected two lines 'question<TAB>Yes' or 'question<TAB>No'; {MME_SOURCE}")
            files[path.name] = {bare_question(question): (question, answer) for question, answer in pairs}
            if len(files[path.name]) != 2:
                raise ValueError(f"{path} asks one question twice: {pairs}; {MME_SOURCE}")
        if files:
            gold[task_folder.name] = files
    return gold


def _key(task: str, file: str, question: str) -> str:
    return f"{task}/{file}#{question}"


def _mme_rates(task: str, files: Task, texts: Mapping[str, str]) -> dict[str, Any]:
    num_right, num_both, num_other = 0, 0, 0
    for file, questions in files.items():
        read = {question: mme_answer(texts.get(_key(task, file, question), "")) for question in questions}
        right = [read[question] == answer.lower() for question, (_, answer) in questions.items()]
        num_right += sum(right)
        num_both += all(right)
        num_other += sum(answer == "other" for answer in read.values())
    accuracy, accuracy_plus = ratio(num_right, 2 * len(files)), ratio(num_both, len(files))
    return {
        "score": 100 * accuracy + 100 * accuracy_plus,
        "accuracy": accuracy,
        "accuracy_plus": accuracy_plus,
        "pictures": len(files),
        "other": num_other,
    }


def _table(task: str, files: Task, answers: Answers) -> str:
    """Return the lines that the official eval_tool reads; a line break or tab in an answer would break it and becomes a space."""
    places = {key.split("#")[0]: place for place, key in reversed(list(enumerate(answers)))}
    lines = []
    for file in sorted(files, key=lambda name: places.get(f"{task}/{name}", len(answers))):
        for bare, (question, answer) in files[file].items():
            text = answers.get(_key(task, file, bare), {}).get("text", "").translate(_BREAKS)
            lines.append(f"{file}\t{question}\t{answer}\t{text}\n")
    return "".join(lines)
