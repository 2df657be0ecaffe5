"""A chat model behind an OpenAI-compatible endpoint: prompt -> reply, with retries, and with a file that keeps every reply.

The same request is never paid for twice: replies lie in a JSON Lines file under the hash of the request, and a run that was cut off goes
on from there.
"""

import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unicode.metrics.benchmarks.judge import SYSTEM_PROMPT, JudgeError

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
