"""VQAv2, VizWiz, TextVQA and GQA: short answers, compared with those of ten annotators or with one gold answer."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from unicode.common.files import read_json
from unicode.metrics.benchmarks.base import (
    EVAL_ARCHIVE,
    SHORT_ANSWER,
    Answers,
    Benchmark,
    NeededFile,
    Options,
    Question,
    Score,
    expect,
    percent,
    ratio,
    read_question_file,
    result_text,
    share_true,
)

PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
"""Apostrophe, colon, $, %, #, & and the full stop are not among them."""

ARTICLES = frozenset({"a", "an", "the"})

NUMBER_WORDS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}

_CONTRACTED = (
    "'ow's'at 'twas I'd've I'm I've ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've "
    "mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll "
    "somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've "
    "when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't "
    "wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
)
CONTRACTIONS = {
    **{form[:at] + form[at + 1 :]: form for form in _CONTRACTED.split() for at, sign in enumerate(form) if sign == "'"},
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


UNIT = "% soft accuracy"
UPLOAD_PROTOCOL = "submission file, answers normalised as EvalAI does"
VAL_PROTOCOL = "val split, mean over leave-one-out annotators, EvalAI normalisation"
ONLY_THE_SERVER = "only the server knows the answers: upload {file} to challenge {challenge}"


def is_val(name: str, options: Options) -> bool:
    """Whether a benchmark is asked on val instead of LLaVA's test file. ValueError for any other split."""
    if options.split not in ("", "val"):
        raise ValueError(f"{name} has no split {options.split!r}; leave it out for LLaVA's question file, or give val, which has answers")
    return options.split == "val"


def _val_question(name: str | int, text: str, *, image: str) -> Question:
    return Question(name, text, str(name), image=image, prompt=text)


def score_val_(
    score: Score, data: Path, file: NeededFile, answers: Answers, *, by_key: Callable[[Any], Mapping[str, Mapping[str, Any]]]
) -> None:
    """Score a val split with published answers: soft accuracy in percent over all its questions and per `answer_type`.

    A question without an answer scores 0; without the annotation file there is no headline. `by_key`: content of the file -> {key:
    {"answers": [{"answer": text}, ...], "answer_type": optional}}, as VQAv2 and VizWiz publish it. Raises ValueError: the file is another
    one, or the answers are those of another split.
    """
    score.protocol = VAL_PROTOCOL
    if score.note_missing_(data, file):
        return
    path = file.require(data)
    with expect(f"{path} does not hold questions with answers", file.source):
        references = {
            key: (str(record.get("answer_type", "all")), [normalize_answer(str(reference["answer"])) for reference in record["answers"]])
            for key, record in by_key(read_json(path)).items()
        }
    score.count_answers_(answers, references, where=path)
    by_type: dict[str, list[float]] = {}
    for key, (kind, texts) in references.items():
        value = soft_accuracy(normalize_answer(answers[key]["text"]), texts) if key in answers else 0.0
        by_type.setdefault(kind, []).append(value)
    score.headline = percent(sum(map(sum, by_type.values())), len(references))
    score.values = {
        "accuracy": score.headline,
        "per_answer_type": {kind: percent(sum(values), len(values)) for kind, values in sorted(by_type.items())},
    }


def _add_upload_(score: Score, answers: Answers, listed: Iterable[Question], *, row: Callable[[Question], dict[str, Any]]) -> None:
    """Add the submission file of a test split: `row` and the normalized answer of each question, empty without one."""
    texts = {key: normalize_answer(record["text"]) for key, record in answers.items()}
    upload = [{**row(question), "answer": texts.get(question.key, "")} for question in listed]
    score.values["uploaded"] = len(upload)
    score.files[f"{score.name}_upload.json"] = json.dumps(upload)


VQAV2_SOURCE = "download the val questions and annotations of VQA v2 from visualqa.org and unpack them there"


class Vqav2(Benchmark):
    """VQAv2: LLaVA's test-dev questions with a file for the server, or the official val split with a score."""

    name, title, unit, protocol = "vqav2", "VQAv2", UNIT, UPLOAD_PROTOCOL
    questions = NeededFile("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", EVAL_ARCHIVE)
    images = NeededFile("vqav2/test2015", "download COCO's test2015 images")
    upload_ids = NeededFile("vqav2/llava_vqav2_mscoco_test2015.jsonl", EVAL_ARCHIVE, to_ask=False, to_score=True)
    val_questions = NeededFile("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", VQAV2_SOURCE)
    val_images = NeededFile("vqav2/val2014", "download COCO's val2014 images")
    val_annotations = NeededFile("vqav2/v2_mscoco_val2014_annotations.json", VQAV2_SOURCE, to_ask=False, to_score=True)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, images and the ids of the upload; the official files of the val split."""
        if is_val(self.name, options):
            return [self.val_questions, self.val_images, self.val_annotations]
        return [self.questions, self.images, self.upload_ids]

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return LLaVA's test-dev questions, or those of the official val file with LLaVA's suffix."""
        if not is_val(self.name, options):
            return super().read_questions(data, options)
        path = self.val_questions.require(data)
        with expect(f"{path} is not the official question file of VQA v2", VQAV2_SOURCE):
            return [
                _val_question(
                    record["question_id"],
                    f"{record['question']}\n{SHORT_ANSWER}",
                    image=f"COCO_val2014_{int(record['image_id']):012d}.jpg",
                )
                for record in read_json(path)["questions"]
            ]

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        if is_val(self.name, options):
            score_val_(score, data, self.val_annotations, answers, by_key=_by_id)
            return
        score.notes.append(ONLY_THE_SERVER.format(file="vqav2_upload.json", challenge="830 of EvalAI, phase test-dev"))
        asked = self._match_questions(data, answers, options)
        upload_path = self.upload_ids.find(data)
        listed = None if upload_path is None else {q.key: q for q in read_question_file(upload_path, self.key_of)}
        known = listed if asked is None else asked
        if known is not None:
            score.count_answers_(answers, known, where=self.questions.find(data) or upload_path)
        if listed is None:
            score.notes.append(f"no submission file: {self.upload_ids.message(data)}")
        else:
            _add_upload_(score, answers, listed.values(), row=lambda question: {"question_id": question.id})


def _by_id(content: Any) -> dict[str, Any]:
    return {str(record["question_id"]): record for record in content["annotations"]}


UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
VIZWIZ_SOURCE = "download the annotations (val.json) and val images of VizWiz-VQA from vizwiz.org and unpack them there"


class Vizwiz(Benchmark):
    """VizWiz: LLaVA's test questions with a file for the server, or the official val split with a score."""

    name, title, unit, protocol = "vizwiz", "VizWiz", UNIT, UPLOAD_PROTOCOL
    questions = NeededFile("vizwiz/llava_test.jsonl", EVAL_ARCHIVE, to_score=True)
    images = NeededFile("vizwiz/test", "download the test images of VizWiz-VQA from vizwiz.org and unpack them there")
    val_annotations = NeededFile("vizwiz/val.json", VIZWIZ_SOURCE, to_score=True)
    val_images = NeededFile("vizwiz/val", VIZWIZ_SOURCE)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions and images; the official annotations of the val split."""
        return [self.val_annotations, self.val_images] if is_val(self.name, options) else [self.questions, self.images]

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return LLaVA's test questions, or those of val.json with LLaVA's suffix; an id of val is the name of its image."""
        if not is_val(self.name, options):
            return super().read_questions(data, options)
        path = self.val_annotations.require(data)
        with expect(f"{path} is not an annotation file of VizWiz-VQA", VIZWIZ_SOURCE):
            return [
                _val_question(record["image"], f"{record['question']}\n{UNANSWERABLE}\n{SHORT_ANSWER}", image=record["image"])
                for record in read_json(path)
            ]

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        if is_val(self.name, options):
            score_val_(score, data, self.val_annotations, answers, by_key=_by_image)
            return
        score.notes.append(ONLY_THE_SERVER.format(file="vizwiz_upload.json", challenge="2185 of EvalAI"))
        questions = self._match_questions(data, answers, options)
        if questions is None:
            score.notes.append(f"no submission file: {self.questions.message(data)}")
            return
        score.count_answers_(answers, questions, where=self.questions.find(data))
        _add_upload_(score, answers, questions.values(), row=lambda question: {"image": question.image})


def _by_image(content: Any) -> dict[str, Any]:
    return {record["image"]: record for record in content}


TEXTVQA_SOURCE = "download TextVQA_0.5.1_val.json (and train_val_images.zip, whose folder is train_images) of TextVQA"
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

    name, title, unit = "textvqa", "TextVQA", UNIT
    protocol = "val 0.5.1, {ocr} OCR tokens in the prompt, mean over leave-one-out annotators, EvalAI normalisation"
    questions = NeededFile("textvqa/llava_textvqa_val_v051_ocr.jsonl", EVAL_ARCHIVE)
    images = NeededFile("textvqa/train_images", TEXTVQA_SOURCE)
    annotations = NeededFile("textvqa/TextVQA_0.5.1_val.json", TEXTVQA_SOURCE, to_ask=False, to_score=True)
    answer_key = (annotations,)

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Return the key of the question that an answer record belongs to. ValueError for a prompt of another benchmark."""
        return f"{record['question_id']}#{question_of(str(record.get('prompt', '')))}"

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        """Take the mean over the answers given, as LLaVA does, and beside it over all questions."""
        prompts = [str(record.get("prompt", "")) for record in answers.values()]
        num_ocr = sum(OCR_LINE in prompt or prompt.startswith(OCR_START) for prompt in prompts)
        score.protocol = self.protocol.format(ocr="with" if 2 * num_ocr > len(answers) else "without")
        if score.note_missing_(data, self.annotations):
            return
        path = self.annotations.require(data)
        with expect(f"{path} is not the annotation file of TextVQA", TEXTVQA_SOURCE):
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
        score.headline = percent(total, sum(times[key] for key in values))
        score.values = {
            "accuracy": score.headline,
            "answers_with_ocr_tokens": num_ocr,
            "strict": {"accuracy": percent(total, len(keys)), "rule": "a question without an answer scores 0"},
        }
        score.files["textvqa.json"] = result_text({"accuracy": score.headline})


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
