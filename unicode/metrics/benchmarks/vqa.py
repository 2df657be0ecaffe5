"""VQAv2, VizWiz, TextVQA and GQA: short answers, compared with those of ten annotators or with one gold answer."""

import json
import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from unicode.common.files import read_json
from unicode.metrics.benchmarks import base
from unicode.metrics.benchmarks.base import DATA, SHORT_ANSWER, Answers, Benchmark, NeededFile, Options, Question, Score

PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
"""Apostrophe, colon, $, %, #, & and the full stop are not among them."""

ARTICLES = frozenset({"a", "an", "the"})

NUMBER_WORDS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}

CONTRACTIONS = {
    **{form[:at] + form[at + 1 :]: form for form in DATA["contractions"] for at, sign in enumerate(form) if sign == "'"},
    "somebody'd": "somebodyd",
}
"""Contractions that lack one apostrophe -> the spelling that counts. Those with capitals never match, for answers come in lower case."""


MAX_FULL_STOPS = 32  # The servers delete at most so many full stops: a flag of theirs stands where the count belongs
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
    stripped = text
    for sign in PUNCTUATION:  # one that has a space beside it anywhere in the text is deleted everywhere, any other becomes a space
        stripped = stripped.replace(sign, "" if f"{sign} " in text or f" {sign}" in text else " ")
    words = [NUMBER_WORDS.get(word, word) for word in _FULL_STOP.sub("", stripped, count=MAX_FULL_STOPS).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Return the mean over the annotators of min(1, agreeing others / 3), in [0, 1]; all texts are already normalised.

    With ten annotators 1, 2, 3 and 4 agreeing ones give 0.3, 0.6, 0.9 and 1.0 (VQA, Antol et al. 2015, as M4C evaluates it).
    """
    agreeing = sum(reference == prediction for reference in references)
    scores = [min(1, (agreeing - (reference == prediction)) / ANNOTATORS_TO_AGREE) for reference in references]
    return sum(scores) / len(scores) if scores else 0.0


class TwoSplits(Benchmark):
    """LLaVA's test questions, whose answers only a server knows, or an official val split with published answers."""

    challenge: str  # of EvalAI, which takes the submission file
    id_field: str  # by which the submission file and the val annotations know a question: "question_id" or "image"
    val_title: str  # of the file of val questions

    @abstractmethod
    def val_question(self, record: Mapping[str, Any]) -> tuple[str | int, str, str]:
        """Return id, question and image of a record of the val file."""

    def is_val(self, options: Options) -> bool:
        """Whether val is asked instead of LLaVA's test file. ValueError for any other split."""
        if options.split not in ("", "val"):
            raise ValueError(
                f"{self.name} has no split {options.split!r}; leave it out for LLaVA's question file, or give val, which has answers"
            )
        return options.split == "val"

    def needed_files(self, options: Options) -> list[NeededFile]:
        val = self.is_val(options)
        return [file for role, file in self.files.items() if role.startswith("val_") == val]

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return LLaVA's test questions, or those of the official val file with LLaVA's suffix."""
        if not self.is_val(options):
            return super().read_questions(data, options)
        file = self.needed_files(options)[0]
        path = file.require(data)
        with base.expect(f"{path} is not {self.val_title}", file.source):
            asked = [self.val_question(record) for record in _records(read_json(path), "questions")]
        return [Question(name, text, str(name), image=image, prompt=text) for name, text, image in asked]

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        if self.is_val(options):
            self._score_val(score, data, answers)
            return
        file = f"{self.name}_upload.json"
        score.notes.append(f"only the server knows the answers: upload {file} to challenge {self.challenge}")
        asked = self._match_questions(data, answers, options)
        upload = self.files.get("upload_ids", self.files["questions"])  # VQAv2's server wants more questions than test-dev has
        path = upload.find(data)
        listed = None if path is None else base.read_question_file(path, self.key_of)
        known = asked if asked is not None else {question.key for question in listed or ()}
        if asked is not None or listed is not None:
            score.count_answers_(answers, known, where=self.files["questions"].find(data) or path)
        if listed is None:
            score.notes.append(f"no submission file: {upload.message(data)}")
            return
        texts = {key: normalize_answer(record["text"]) for key, record in answers.items()}
        names = [question.image if self.id_field == "image" else question.id for question in listed]
        rows = [{self.id_field: name, "answer": texts.get(question.key, "")} for name, question in zip(names, listed, strict=True)]
        score.files[file] = json.dumps(rows)
        score.values["uploaded"] = len(listed)

    def _score_val(self, score: Score, data: Path, answers: Answers) -> None:
        """Soft accuracy in percent over all questions and per `answer_type`; a question without an answer scores 0."""
        score.protocol = "val split, mean over leave-one-out annotators, EvalAI normalisation"
        file = self.files["val_annotations"]
        if score.note_missing_(data, file):
            return
        path = file.require(data)
        references = {}
        with base.expect(f"{path} does not hold questions with answers", file.source):
            for record in _records(read_json(path), "annotations"):
                texts = [normalize_answer(str(reference["answer"])) for reference in record["answers"]]
                references[str(record[self.id_field])] = str(record.get("answer_type", "all")), texts
        score.count_answers_(answers, references, where=path)
        by_type: dict[str, list[float]] = defaultdict(list)
        for key, (kind, texts) in references.items():
            by_type[kind].append(soft_accuracy(normalize_answer(answers[key]["text"]), texts) if key in answers else 0.0)
        score.headline = base.percent(sum(map(sum, by_type.values())), len(references))
        score.values = {
            "accuracy": score.headline,
            "per_answer_type": {kind: base.percent(sum(values), len(values)) for kind, values in sorted(by_type.items())},
        }


def _records(content: Any, name: str) -> Any:
    """VQA v2 wraps its records in an object, VizWiz does not."""
    return content[name] if isinstance(content, dict) else content


class Vqav2(TwoSplits):
    """VQAv2: LLaVA's test-dev questions with a file for the server, or the official val split with a score."""

    name, id_field = "vqav2", "question_id"
    challenge, val_title = "830 of EvalAI, phase test-dev", "the official question file of VQA v2"

    def val_question(self, record: Mapping[str, Any]) -> tuple[str | int, str, str]:
        image = f"COCO_val2014_{int(record['image_id']):012d}.jpg"
        return record["question_id"], f"{record['question']}\n{SHORT_ANSWER}", image


class Vizwiz(TwoSplits):
    """VizWiz: LLaVA's test questions with a file for the server, or the official val split with a score, its ids the images' names."""

    name, id_field = "vizwiz", "image"
    challenge, val_title = "2185 of EvalAI", "an annotation file of VizWiz-VQA"

    def val_question(self, record: Mapping[str, Any]) -> tuple[str | int, str, str]:
        suffix = "When the provided information is insufficient, respond with 'Unanswerable'."
        return record["image"], f"{record['question']}\n{suffix}\n{SHORT_ANSWER}", record["image"]


OCR_LINE, OCR_START = "Reference OCR token: ", "OCR tokens: "
_OCR_FIRST = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def question_of(prompt: str) -> str:
    """Return the bare question, in lower case, of a prompt of LLaVA's question files.

    Raises ValueError: the prompt has none of the forms of these files.
    """
    lines = prompt.split("\n")
    if prompt.startswith(OCR_START):
        found = _OCR_FIRST.search(prompt)
        question = found.group(1) if found else None
    elif OCR_LINE in prompt and len(lines) == 3:
        question = lines[1] if prompt.startswith(OCR_LINE.rstrip()) else lines[0]
    else:
        question = lines[0] if len(lines) == 2 else None
    if question is None:
        raise ValueError(
            f"no question in the prompt {prompt[:120]!r}; expected the question, perhaps a line '{OCR_LINE}...', and the line that asks "
            "for a word or phrase, as in LLaVA's question file"
        )
    return question.lower()


class Textvqa(Benchmark):
    """TextVQA, val 0.5.1. `question_id` is the id of the image, so a key is that and the question."""

    name = "textvqa"

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Return the key of the question that an answer record belongs to. ValueError for a prompt of another benchmark."""
        return f"{record['question_id']}#{question_of(str(record.get('prompt', '')))}"

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        """Take the mean over the answers given, as LLaVA does, and beside it over all questions."""
        prompts = [str(record.get("prompt", "")) for record in answers.values()]
        num_ocr = sum(OCR_LINE in prompt or prompt.startswith(OCR_START) for prompt in prompts)
        score.protocol = self.protocol.format(ocr="with" if 2 * num_ocr > len(answers) else "without")
        file = self.files["annotations"]
        if score.note_missing_(data, file):
            return
        path = file.require(data)
        with base.expect(f"{path} is not the annotation file of TextVQA", file.source):
            records = read_json(path)["data"]
            keys = [f"{record['image_id']}#{record['question'].lower()}" for record in records]
            references = {key: record["answers"] for key, record in zip(keys, records, strict=True)}
        score.count_answers_(answers, references, where=path)
        times = Counter(keys)  # a question that two annotators asked counts twice, as LLaVA asks it twice
        values = {
            key: soft_accuracy(normalize_answer(record["text"]), [normalize_answer(str(text)) for text in references[key]])
            for key, record in answers.items()
            if key in references
        }
        total = sum(times[key] * value for key, value in values.items())
        score.headline = base.percent(total, sum(times[key] for key in values))
        score.values = {
            "accuracy": score.headline,
            "answers_with_ocr_tokens": num_ocr,
            "strict": {"accuracy": base.percent(total, len(keys)), "rule": "a question without an answer scores 0"},
        }
        score.files["textvqa.json"] = base.result_text({"accuracy": score.headline})


NOT_A_STEP = ("exist", "query: name", "choose name")
"""Operations of a question's program that the official evaluation does not count as reasoning steps."""


class Gqa(Benchmark):
    """GQA, testdev-balanced. A missing answer is wrong."""

    name = "gqa"

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        predictions = {key: record["text"].rstrip(".").lower() for key, record in answers.items()}  # as LLaVA submits them
        score.files["gqa_predictions.json"] = json.dumps(
            [{"questionId": record["question_id"], "prediction": predictions[key]} for key, record in answers.items()]
        )
        asked = self._match_questions(data, answers, options)
        gold = self.files["gold"]
        if score.note_missing_(data, gold):
            if asked is not None:
                score.count_answers_(answers, asked, where=self.files["questions"].find(data))
            return
        path = gold.require(data)
        with base.expect(f"{path} is not a question file of GQA", gold.source):
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
        steps = [f"{step['operation']}: {step['argument']}" for step in question["semantic"]]
        for figure, value in (
            ("all", "accuracy"),
            ("all", "open" if structural == "query" else "binary"),
            ("per_structural_type", structural),
            ("per_semantic_type", semantic),
            ("per_steps", sum(not any(part in step for part in NOT_A_STEP) for step in steps)),
            ("per_words", len(question["question"].split())),
        ):
            correct[figure][str(value)].append(right)
    rates = {figure: {value: base.share_true(flags) for value, flags in sorted(groups.items())} for figure, groups in correct.items()}
    totals = rates.pop("all", {})
    main = {name: totals.get(name) for name in ("accuracy", "binary", "open")}
    return {**main, "distribution": _distribution(questions, predictions), **rates}


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
    return base.ratio(sum(distances[group] * counts.total() for group, counts in gold.items()), total) / 100
