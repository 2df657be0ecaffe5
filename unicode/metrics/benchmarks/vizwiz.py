"""VizWiz: questions of blind people about their own photographs. The test answers lie on a server; val can be scored here."""

import json
from pathlib import Path
from typing import Any

from unicode.common.records import read_json
from unicode.metrics.benchmarks.answer_text import normalize_answer, score_val
from unicode.metrics.benchmarks.answers import check_prompts, count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Question, Score
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import EVAL_ARCHIVE, SHORT_ANSWER, QuestionLines, check_split

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
VAL_SOURCE = "download the annotations (val.json) and val images of VizWiz-VQA from vizwiz.org and unpack them there"


class Vizwiz(QuestionLines):
    """The description of VizWiz."""

    name = "vizwiz"
    title = "VizWiz"
    published = published_scores("vizwiz")
    questions = NeededFile("vizwiz/llava_test.jsonl", EVAL_ARCHIVE, to_score=True)
    images = NeededFile("vizwiz/test", "download the test images of VizWiz-VQA from vizwiz.org and unpack them there")
    val_annotations = NeededFile("vizwiz/val.json", VAL_SOURCE, to_score=True)
    val_images = NeededFile("vizwiz/val", VAL_SOURCE)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions and images; the official annotations of the val split."""
        return [self.val_annotations, self.val_images] if check_split(self.name, options) == "val" else [self.questions, self.images]

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return LLaVA's test questions, or those of val.json with LLaVA's suffix; an id of val is the name of its image."""
        if check_split(self.name, options) == "":
            return super().read_questions(data, options)
        path = self.val_annotations.require(data)
        try:
            return [
                Question(
                    record["image"],
                    text := f"{record['question']}\n{UNANSWERABLE}\n{SHORT_ANSWER}",
                    record["image"],
                    image=record["image"],
                    prompt=text,
                )
                for record in read_json(path)
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not an annotation file of VizWiz-VQA ({error!r}); {VAL_SOURCE}") from error

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return the upload of the test split (challenge 2185 of EvalAI), or soft accuracy on val."""
        if check_split(self.name, options) == "val":
            return score_val(self.name, data, self.val_annotations, answers, by_key=_by_image)
        return self._score_test(data, answers, options)

    def _score_test(self, data: Path, answers: Answers, options: Options) -> Score:
        score = Score(self.name, None, "% soft accuracy", "submission file, answers normalised as EvalAI does", num_answered=len(answers))
        score.notes.append("only the server knows the answers: upload vizwiz_upload.json to challenge 2185 of EvalAI")
        path = self.questions.find(data)
        if path is None:
            score.notes.append(f"no submission file: {self.questions.message(data)}")
            return score
        questions = self.read_questions(data, options)
        count_answers_(score, answers, {question.key for question in questions}, where=str(path))
        check_prompts(answers, questions, where=str(path))
        texts = {key: normalize_answer(record["text"]) for key, record in answers.items()}
        upload = [{"image": question.image, "answer": texts.get(question.key, "")} for question in questions]
        score.values["uploaded"] = len(upload)
        score.files["vizwiz_upload.json"] = json.dumps(upload)
        return score


def _by_image(content: Any) -> dict[str, Any]:
    return {record["image"]: record for record in content}
