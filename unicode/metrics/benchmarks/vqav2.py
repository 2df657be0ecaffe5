"""VQAv2: open questions about COCO pictures. The test answers lie on a server; the val split can be scored here."""

import json
from pathlib import Path
from typing import Any

from unicode.common.records import read_json
from unicode.metrics.benchmarks.answer_text import normalize_answer, score_val
from unicode.metrics.benchmarks.answers import check_prompts, count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Question, Score
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import EVAL_ARCHIVE, SHORT_ANSWER, QuestionLines, check_split, known_questions

VAL_SOURCE = "download the val questions and annotations of VQA v2 from visualqa.org and unpack them there"


class Vqav2(QuestionLines):
    """The description of VQAv2."""

    name = "vqav2"
    title = "VQAv2"
    published = published_scores("vqav2")
    questions = NeededFile("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", EVAL_ARCHIVE)
    images = NeededFile("vqav2/test2015", "download COCO's test2015 images")
    upload_ids = NeededFile("vqav2/llava_vqav2_mscoco_test2015.jsonl", EVAL_ARCHIVE, to_ask=False, to_score=True)
    val_questions = NeededFile("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", VAL_SOURCE)
    val_images = NeededFile("vqav2/val2014", "download COCO's val2014 images")
    val_annotations = NeededFile("vqav2/v2_mscoco_val2014_annotations.json", VAL_SOURCE, to_ask=False, to_score=True)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, images and the ids of the upload; the official files of the val split."""
        if check_split(self.name, options) == "val":
            return [self.val_questions, self.val_images, self.val_annotations]
        return [self.questions, self.images, self.upload_ids]

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return LLaVA's test-dev questions, or those of the official val file with LLaVA's suffix."""
        if check_split(self.name, options) == "":
            return super().read_questions(data, options)
        path = self.val_questions.require(data)
        try:
            return [
                Question(
                    record["question_id"],
                    text := f"{record['question']}\n{SHORT_ANSWER}",
                    str(record["question_id"]),
                    image=f"COCO_val2014_{int(record['image_id']):012d}.jpg",
                    prompt=text,
                )
                for record in read_json(path)["questions"]
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the official question file of VQA v2 ({error!r}); {VAL_SOURCE}") from error

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return the upload of the test split (challenge 830 of EvalAI), or soft accuracy on val."""
        if check_split(self.name, options) == "val":
            return score_val(self.name, data, self.val_annotations, answers, by_key=_by_id)
        return self._score_test(data, answers)

    def _score_test(self, data: Path, answers: Answers) -> Score:
        score = Score(self.name, None, "% soft accuracy", "submission file, answers normalised as EvalAI does", num_answered=len(answers))
        score.notes.append("only the server knows the answers: upload vqav2_upload.json to challenge 830 of EvalAI, phase test-dev")
        asked = known_questions(data, self.questions, self.key_of)
        if asked is not None:
            check_prompts(answers, asked.values(), where=str(self.questions.find(data)))
        listed = known_questions(data, self.upload_ids, self.key_of)
        if listed is None:
            score.notes.append(f"no submission file: {self.upload_ids.message(data)}")
            if asked is not None:
                count_answers_(score, answers, asked, where=str(self.questions.find(data)))
            return score
        expected = listed if asked is None else asked
        count_answers_(score, answers, expected, where=str((self.upload_ids if asked is None else self.questions).find(data)))
        texts = {key: normalize_answer(record["text"]) for key, record in answers.items()}
        upload = [{"question_id": question.id, "answer": texts.get(key, "")} for key, question in listed.items()]
        score.values["uploaded"] = len(upload)
        score.files["vqav2_upload.json"] = json.dumps(upload)
        return score


def _by_id(content: Any) -> dict[str, Any]:
    return {str(record["question_id"]): record for record in content["annotations"]}
