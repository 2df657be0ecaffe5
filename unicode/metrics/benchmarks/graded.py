"""LLaVA-Bench and MM-Vet: open questions, graded by a chat model behind an OpenAI-compatible endpoint."""

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unicode.common.extras import require
from unicode.common.files import open_append, read_damaged_jsonl, read_json, read_jsonl
from unicode.common.logging import get_logger
from unicode.metrics.benchmarks.base import DATA, Answers, Benchmark, Options, Score, expect, json_lines, percent, rounded

log = get_logger(__name__)

SYSTEM_PROMPT = "You are a helpful and precise assistant for checking the quality of the answer."
"""The system line that LLaVA's reviews were made with."""
Pair = tuple[float, float]  # Scores of (reference, candidate)


@dataclass(frozen=True)
class Rule:
    """How answers of one category are graded: the word for an answerer, and the task of the grader."""

    role: str
    prompt: str


DEFAULT_RULES: Mapping[str, Rule] = {
    name: Rule("Assistant", f"{task} {DATA['grading_request']}") for name, task in DATA["grading_tasks"].items()
}
"""Our wording of the three rules, used where LLaVA's rule.json is not in the data folder."""


def grading_prompt(*, context: str, question: str, reference: str, candidate: str, rule: Rule) -> str:
    """Return the text that the grader reads, block by block in LLaVA's order."""
    blocks = [f"[Context]\n{context}", f"[Question]\n{question}"]
    for number, answer in enumerate((reference, candidate), 1):
        blocks.append(f"[{rule.role} {number}]\n{answer}\n\n[End of {rule.role} {number}]")
    return "\n\n".join([*blocks, f"[System]\n{rule.prompt}\n\n"])


@dataclass(frozen=True)
class Review:
    """The grader's reply to one question."""

    key: str
    category: str
    reply: str

    @property
    def pair(self) -> Pair | None:
        """The two numbers of the first line ("8 7", "8,7", "8, 7"), or None for anything else."""
        pair = _two_numbers(self.reply.split("\n")[0].replace(",", " ").split())
        return pair if pair is not None and all(map(math.isfinite, pair)) else None

    @property
    def llava_pair(self) -> Pair:
        """The same as LLaVA's script reads it: "8, 7" makes three words there, and a line that is not two numbers counts -1 and -1."""
        return _two_numbers(self.reply.split("\n")[0].replace(",", " ").split(" ")) or (-1.0, -1.0)


def _two_numbers(words: Sequence[str]) -> Pair | None:
    try:
        first, second = (float(word) for word in words)
    except ValueError:
        return None
    return first, second


def grade_all(
    prompts: Mapping[str, tuple[str, str]], grade: Callable[[str], str], *, workers: int = 1
) -> tuple[list[Review], ConnectionError | None]:
    """Send {key: (category, prompt)} to the grader; return the reviews in that order and the error that stopped it, if any.

    After an error nothing more is sent.
    """
    error: ConnectionError | None = None
    reviews: list[Review] = []
    waiting = iter(prompts.items())
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while error is None and (batch := list(islice(waiting, max(1, workers)))):
            futures = [(key, category, pool.submit(grade, prompt)) for key, (category, prompt) in batch]
            for key, category, future in futures:
                try:
                    reviews.append(Review(key, category, future.result()))
                except ConnectionError as failure:
                    error = failure
    return reviews, error


def summarize(reviews: Iterable[Review]) -> dict[str, dict[str, Any]]:
    """Return per category, and for "all", the relative score in percent and ten times the mean scores; unparsed replies are left out."""
    means = _mean_scores((review.category, review.pair) for review in reviews)
    return {
        name: {"relative": percent(own, gold), "reference_x10": 10 * gold, "candidate_x10": 10 * own, "reviews": number}
        for name, (gold, own, number) in means.items()
    }


def summarize_as_llava(reviews: Iterable[Review]) -> dict[str, float | None]:
    """Return the relative score per category as LLaVA's summary prints it (see `Review.llava_pair`)."""
    values = {}
    for name, (reference, candidate, _) in _mean_scores((review.category, review.llava_pair) for review in reviews).items():
        values[name] = rounded(percent(round(candidate, 3), round(reference, 3)), 1)
    return values


def _mean_scores(pairs: Iterable[tuple[str, Pair | None]]) -> dict[str, tuple[float, float, int]]:
    """Mean scores of reference and candidate and their number by category and for "all", in sorted order; 0 for an empty group."""
    groups: dict[str, list[Pair]] = {"all": []}
    for category, pair in pairs:
        if pair is not None:
            groups["all"].append(pair)
            groups.setdefault(category, []).append(pair)
    sums = {name: (sum(pair[0] for pair in some), sum(pair[1] for pair in some), len(some)) for name, some in sorted(groups.items())}
    return {name: (gold / max(1, number), own / max(1, number), number) for name, (gold, own, number) in sums.items()}


URL_VARIABLE, KEY_VARIABLE, MODEL_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY", "JUDGE_MODEL"
PRICE_VARIABLES = ("JUDGE_PRICE_IN", "JUDGE_PRICE_OUT")
LOCAL_HOSTS = frozenset({"localhost", "::1"})
CHARS_PER_TOKEN, MAX_TOKENS = 4, 1024


class GraderError(ConnectionError):
    """The grader cannot be reached or refuses; the replies before it are kept."""


@dataclass
class Grader:
    """Callable: prompt -> reply of a chat model, asked with the openai client. Safe to call from several threads.

    Every reply is kept in a file, and a prompt whose reply is there is not sent again. A redirect is an error, so that the key
    reaches no other host.
    """

    base_url: str  # up to /v1
    model: str
    cache: Path  # JSON Lines file of replies; made when needed
    key: str = field(default="", repr=False)
    prices: tuple[float, float] | None = None  # per million tokens of prompts, of replies
    attempts: int = 5
    _replies: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the address and read the replies that are there; a line that a killed run left half written is skipped.

        Raises ValueError: the address is not http(s), no model is named, or the package openai is missing.
        """
        address = urlsplit(self.base_url)
        self._shown_url = address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="").geturl()
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"the grader's address is {self._shown_url!r}; set {URL_VARIABLE} to the http(s) address of an endpoint, up to /v1"
            )
        if not self.model:
            raise ValueError(f"which model is the grader? Set {MODEL_VARIABLE}; it is part of the score's name")
        require("openai", extra="judge")
        host = address.hostname or ""
        if self.base_url.startswith("http://") and host not in LOCAL_HOSTS and not host.startswith("127."):
            log.warning("%s is not encrypted: the key and the answers can be read on the way; use https://", self._shown_url)
        for _, record in read_damaged_jsonl(self.cache):
            with suppress(KeyError, TypeError):
                self._replies[record["request"]] = record["reply"]

    @classmethod
    def from_environment(cls, cache: Path, *, model: str = "") -> "Grader | None":
        """Return the grader that the environment names, or None where `OPENAI_BASE_URL` is not set.

        Raises ValueError: no model, or a price that is no number.
        """
        base_url = os.environ.get(URL_VARIABLE, "")
        if not base_url:
            return None
        prices = [os.environ.get(name, "") for name in PRICE_VARIABLES]
        try:
            pair = (float(prices[0]), float(prices[1])) if all(prices) else None
        except ValueError:
            raise ValueError(f"{' and '.join(PRICE_VARIABLES)} are {prices}; expected prices per million tokens, as 2.5 and 10") from None
        key = os.environ.get(KEY_VARIABLE, "")
        return cls(base_url, model or os.environ.get(MODEL_VARIABLE, ""), cache, key=key, prices=pair)

    def __call__(self, prompt: str) -> str:
        """Return the kept reply, or ask. GraderError if the endpoint refuses or cannot be reached after all attempts."""
        request = self._request(prompt)
        name = _digest(request)
        if name not in self._replies:
            reply = self._ask(request)
            with self._lock, open_append(self.cache) as file:
                self._replies[name] = reply
                file.write(json.dumps({"request": name, "model": self.model, "reply": reply}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return self._replies[name]

    def describe_cost(self, prompts: Iterable[str]) -> str:
        """Return in one line the highest cost of these prompts, before anything is sent; a token counts four characters."""
        listed = list(prompts)
        new = [prompt for prompt in listed if _digest(self._request(prompt)) not in self._replies]
        tokens_in = sum(len(prompt) + len(SYSTEM_PROMPT) for prompt in new) // CHARS_PER_TOKEN
        tokens_out = len(new) * MAX_TOKENS
        price = f"prices unknown ({' and '.join(PRICE_VARIABLES)} per million tokens)"
        if self.prices is not None:
            price = f"at most {(tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6:.2f}"
        return (
            f"{len(new)} requests to the grader ({len(listed) - len(new)} replies are there already), about {tokens_in} tokens of "
            f"prompts and at most {tokens_out} of replies: {price}"
        )

    def _request(self, prompt: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, "temperature": 0.2, "max_tokens": MAX_TOKENS}

    @cached_property
    def _client(self) -> Any:
        """The openai client, which tries again after errors that may pass."""
        import openai

        return openai.OpenAI(
            base_url=self.base_url,
            api_key=self.key or "none",
            max_retries=self.attempts - 1,
            timeout=120.0,  # seconds per request
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )

    def _ask(self, request: dict[str, Any]) -> str:
        """Return the reply of the endpoint; what is no chat completion, as a proxy's page, is asked for again."""
        import openai

        headers = {} if self.key else {"Authorization": openai.Omit()}  # a local server needs no key
        why = ""
        try:
            for _ in range(self.attempts):
                completion = self._client.chat.completions.create(**request, extra_headers=headers)
                with suppress(AttributeError, IndexError, TypeError):  # the client passes on what has another form
                    if isinstance(text := completion.choices[0].message.content, str):
                        return text
                why = f"not a chat completion: {self._shown(str(completion))}"
        except openai.APIStatusError as error:
            why = f"HTTP {error.status_code}: {self._shown(error.response.text)}"
            if error.status_code < 500 and error.status_code not in (408, 409, 429):
                raise GraderError(
                    f"the grader at {self._shown_url} refused model {self.model!r}: {why}; check {KEY_VARIABLE} and {MODEL_VARIABLE}"
                ) from error
        except openai.APIError as error:
            why = self._shown(str(error.__cause__ or error))
        raise GraderError(
            f"the grader at {self._shown_url} did not answer in {self.attempts} attempts, at last: {why}; "
            f"check {URL_VARIABLE} and run the same command again, replies that came are kept in {self.cache}"
        )

    def _shown(self, text: str) -> str:
        """Return the beginning of a text without the key."""
        return (text.replace(self.key, "***") if self.key else text)[:300]


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class Mmvet(Benchmark):
    """MM-Vet: a file for the official grader, {"v1_<question_id>": answer}."""

    name = "mmvet"

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        score.notes.append("grade mm-vet.json with the notebook or the Space of MM-Vet (yuweihao/MM-Vet)")
        score.note_missing_(data, self.files["questions"])
        questions = self._match_questions(data, answers, options)
        if questions is not None:
            score.count_answers_(answers, questions, where=self.files["questions"].find(data))
        known = answers if questions is None else questions
        results = {f"v1_{answers[key]['question_id']}": answers[key]["text"] for key in known if key in answers}
        score.files["mm-vet.json"] = json.dumps(results, indent=2)


LLAVABENCH_SOURCE = DATA["sources"]["llavabench"]
SET_GRADER = "no grader: set OPENAI_BASE_URL (any OpenAI-compatible endpoint, up to /v1), JUDGE_MODEL and, if it wants one, OPENAI_API_KEY"


class Llavabench(Benchmark):
    """LLaVA-Bench (in the wild): 100 * mean score of the candidate / mean score of the reference, per category and for all (the headline).

    Without a grader, or where it fails on the way, there is no headline.
    """

    name = "llavabench"

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        rules, rules_name = self._read_rules(data)
        score.unit = self.unit.format(grader=options.grader_name or "none")
        score.protocol = self.protocol.format(grader=options.grader_name or "a judge", rules=rules_name)
        if score.note_missing_(data, self.files["questions"], self.files["context"], self.files["references"]):
            return
        questions = self._match_questions(data, answers, options)
        assert questions is not None
        score.count_answers_(answers, questions, where=self.files["questions"].find(data))
        prompts = self.grading_prompts(data, answers, rules)
        score.values["requests"] = len(prompts)
        if options.grade is None:
            score.notes.append(SET_GRADER)
            return
        reviews, error = grade_all(prompts, options.grade, workers=options.grader_workers)
        score.num_unparsed = sum(review.pair is None for review in reviews)
        score.files["reviews.jsonl"] = json_lines(
            {"id": at, "question_id": one.key, "category": f"llava_bench_{one.category}", "content": one.reply, "tuple": one.pair}
            for at, one in enumerate(reviews, 1)
        )
        score.values |= {"judged": len(reviews), **summarize(reviews), "llava_minus_one": summarize_as_llava(reviews)}
        if score.num_unparsed:
            score.notes.append(f"{score.num_unparsed} of {len(reviews)} replies have no two scores in their first line; see reviews.jsonl")
        if error is not None:
            score.notes.append(f"the grader stopped after {len(reviews)} of {len(prompts)} questions: {error}")
        else:
            score.headline = score.values["all"]["relative"]

    def grading_prompts(self, data: Path, answers: Answers, rules: Mapping[str, Rule] | None = None) -> dict[str, tuple[str, str]]:
        """Return {key: (category, the grader's prompt)} of the answered questions, for `Grader.describe_cost` and for grading.

        Raises ValueError: a question has no reference answer, no description of its image, or a category without a rule.
        """
        rules = self._read_rules(data)[0] if rules is None else rules
        captions = {record["image"]: record["caption"] for record in _read(self.files["context"].require(data), ("image", "caption"))}
        context = {image: "\n".join(lines) if isinstance(lines, list) else str(lines) for image, lines in captions.items()}
        references = {
            str(record["question_id"]): record["text"] for record in _read(self.files["references"].require(data), ("question_id", "text"))
        }
        path = self.files["questions"].find(data)
        prompts = {}
        for question in self.read_questions(data, Options()):
            if question.key not in answers:
                continue
            category = str(question.fields.get("category", ""))
            needed = {"reference answer": (question.key, references), "context": (question.image, context), "rule": (category, rules)}
            for what, (name, table) in needed.items():
                if name not in table:
                    raise ValueError(f"question {question.id} of {path} has no {what}: {name!r} is not there; {LLAVABENCH_SOURCE}")
            prompt = grading_prompt(
                context=context[question.image],
                question=question.text,
                reference=references[question.key],
                candidate=answers[question.key]["text"],
                rule=rules[category],
            )
            prompts[question.key] = (category, prompt)
        return prompts

    def _read_rules(self, data: Path) -> tuple[Mapping[str, Rule], str]:
        path = self.files["rules"].find(data)
        if path is None:
            return DEFAULT_RULES, "our wording of the rules"
        with expect(f"{path} has not the three llava_bench rules with role and prompt", f"remove it or take {self.files['rules'].source}"):
            content = read_json(path)
            return {name: Rule(**content[f"llava_bench_{name}"]) for name in DEFAULT_RULES}, "LLaVA's rule.json"


def _read(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    records = list(read_jsonl(path))
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or any(name not in record for name in fields):
            raise ValueError(f"{path}, record {number} has no {' and '.join(fields)}; {LLAVABENCH_SOURCE}")
    return records
