"""MM-Vet: open questions that need several abilities at once; graded by GPT-4 in the official notebook, not here."""

import json
from pathlib import Path

from unicode.metrics.benchmarks.answers import check_prompts, count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Score
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import EVAL_ARCHIVE, LONG_TOKENS, QuestionLines


class Mmvet(QuestionLines):
    """The description of MM-Vet."""

    name = "mmvet"
    title = "MM-Vet"
    max_new_tokens = LONG_TOKENS
    published = published_scores("mmvet")
    questions = NeededFile("mm-vet/llava-mm-vet.jsonl", EVAL_ARCHIVE, to_score=True)
    images = NeededFile("mm-vet/images", "download mm-vet.zip (release v1 of yuweihao/MM-Vet) and put its images there")

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions and images."""
        return [self.questions, self.images]

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return the file for the official grader: {"v1_<question_id>": answer}."""
        score = Score(self.name, None, "points of 100, GPT-4 as grader", "answers for the official grader", num_answered=len(answers))
        score.notes.append("grade mm-vet.json with the notebook or the Space of MM-Vet (yuweihao/MM-Vet)")
        path = self.questions.find(data)
        known = list(answers)
        if path is None:
            score.notes.append(self.questions.message(data))
        else:
            questions = self.read_questions(data, options)
            known = [question.key for question in questions]
            count_answers_(score, answers, known, where=str(path))
            check_prompts(answers, questions, where=str(path))
        results = {f"v1_{answers[key]['question_id']}": answers[key]["text"] for key in known if key in answers}
        score.files["mm-vet.json"] = json.dumps(results, indent=2)
        return score
