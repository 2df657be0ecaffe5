"""LLaVA-Bench and MM-Vet: open questions, graded by a chat model."""

import hashlib
import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from unicode.common.files import read_json, read_jsonl
from unicode.metrics.benchmarks.base import (
    EVAL_ARCHIVE,
    LONG_TOKENS,
    Answers,
    NeededFile,
    Options,
    QuestionLines,
    Score,
    check_prompts,
    count_answers_,
    json_lines,
    percent,
    published_scores,
)

SYSTEM_PROMPT = "You are a helpful and precise assistant for checking the quality of the answer."
"""The system line that LLaVA's reviews were made with."""
CATEGORIES = ("conv", "detail", "complex")
Pair = tuple[float, float]
"""Scores of (reference, candidate)."""


@dataclass(frozen=True)
class Rule:
    """How answers of one category are to be judged: what an answerer is called, and what the judge is told."""

    role: str
    prompt: str


@dataclass(frozen=True)
class Review:
    """What came back for one question. `reply` is None if the judge could not be asked, `pair` if the reply has no two scores."""

    key: str
    category: str
    reply: str | None
    pair: Pair | None


class JudgeError(ConnectionError):
    """The judge cannot be reached or refuses; what it said before is kept."""


_TASK = {
    "conv": "The user asks about a picture that you cannot see; the context above describes it in a few sentences.",
    "detail": "The user asks for a description of a picture that you cannot see; the context above says in a few sentences what is in it.",
    "complex": "The user asks a question about a picture that takes reasoning; you cannot see it, the context above describes it.",
}
_REQUEST = (
    "Two assistants have answered. Rate how helpful, relevant, accurate and detailed each answer is, with one number from 1 to 10 each, "
    "higher for the better answer.\nOn the first line write only these two numbers, for Assistant 1 and then for Assistant 2, with a space "
    "between them. From the second line on, explain your ratings; do not let the order of the answers or their length sway you."
)
DEFAULT_RULES: Mapping[str, Rule] = {name: Rule("Assistant", f"{_TASK[name]} {_REQUEST}") for name in CATEGORIES}
"""Our wording of the three rules, for who does not put LLaVA's rule.json into the data folder."""


def judge_prompt(*, context: str, question: str, reference: str, candidate: str, rule: Rule) -> str:
    """Return the text that the judge reads, block by block in LLaVA's order."""
    blocks = [f"[Context]\n{context}", f"[Question]\n{question}"]
    for number, answer in enumerate((reference, candidate), 1):
        blocks.append(f"[{rule.role} {number}]\n{answer}\n\n[End of {rule.role} {number}]")
    return "\n\n".join([*blocks, f"[System]\n{rule.prompt}\n\n"])


def parse_scores(reply: str) -> Pair | None:
    """Return the two numbers of the first line ("8 7", "8,7", "8, 7"), or None if that is not what it holds."""
    words = reply.split("\n")[0].replace(",", " ").split()
    try:
        first, second = (float(word) for word in words)
    except ValueError:
        return None
    return (first, second) if math.isfinite(first) and math.isfinite(second) else None


def ask_judge(
    prompts: Mapping[str, tuple[str, str]], ask: Callable[[str], str], *, workers: int = 1
) -> tuple[list[Review], ConnectionError | None]:
    """Put {key: (category, prompt)} to the judge; return the reviews in that order and the error that stopped it, if any.

    After an error nothing more is asked; questions that were not put have the reply None.
    """
    error: ConnectionError | None = None
    replies: dict[str, str] = {}
    waiting = iter(prompts.items())
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while error is None and (batch := list(islice(waiting, max(1, workers)))):
            futures = [(key, pool.submit(ask, prompt)) for key, (_, prompt) in batch]
            for key, future in futures:
                try:
                    replies[key] = future.result()
                except ConnectionError as failure:
                    error = failure
    return list(_reviews(prompts, replies)), error


def _reviews(prompts: Mapping[str, tuple[str, str]], replies: Mapping[str, str]) -> Iterator[Review]:
    for key, (category, _) in prompts.items():
        reply = replies.get(key)
        yield Review(key, category, reply, None if reply is None else parse_scores(reply))


def summarize(reviews: Sequence[Review]) -> dict[str, dict[str, Any]]:
    """Return per category, and for "all", the relative score in percent and ten times the mean scores; unparsed replies are left out."""
    groups = {"all": [review.pair for review in reviews if review.pair is not None]}
    for review in reviews:
        if review.pair is not None:
            groups.setdefault(review.category, []).append(review.pair)
    return {name: _relative(groups[name]) for name in sorted(groups)}


def summarize_as_llava(reviews: Sequence[Review]) -> dict[str, float | None]:
    """Return the relative score per category as LLaVA's summary prints it: a reply that is not exactly two numbers counts as -1 and -1."""
    groups: dict[str, list[Pair]] = {"all": []}
    for review in reviews:
        if review.reply is not None:
            pair = _llava_pair(review.reply)
            groups["all"].append(pair)
            groups.setdefault(review.category, []).append(pair)
    values = {}
    for name in sorted(groups):
        reference, candidate = (round(mean, 3) for mean in _means(groups[name]))
        relative = percent(candidate, reference)
        values[name] = None if relative is None else round(relative, 1)
    return values


def _llava_pair(reply: str) -> Pair:
    words = reply.split("\n")[0].replace(",", " ").split(" ")  # "8, 7" makes three words: one reason why replies get lost there
    try:
        first, second = (float(word) for word in words)
    except ValueError:
        return (-1.0, -1.0)
    return (first, second)


def _means(pairs: Iterable[Pair]) -> Pair:
    listed = list(pairs)
    count = max(1, len(listed))
    return sum(pair[0] for pair in listed) / count, sum(pair[1] for pair in listed) / count


def _relative(pairs: Sequence[Pair]) -> dict[str, Any]:
    reference, candidate = _means(pairs)
    return {
        "relative": percent(candidate, reference),
        "reference_x10": 10 * reference,
        "candidate_x10": 10 * candidate,
        "reviews": len(pairs),
    }


URL_VARIABLE, KEY_VARIABLE, MODEL_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY", "JUDGE_MODEL"
PRICE_VARIABLES = ("JUDGE_PRICE_IN", "JUDGE_PRICE_OUT")
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP answers that may be better the next time."""
CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class CostEstimate:
    """What asking would take, before anything is asked."""

    requests: int  # that are not in the cache yet
    cached: int
    prompt_tokens: int  # about, at four characters each
    reply_tokens: int  # at most
    price: float | None  # at most, in the currency of the prices given; None without prices

    def describe(self) -> str:
        """Say it in one line."""
        price = (
            f"prices unknown ({' and '.join(PRICE_VARIABLES)} per million tokens)" if self.price is None else f"at most {self.price:.2f}"
        )
        return (
            f"{self.requests} requests to the judge ({self.cached} replies are there already), about {self.prompt_tokens} tokens of "
            f"prompts and at most {self.reply_tokens} of replies: {price}"
        )


@dataclass
class Endpoint:
    """Callable: prompt -> reply. Safe to call from several threads."""

    base_url: str  # up to /v1; "/chat/completions" is appended
    model: str
    cache: Path  # JSON Lines file of replies; made when needed
    key: str = field(default="", repr=False)
    prices: tuple[float, float] | None = None  # per million tokens of prompts, of replies
    temperature: float = 0.2
    max_tokens: int = 1024
    timeout: float = 120.0  # seconds per request
    attempts: int = 5
    wait: float = 2.0  # seconds before the second attempt; doubles each time
    _replies: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the address and read the replies that are there; a line that a killed run left half written is passed over.

        Raises:
            ValueError: the address is not http(s), or no model is named.
        """
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"the judge's address is {self.base_url!r}; set {URL_VARIABLE} to the endpoint's http(s) address, up to /v1")
        if not self.model:
            raise ValueError(f"which model is the judge? Set {MODEL_VARIABLE}; it is part of the score's name")
        if self.cache.is_file():
            for line in self.cache.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    self._replies[record["request"]] = record["reply"]
                except (ValueError, KeyError, TypeError):
                    continue

    @classmethod
    def from_environment(cls, cache: Path, *, model: str = "") -> "Endpoint | None":
        """Return the endpoint that the environment names, or None where `OPENAI_BASE_URL` is not set.

        Raises:
            ValueError: no model, or a price that is no number.
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
        """Return the kept reply, or ask. JudgeError if the endpoint refuses or cannot be reached after all attempts."""
        body = self._body(prompt)
        name = _hash(body)
        with self._lock:
            if name in self._replies:
                return self._replies[name]
        reply = self._post(body)
        with self._lock:
            self._replies[name] = reply
            self._keep({"request": name, "model": self.model, "reply": reply})
        return reply

    def estimate(self, prompts: Iterable[str]) -> CostEstimate:
        """Return what asking these prompts would cost at most."""
        listed = list(prompts)
        new = [prompt for prompt in listed if _hash(self._body(prompt)) not in self._replies]
        tokens_in = sum(len(prompt) + len(SYSTEM_PROMPT) for prompt in new) // CHARS_PER_TOKEN
        tokens_out = len(new) * self.max_tokens
        price = None if self.prices is None else (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6
        return CostEstimate(len(new), len(listed) - len(new), tokens_in, tokens_out, price)

    def _body(self, prompt: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, "temperature": self.temperature, "max_tokens": self.max_tokens}

    def _keep(self, record: dict[str, str]) -> None:
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        with open(self.cache, "ab+") as file:
            if file.tell() and self._ends_open(file):
                file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _ends_open(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) != b"\n")

    def _post(self, body: dict[str, Any]) -> str:
        """Send one request, again and again while the failure may pass."""
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        why, pause = "", 0.0
        for attempt in range(self.attempts):
            time.sleep(pause)
            pause = self.wait * 2**attempt
            try:
                request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return _content(response.read())
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in PASSING:
                    raise JudgeError(
                        f"the judge at {url} refused model {self.model!r}: {why}; check {KEY_VARIABLE} and {MODEL_VARIABLE}"
                    ) from error
                pause = max(pause, _asked_pause(error))
            except (OSError, ValueError, http.client.HTTPException) as error:
                why = str(error)
        raise JudgeError(
            f"the judge at {url} did not answer in {self.attempts} attempts, at last: {why}; "
            f"check {URL_VARIABLE} and run the same command again, replies that came are kept in {self.cache}"
        )


def _asked_pause(error: urllib.error.HTTPError) -> float:
    """Return the seconds that an endpoint asks to wait, a minute at most."""
    seconds = error.headers.get("Retry-After", "")
    return min(60.0, float(seconds)) if seconds.isdigit() else 0.0


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _content(response: bytes) -> str:
    """Return the text of a chat completion. ValueError for anything else: it may be a proxy's page, so it is tried again."""
    try:
        content = json.loads(response)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not a chat completion: {response[:200]!r}") from error
    if not isinstance(content, str):
        raise ValueError(f"a chat completion without text: {response[:200]!r}")
    return content


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


FOLDER = "llava-bench-in-the-wild"
LLAVABENCH_SOURCE = "download the data set liuhaotian/llava-bench-in-the-wild and put its files there"
SET_JUDGE = "no judge: set OPENAI_BASE_URL (any OpenAI-compatible endpoint, up to /v1), JUDGE_MODEL and, if it wants one, OPENAI_API_KEY"


class Llavabench(QuestionLines):
    """The description of LLaVA-Bench (in the wild)."""

    name = "llavabench"
    title = "LLaVA-Bench (in the wild)"
    max_new_tokens = LONG_TOKENS
    published = published_scores("llavabench")
    questions = NeededFile(f"{FOLDER}/questions.jsonl", LLAVABENCH_SOURCE, to_score=True)
    images = NeededFile(f"{FOLDER}/images", LLAVABENCH_SOURCE)
    context = NeededFile(f"{FOLDER}/context.jsonl", LLAVABENCH_SOURCE, to_ask=False, to_score=True)
    references = NeededFile(f"{FOLDER}/answers_gpt4.jsonl", LLAVABENCH_SOURCE, to_ask=False, to_score=True)
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
                        f"question {question.id} of {self.questions.find(data)} has no {what}: {name!r} is not there; {LLAVABENCH_SOURCE}"
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
            raise ValueError(f"{path}, record {number} has no {' and '.join(fields)}; {LLAVABENCH_SOURCE}")
    return records


def _review_line(number: int, review: Review) -> dict[str, Any]:
    pair = None if review.pair is None else list(review.pair)
    return {"id": number, "question_id": review.key, "category": f"llava_bench_{review.category}", "content": review.reply, "tuple": pair}
