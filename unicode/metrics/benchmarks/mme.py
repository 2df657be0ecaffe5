"""MME: two yes-no questions about each picture, fourteen tasks; points for single answers and for both being right."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unicode.metrics.benchmarks.answers import count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Score
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import EVAL_ARCHIVE, SHORT_ANSWER, QuestionLines
from unicode.metrics.benchmarks.rates import ratio

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
YES_NO = "Please answer yes or no."
SOURCE = "ask the authors of MME for MME_Benchmark_release_version, as their repository says, and put it there"
_BREAKS = str.maketrans("\t\r\n", "   ")


class Gold(NamedTuple):
    """One question of the release."""

    question: str  # as its file has it
    answer: str  # "Yes" or "No"


Task = dict[str, dict[str, Gold]]
"""The questions of a task: "picture.txt" -> bare question -> gold, in the order of the files."""


def mme_answer(text: str) -> str:
    """Read yes, no or other as the official calculation does: from the first four characters.

    "Yes." -> yes, "know" -> no, "  yes" -> other.
    """
    lowered = text.lower()
    return "yes" if "yes" in lowered[:4] else "no" if "no" in lowered[:4] else "other"


def bare_question(prompt: str) -> str:
    """Return a question without the instruction how to answer and without white space at the ends."""
    return prompt.replace(SHORT_ANSWER, "").replace(YES_NO, "").strip()


class Mme(QuestionLines):
    """The description of MME. Both questions about a picture have its path as their id, so a key is that and the question."""

    name = "mme"
    title = "MME perception"
    published = published_scores("mme")
    questions = NeededFile("MME/llava_mme.jsonl", EVAL_ARCHIVE)
    images = NeededFile("MME/MME_Benchmark_release_version", SOURCE, to_score=True)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, and the release, which holds images and answers."""
        return [self.questions, self.images]

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Key of the question that an answer record belongs to."""
        name = str(record["question_id"])
        return _key(name.split("/")[0], name.split("/")[-1].split(".")[0] + ".txt", bare_question(str(record.get("prompt", ""))))

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return points per task, their sums over perception (the headline, of 2000) and cognition (of 800).

        A task scores 100 * accuracy + 100 * accuracy+, the share of pictures with both answers right; missing answers are wrong.
        """
        protocol = "yes/no in the first four characters, 100 * accuracy + 100 * accuracy+ per task, sum over the perception tasks"
        score = Score(self.name, None, "points of 2000", protocol, num_answered=len(answers))
        folder = self.images.find(data)
        gold = read_gold(folder) if folder is not None else {}
        if folder is None or not gold:
            score.notes.append(self.images.message(data) if folder is None else f"no questions with answers in {folder}; {SOURCE}")
            return score
        known = {_key(task, file, question) for task, files in gold.items() for file, questions in files.items() for question in questions}
        count_answers_(score, answers, known, where=str(folder))
        texts = {key: record["text"] for key, record in answers.items()}
        score.num_unparsed = sum(mme_answer(text) == "other" for key, text in texts.items() if key in known)
        tasks = {task: _rate(task, files, texts) for task, files in gold.items()}
        for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
            present = [tasks[task]["score"] for task in members if task in tasks]
            score.values[name] = sum(present) if present else None
            if len(present) < len(members):
                score.notes.append(f"the sum over {name} has {len(present)} of {len(members)} tasks, {200 * len(present)} points at most")
        score.values["tasks"] = tasks
        score.headline = score.values["perception"]
        score.files |= {f"mme/{task}.txt": _table(task, files, answers) for task, files in gold.items()}
        return score


def read_gold(folder: Path) -> dict[str, Task]:
    """Read the answers of MME's release: a folder per task, a text file per picture, a line "question<TAB>Yes" per question.

    The text files lie beside the pictures or, in some tasks, in `questions_answers_YN`.

    Raises:
        ValueError: a line is damaged, or a picture has other than two questions; the message names the file.
    """
    gold: dict[str, Task] = {}
    for task_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        inner = task_folder / "questions_answers_YN"
        files: Task = {}
        for path in sorted((inner if inner.is_dir() else task_folder).glob("*.txt")):
            pairs = [line.strip().split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if len(pairs) != 2 or any(len(pair) != 2 or pair[1].lower() not in ("yes", "no") for pair in pairs):
                raise ValueError(f"{path} holds {pairs}; expected two lines 'question<TAB>Yes' or 'question<TAB>No'; {SOURCE}")
            files[path.name] = {bare_question(question): Gold(question, answer) for question, answer in pairs}
            if len(files[path.name]) != 2:
                raise ValueError(f"{path} asks one question twice: {pairs}; {SOURCE}")
        if files:
            gold[task_folder.name] = files
    return gold


def _key(task: str, file: str, question: str) -> str:
    return f"{task}/{file}#{question}"


def _rate(task: str, files: Task, texts: Mapping[str, str]) -> dict[str, Any]:
    num_right, num_both, num_other = 0, 0, 0
    for file, questions in files.items():
        read = {question: mme_answer(texts.get(_key(task, file, question), "")) for question in questions}
        right = [read[question] == gold.answer.lower() for question, gold in questions.items()]
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
        for bare, gold in files[file].items():
            text = answers.get(_key(task, file, bare), {}).get("text", "").translate(_BREAKS)
            lines.append(f"{file}\t{gold.question}\t{gold.answer}\t{text}\n")
    return "".join(lines)
