"""SEED-Bench: multiple choice about pictures and about the middle frames of videos, twelve types of questions."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unicode.common.records import read_json
from unicode.metrics.benchmarks.answers import check_prompts, count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Score, json_lines, result_text
from unicode.metrics.benchmarks.letters import letter_in_any_form
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import EVAL_ARCHIVE, QuestionLines, known_questions
from unicode.metrics.benchmarks.rates import rounded, share_true

LETTERS = "ABCD"
SOURCE = "download SEED-Bench.json of SEED-Bench (AILab-CVC/SEED-Bench, DATASET.md)"


class Seed(QuestionLines):
    """The description of SEED-Bench."""

    name = "seed"
    title = "SEED-Bench"
    published = published_scores("seed")
    questions = NeededFile(("seed_bench/llava-seed-bench.jsonl", "seed_bench/llava-seed-bench_1.jsonl"), EVAL_ARCHIVE)
    images = NeededFile("seed_bench", "put SEED-Bench-image and SEED-Bench-video-image (middle frames) there, see SEED-Bench's DATASET.md")
    gold = NeededFile("seed_bench/SEED-Bench.json", SOURCE, to_ask=False, to_score=True)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, images, and the official questions, which hold the answers."""
        return [self.questions, self.images, self.gold]

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return accuracy in percent in total (the headline), of pictures, of videos and per type; a missing answer is wrong."""
        score = Score(
            self.name, None, "% of pictures and videos", "the answer is exactly the gold letter, all questions", num_answered=len(answers)
        )
        asked = known_questions(data, self.questions, self.key_of)
        if asked is not None:
            check_prompts(answers, asked.values(), where=str(self.questions.find(data)))
        path = self.gold.find(data)
        if path is None:
            score.notes.append(self.gold.message(data))
            return score
        content = read_json(path)
        try:
            questions = {str(question["question_id"]): question for question in content["questions"]}
            names = {number: name for name, number in content["question_type"].items()}
            right = {key: key in answers and answers[key]["text"] == question["answer"] for key, question in questions.items()}
            relaxed = {
                key: key in answers and letter_in_any_form(answers[key]["text"], LETTERS) == question["answer"]
                for key, question in questions.items()
            }
            count_answers_(score, answers, questions, where=str(path))
            score.values = _rates(questions.values(), right, names)
            score.values["letter_in_any_form"] = _rates(questions.values(), relaxed, names)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not SEED-Bench.json of the first SEED-Bench ({error!r}); {SOURCE}") from error
        score.num_unparsed = sum(answers[key]["text"] not in tuple(LETTERS) for key in questions if key in answers)
        score.headline = score.values["total"]
        per_type = {name: rounded(value) for name, value in score.values["per_type"].items()}
        totals = {
            f"{name} accuracy": rounded(score.values[key]) for key, name in (("total", "Total"), ("image", "image"), ("video", "video"))
        }
        score.files["seed.json"] = result_text(per_type | totals)
        score.files["seed_upload.jsonl"] = json_lines(
            [
                {"question_id": question["question_id"], "prediction": answers.get(key, {}).get("text", "")}
                for key, question in questions.items()
            ]
        )
        return score


def _rates(questions: Iterable[Mapping[str, Any]], right: Mapping[str, bool], names: Mapping[int, str]) -> dict[str, Any]:
    listed = [(question, right[str(question["question_id"])]) for question in questions]
    types = sorted({question["question_type_id"] for question, _ in listed})
    return {
        "total": share_true(flag for _, flag in listed),
        "image": share_true(flag for question, flag in listed if question["data_type"] == "image"),
        "video": share_true(flag for question, flag in listed if question["data_type"] == "video"),
        "per_type": {names[kind]: share_true(flag for question, flag in listed if question["question_type_id"] == kind) for kind in types},
    }
