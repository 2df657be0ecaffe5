"""LLaVA-Bench (in the wild): open questions about 24 pictures; a judge compares each answer with a reference."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicode.common.records import read_json, read_jsonl
from unicode.metrics.benchmarks.answers import check_prompts, count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Score, json_lines
from unicode.metrics.benchmarks.judge import DEFAULT_RULES, Review, Rule, ask_judge, judge_prompt, summarize, summarize_as_llava
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import LONG_TOKENS, QuestionLines

FOLDER = "llava-bench-in-the-wild"
SOURCE = "download the data set liuhaotian/llava-bench-in-the-wild and put its files there"
SET_JUDGE = "no judge: set OPENAI_BASE_URL (any OpenAI-compatible endpoint, up to /v1), JUDGE_MODEL and, if it wants one, OPENAI_API_KEY"


class Llavabench(QuestionLines):
    """The description of LLaVA-Bench (in the wild)."""

    name = "llavabench"
    title = "LLaVA-Bench (in the wild)"
    max_new_tokens = LONG_TOKENS
    published = published_scores("llavabench")
    questions = NeededFile(f"{FOLDER}/questions.jsonl", SOURCE, to_score=True)
    images = NeededFile(f"{FOLDER}/images", SOURCE)
    context = NeededFile(f"{FOLDER}/context.jsonl", SOURCE, to_ask=False, to_score=True)
    references = NeededFile(f"{FOLDER}/answers_gpt4.jsonl", SOURCE, to_ask=False, to_score=True)
    rules = NeededFile(f"{FOLDER}/rule.json", "llava/eval/table/rule.json of haotian-liu/LLaVA", to_ask=False)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, images, and what the judge reads beside them; LLaVA's rule.json is optional."""
        return [self.questions, self.images, self.context, self.references, self.rules]

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return 100 * mean score of the candidate / mean score of the reference, per category and for all (the headline).

        Without a judge there is no headline. If the judge fails on the way, neither: the replies that came are kept by it.
        """
        rules, rules_name = self._read_rules(data)
        judge = options.judge_name or "a judge"
        protocol = f"judged by {judge} with {rules_name}, replies without two scores left out"
        score = Score(self.name, None, f"% of the reference, judge {options.judge_name or 'none'}", protocol, num_answered=len(answers))
        missing = [file.message(data) for file in (self.questions, self.context, self.references) if file.find(data) is None]
        if missing:
            score.notes += missing
            return score
        questions = self.read_questions(data, options)
        where = str(self.questions.find(data))
        count_answers_(score, answers, {question.key for question in questions}, where=where)
        check_prompts(answers, questions, where=where)
        prompts = self.judge_prompts(data, answers, rules)
        score.values["requests"] = len(prompts)
        if options.ask is None:
            score.notes.append(SET_JUDGE)
            return score
        reviews, error = ask_judge(prompts, options.ask, workers=options.judge_workers)
        judged = [review for review in reviews if review.reply is not None]
        score.num_unparsed = sum(review.pair is None for review in judged)
        score.files["reviews.jsonl"] = json_lines([_review_line(number, review) for number, review in enumerate(judged, 1)])
        score.values |= {"judged": len(judged), **summarize(judged), "llava_minus_one": summarize_as_llava(judged)}
        if score.num_unparsed:
            score.notes.append(f"{score.num_unparsed} of {len(judged)} replies have no two scores in their first line; see reviews.jsonl")
        if error is not None:
            score.notes.append(f"the judge stopped after {len(judged)} of {len(reviews)} questions: {error}")
        else:
            score.headline = score.values["all"]["relative"]
        return score

    def judge_prompts(self, data: Path, answers: Answers, rules: Mapping[str, Rule] | None = None) -> dict[str, tuple[str, str]]:
        """Return {key: (category, the judge's prompt)} of the answered questions, for `Endpoint.estimate` and for asking.

        Raises:
            ValueError: a question has no reference answer, no description of its image, or a category without a rule.
        """
        rules = self._read_rules(data)[0] if rules is None else rules
        context = {record["image"]: _caption(record) for record in _read(self.context.require(data), ("image", "caption"))}
        references = {
            str(record["question_id"]): record["text"] for record in _read(self.references.require(data), ("question_id", "text"))
        }
        prompts = {}
        for question in self.read_questions(data, Options()):
            if question.key not in answers:
                continue
            category = str(question.fields.get("category", ""))
            for what, name, table in (
                ("reference answer", question.key, references),
                ("context", question.image, context),
                ("rule", category, rules),
            ):
                if name not in table:
                    raise ValueError(
                        f"question {question.id} of {self.questions.find(data)} has no {what}: {name!r} is not there; {SOURCE}"
                    )
            prompts[question.key] = (
                category,
                judge_prompt(
                    context=context[question.image],
                    question=question.text,
                    reference=references[question.key],
                    candidate=answers[question.key]["text"],
                    rule=rules[category],
                ),
            )
        return prompts

    def _read_rules(self, data: Path) -> tuple[Mapping[str, Rule], str]:
        path = self.rules.find(data)
        if path is None:
            return DEFAULT_RULES, "our wording of the rules"
        try:
            content = read_json(path)
            return {name: Rule(**content[f"llava_bench_{name}"]) for name in DEFAULT_RULES}, "LLaVA's rule.json"
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} has not the three llava_bench rules with role and prompt ({error!r}); remove it or take {self.rules.source}"
            ) from error


def _caption(record: Mapping[str, Any]) -> str:
    caption = record["caption"]
    return "\n".join(caption) if isinstance(caption, list) else str(caption)


def _read(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    records = list(read_jsonl(path))
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or any(name not in record for name in fields):
            raise ValueError(f"{path}, record {number} has no {' and '.join(fields)}; {SOURCE}")
    return records


def _review_line(number: int, review: Review) -> dict[str, Any]:
    pair = None if review.pair is None else list(review.pair)
    return {"id": number, "question_id": review.key, "category": f"llava_bench_{review.category}", "content": review.reply, "tuple": pair}
