"""VQAv2, VizWiz and TextVQA: short answers, normalized, compared with ten annotators."""

import json
import re
from collections import Counter
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
    read_question_file,
    result_text,
)

PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
"""Apostrophe, colon, $, %, #, & and the full stop are not among them."""

ARTICLES = frozenset({"a", "an", "the"})

NUMBER_WORDS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}

# fmt: off
CONTRACTIONS = {
    "aint": "ain't", "arent": "aren't", "cant": "can't", "couldve": "could've", "couldnt": "couldn't", "couldn'tve": "couldn't've",
    "couldnt've": "couldn't've", "didnt": "didn't", "doesnt": "doesn't", "dont": "don't", "hadnt": "hadn't", "hadnt've": "hadn't've",
    "hadn'tve": "hadn't've", "hasnt": "hasn't", "havent": "haven't", "hed": "he'd", "hed've": "he'd've", "he'dve": "he'd've",
    "hes": "he's", "howd": "how'd", "howll": "how'll", "hows": "how's", "Id've": "I'd've", "I'dve": "I'd've", "Im": "I'm", "Ive": "I've",
    "isnt": "isn't", "itd": "it'd", "itd've": "it'd've", "it'dve": "it'd've", "itll": "it'll", "let's": "let's", "maam": "ma'am",
    "mightnt": "mightn't", "mightnt've": "mightn't've", "mightn'tve": "mightn't've", "mightve": "might've", "mustnt": "mustn't",
    "mustve": "must've", "neednt": "needn't", "notve": "not've", "oclock": "o'clock", "oughtnt": "oughtn't", "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at", "shant": "shan't", "shed've": "she'd've", "she'dve": "she'd've", "she's": "she's",
    "shouldve": "should've", "shouldnt": "shouldn't", "shouldnt've": "shouldn't've", "shouldn'tve": "shouldn't've",
    "somebody'd": "somebodyd", "somebodyd've": "somebody'd've", "somebody'dve": "somebody'd've", "somebodyll": "somebody'll",
    "somebodys": "somebody's", "someoned": "someone'd", "someoned've": "someone'd've", "someone'dve": "someone'd've",
    "someonell": "someone'll", "someones": "someone's", "somethingd": "something'd", "somethingd've": "something'd've",
    "something'dve": "something'd've", "somethingll": "something'll", "thats": "that's", "thered": "there'd", "thered've": "there'd've",
    "there'dve": "there'd've", "therere": "there're", "theres": "there's", "theyd": "they'd", "theyd've": "they'd've",
    "they'dve": "they'd've", "theyll": "they'll", "theyre": "they're", "theyve": "they've", "twas": "'twas", "wasnt": "wasn't",
    "wed've": "we'd've", "we'dve": "we'd've", "weve": "we've", "werent": "weren't", "whatll": "what'll", "whatre": "what're",
    "whats": "what's", "whatve": "what've", "whens": "when's", "whered": "where'd", "wheres": "where's", "whereve": "where've",
    "whod": "who'd", "whod've": "who'd've", "who'dve": "who'd've", "wholl": "who'll", "whos": "who's", "whove": "who've",
    "whyll": "why'll", "whyre": "why're", "whys": "why's", "wont": "won't", "wouldve": "would've", "wouldnt": "wouldn't",
    "wouldnt've": "wouldn't've", "wouldn'tve": "wouldn't've", "yall": "y'all", "yall'll": "y'all'll", "y'allll": "y'all'll",
    "yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've", "youd": "you'd", "youd've": "you'd've",
    "you'dve": "you'd've", "youll": "you'll", "youre": "you're", "youve": "you've",
}
# fmt: on
"""Spellings of contractions -> the one that counts. Entries with capitals never match, for answers come in lower case."""


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

    A question without an answer scores 0; without the annotation file there is no headline.

    Args:
        by_key: content of the file -> {key: {"answers": [{"answer": text}, ...], "answer_type": optional}}, as VQAv2 and VizWiz publish it.

    Raises:
        ValueError: the file is another one, or the answers are those of another split.
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

    Raises:
        ValueError: the prompt has none of the forms of these files.
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
