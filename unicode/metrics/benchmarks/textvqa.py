"""TextVQA: reading what is written in a picture, val split, soft accuracy as M4C evaluates it."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicode.common.records import read_json
from unicode.metrics.benchmarks.answer_text import normalize_answer, soft_accuracy
from unicode.metrics.benchmarks.answers import count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Score, result_text
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import EVAL_ARCHIVE, QuestionLines
from unicode.metrics.benchmarks.rates import percent

SOURCE = "download TextVQA_0.5.1_val.json (and train_val_images.zip, whose folder is train_images) of TextVQA"
OCR_LINE = "Reference OCR token: "
_OCR_FIRST = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def question_of(prompt: str) -> str:
    """Return the bare question, in lower case, of a prompt of LLaVA's question files.

    Raises:
        ValueError: the prompt has none of the forms of these files.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
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


class Textvqa(QuestionLines):
    """The description of TextVQA. `question_id` is the id of the image, so a key is that and the question."""

    name = "textvqa"
    title = "TextVQA"
    published = published_scores("textvqa")
    questions = NeededFile("textvqa/llava_textvqa_val_v051_ocr.jsonl", EVAL_ARCHIVE)
    images = NeededFile("textvqa/train_images", SOURCE)
    annotations = NeededFile("textvqa/TextVQA_0.5.1_val.json", SOURCE, to_ask=False, to_score=True)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, images and annotations."""
        return [self.questions, self.images, self.annotations]

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Key of the question that an answer record belongs to. ValueError for a prompt of another benchmark."""
        return f"{record['question_id']}#{question_of(str(record.get('prompt', '')))}"

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return the mean soft accuracy in percent over the answers given (as LLaVA does), and over all questions."""
        ocr = sum(
            OCR_LINE in str(record.get("prompt", "")) or str(record.get("prompt", "")).startswith("OCR tokens: ")
            for record in answers.values()
        )
        with_ocr = "with" if 2 * ocr > len(answers) else "without"
        protocol = f"val 0.5.1, {with_ocr} OCR tokens in the prompt, mean over leave-one-out annotators, EvalAI normalisation"
        score = Score(self.name, None, "% soft accuracy", protocol, num_answered=len(answers))
        path = self.annotations.find(data)
        if path is None:
            score.notes.append(self.annotations.message(data))
            return score
        try:
            records = read_json(path)["data"]
            keys = [f"{record['image_id']}#{record['question'].lower()}" for record in records]
            references = {key: record["answers"] for key, record in zip(keys, records, strict=True)}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not the annotation file of TextVQA ({error!r}); {SOURCE}") from error
        count_answers_(score, answers, references, where=str(path))
        times = Counter(keys)  # a question that two annotators happened to ask counts twice, as it is asked twice by LLaVA
        values = {
            key: soft_accuracy(normalize_answer(record["text"]), [normalize_answer(str(text)) for text in references[key]])
            for key, record in answers.items()
            if key in references
        }
        total = sum(times[key] * value for key, value in values.items())
        score.headline = percent(total, sum(times[key] for key in values))
        score.values = {
            "accuracy": score.headline,
            "answers_with_ocr_tokens": ocr,
            "strict": {"accuracy": percent(total, len(keys)), "rule": "a question without an answer scores 0"},
        }
        score.files["textvqa.json"] = result_text({"accuracy": score.headline})
        return score
