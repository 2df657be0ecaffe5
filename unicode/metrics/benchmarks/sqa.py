"""ScienceQA: multiple choice from school books, test split; the number people quote is over the questions with an image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicode.common.records import read_json
from unicode.metrics.benchmarks.answers import check_prompts, count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Question, Score, result_text
from unicode.metrics.benchmarks.letters import FAILED, letter_in_any_form, scienceqa_letter
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import EVAL_ARCHIVE, LONG_TOKENS, OPTION_LETTER, id_key
from unicode.metrics.benchmarks.rates import rounded, share_true

LETTERS = "ABCDE"
SOURCE = "download data/scienceqa of the repository lupantech/ScienceQA"


class Sqa:
    """The description of ScienceQA."""

    name = "sqa"
    title = "ScienceQA-IMG"
    max_new_tokens = LONG_TOKENS
    published = published_scores("sqa")
    questions = NeededFile("scienceqa/llava_test_CQM-A.json", EVAL_ARCHIVE)
    images = NeededFile("scienceqa/images/test", "download the test images of ScienceQA (see its repository lupantech/ScienceQA)")
    problems = NeededFile("scienceqa/problems.json", SOURCE, to_ask=False, to_score=True)
    splits = NeededFile("scienceqa/pid_splits.json", SOURCE, to_ask=False, to_score=True)

    def image_folder(self, options: Options) -> str:
        """Where the images lie below the data folder."""
        return "scienceqa/images/test"

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, images, and the problems, which hold the answers."""
        return [self.questions, self.images, self.problems, self.splits]

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Key of the question that an answer record belongs to."""
        return id_key(record)

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return the first turn of each conversation; about half of them have no image."""
        path = self.questions.require(data)
        questions: dict[str, Question] = {}
        for number, record in enumerate(read_json(path), 1):
            try:
                stem = record["conversations"][0]["value"].replace("<image>", "").strip()
                text, image = f"{stem}\n{OPTION_LETTER}", record.get("image") or ""
                key = str(record["id"])
                prompt = f"<image>\n{text}" if image else text
                question = Question(record["id"], text, key, image=image, prompt=prompt)
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise ValueError(
                    f'{path}, record {number} is not {{"id", "conversations", "image"}} ({error!r}); {EVAL_ARCHIVE}'
                ) from error
            if questions.setdefault(key, question) != question:
                raise ValueError(f"{path}, record {number} has the id {key} of an earlier question; ids must be unique")
        return list(questions.values())

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return accuracy over all test ids and over the answers whose recorded prompt has an image (the headline), in percent."""
        protocol = "test ids; letter alone, 'B. ...' or one 'The answer is C.' (LLaVA, no random guess); accuracy of prompts with <image>"
        score = Score(self.name, None, "% of questions with image", protocol, num_answered=len(answers))
        missing = [file.message(data) for file in (self.problems, self.splits) if file.find(data) is None]
        if missing:
            score.notes += missing
            return score
        try:
            test_ids = [str(name) for name in read_json(self.splits.require(data))["test"]]
            problems = {name: problem for name, problem in read_json(self.problems.require(data)).items() if name in set(test_ids)}
            gold = {name: LETTERS[problems[name]["answer"]] for name in test_ids}
            letters = {name: LETTERS[: len(problems[name]["choices"])] for name in test_ids}
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{self.problems.find(data)} and pid_splits.json do not belong together ({error!r}); {SOURCE}") from error
        count_answers_(score, answers, gold, where=str(self.splits.find(data)))
        path = self.questions.find(data)
        if path is not None:
            check_prompts(answers, self.read_questions(data, options), where=str(path))
        with_image = {key for key, record in answers.items() if key in gold and "<image>" in str(record.get("prompt", ""))}
        parsed = {key: scienceqa_letter(answers[key]["text"], LETTERS) if key in answers else FAILED for key in gold}
        relaxed = {key: letter_in_any_form(answers[key]["text"], letters[key]) if key in answers else None for key in gold}
        score.num_unparsed = sum(parsed[key] == FAILED for key in answers if key in gold)
        score.values = {**_rates(parsed, gold, with_image), "letter_in_any_form": _rates(relaxed, gold, with_image)}
        score.headline = score.values["img_accuracy"]
        if not with_image:
            score.notes.append("no answer has <image> in its recorded prompt, so there is no accuracy over questions with image")
        printed = {name: score.values[name] for name in ("total", "correct")}
        score.files["sqa.json"] = result_text(
            {**printed, "accuracy": rounded(score.values["accuracy"]), "img_accuracy": rounded(score.values["img_accuracy"])}
        )
        return score


def _rates(letters: Mapping[str, str | None], gold: Mapping[str, str], with_image: set[str]) -> dict[str, Any]:
    """A letter beyond the choices of its question is simply not the gold one. Missing answers count in `total`, not in `img_total`."""
    right = {key: letters[key] == letter for key, letter in gold.items()}
    return {
        "total": len(gold),
        "correct": sum(right.values()),
        "accuracy": share_true(right.values()),
        "img_total": len(with_image),
        "img_correct": sum(right[key] for key in with_image),
        "img_accuracy": share_true(right[key] for key in with_image),
    }
