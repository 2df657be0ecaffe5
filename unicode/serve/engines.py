"""Engines behind one interface: prompts in, ids of answers and of pictures out; our own on this machine, or servers over HTTP."""

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock, Thread
from time import monotonic, perf_counter
from typing import Any, Protocol

import numpy as np

from unicode.common.extras import require
from unicode.common.logging import get_logger
from unicode.generate.answers import Answer, AnswerConfig
from unicode.generate.images import NOTHING, Drawing, DrawRequest, check_can_draw
from unicode.generate.sampling import GREEDY, Sampling
from unicode.llm.examples import ExampleBuilder
from unicode.llm.load import LanguageModel, Prompt
from unicode.llm.template import text_encoder

KEY_VARIABLE = "UNICODE_ENGINE_KEY"  # of the environment: the key that engines over HTTP ask for
PROBED = 256  # tokens of the vocabulary that are compared with a server's
RETRY, CONNECT = 10.0, 5.0  # s until a server that failed is asked again, and for a connection
ONLY_LOCAL = "only our own engine can; leave out --engine"
Emit = Callable[[list[int]], bool]  # The ids so far -> whether to go on
Tell = Callable[[int], bool]  # How many ids a picture has so far -> whether to go on; our own engine goes on in any case
log = get_logger(__name__)


@dataclass(frozen=True)
class WriteOptions:
    """How an answer is written."""

    max_tokens: int  # Longest answer, pictures with all their ids included
    words: Sampling = GREEDY
    pictures: Sampling = field(default_factory=Sampling)
    max_pictures: int = 0  # So many complete pictures may stand in it; 0: no token is ruled out
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """An answer."""

    ids: list[int]  # Without the end token
    ended: bool  # Whether an end token ended it


class EngineError(ValueError):
    """A server failed at one request; others may succeed."""


class Engine(Protocol):
    """What writes ids; may be called from many threads. ValueError: it cannot do what is asked. ConnectionError: it is gone."""

    model: LanguageModel
    context: int  # Longest prompt and answer together, in tokens
    width: int  # Servers behind it
    kinds: list[str]  # Of the servers

    def write(self, prompt: Prompt, options: WriteOptions, emit: Emit | None = None) -> Written:
        """Answer a prompt. `emit`: called while tokens come; the answer ends where it returns False."""

    def draw(self, request: DrawRequest, sampling: Sampling, tell: Tell | None = None) -> np.ndarray:
        """Draw a picture: (n,) int64 ids in id order, given ones included. `tell`: called while ids come."""


def room_for(prompt: Prompt, max_tokens: int, context: int) -> int:
    """Return how many tokens an answer may have. ValueError: none."""
    if len(prompt) >= context:
        raise ValueError(f"the prompt has {len(prompt)} tokens, the context {context}; shorten it")
    return min(max_tokens, context - len(prompt))


@dataclass(frozen=True)
class IdRequest:
    """What a server over HTTP is asked."""

    prompt: tuple[int, ...]
    max_tokens: int
    stop_ids: tuple[int, ...] = ()  # The first of them ends the answer, and is its last token
    allowed: tuple[int, ...] = ()  # The only ids that may come; empty: all others than `forbidden`
    forbidden: tuple[int, ...] = ()
    sampling: Sampling = GREEDY
    seed: int = 0


class HttpServer(ABC):
    """One server that takes ids and returns ids, with the vocabulary of `model`.

    Raises ConnectionError: it does not answer. Raises ValueError: it has another vocabulary.
    """

    def __init__(self, url: str, model: LanguageModel, client: Any, about: dict[str, Any]) -> None:
        self.url, self.model, self.name = url, model, str(about["id"])
        self._client, self._vocab_size = client, model.vocab_size
        self.context = self._describe(about)
        encoder = text_encoder(model.text)
        pieces = {index: encoder.decode([index]) for index in range(len(model.text)) if index not in encoder.special_ids}
        plain = [index for index, piece in pieces.items() if piece.isascii() and piece.strip().isprintable() and piece.strip()]
        probed = [*plain[:: max(1, len(plain) // PROBED)], *(model.markers.ids() if model.markers is not None else ())]
        found, expected = ("".join(text.split()) for text in (self._detokenize(probed), encoder.decode(probed)))
        if found != expected:
            raise ValueError(f"the engine {url} has another vocabulary than this model; give it the file of this model ({self.name})")

    @abstractmethod
    def _describe(self, about: dict[str, Any]) -> int:
        """Check what the server says about its model; returns its context in tokens."""

    @abstractmethod
    def _detokenize(self, ids: list[int]) -> str: ...

    @abstractmethod
    def _request(self, request: IdRequest) -> tuple[str, str]:
        """Return the path and the JSON of a request whose answer is streamed."""

    @abstractmethod
    def _event(self, event: dict[str, Any]) -> tuple[list[int], bool]:
        """Return the ids of an event, and whether it is the last one."""

    def complete(self, request: IdRequest, emit: Emit | None = None) -> list[int]:
        """Return the ids of an answer, the stop id included.

        Raises ConnectionError: the server is gone. ValueError: it refuses the request. EngineError: it fails at the request.
        """
        path, content = self._request(request)
        ids: list[int] = []
        headers = {"Content-Type": "application/json"}
        with connection_errors(self.url), self._client.stream("POST", self.url + path, content=content, headers=headers) as response:
            if response.status_code in (400, 413, 422):
                raise ValueError(f"the engine {self.url} refuses a request: {response.read().decode(errors='replace')[:300]}")
            if response.status_code == 500:
                raise EngineError(f"the engine {self.url} fails at a request: {response.read().decode(errors='replace')[:300]}")
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise EngineError(f"the engine {self.url} fails at a request: {str(event['error'])[:300]}")
                new, last = self._event(event)
                for token in new:
                    ids.append(token)
                    if token in request.stop_ids or len(ids) >= request.max_tokens:
                        return ids
                if last or (emit is not None and not emit(ids)):
                    return ids
        raise ConnectionError(f"the engine {self.url} broke off an answer after {len(ids)} tokens")


@contextmanager
def connection_errors(url: str) -> Iterator[None]:
    """Turn errors of the connection to one server into ConnectionError with its address."""
    import httpx

    try:
        yield
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, json.JSONDecodeError, KeyError) as error:
        raise ConnectionError(f"the engine {url} does not answer ({type(error).__name__}: {error})") from error


def call(client: Any, url: str, path: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST of `values`, and return the JSON of the answer. ConnectionError: there is none."""
    with connection_errors(url):
        response = client.request("GET" if values is None else "POST", url + path, json=values)
        response.raise_for_status()
        return response.json()  # type: ignore[no-any-return]


class LlamaCpp(HttpServer):
    """A llama.cpp server: ids through `/completion`."""

    def _describe(self, about: dict[str, Any]) -> int:
        rows = about["meta"]["n_vocab"]
        if rows != self._vocab_size:
            raise ValueError(f"the engine {self.url} has {rows} tokens, this model {self._vocab_size}; give it the file of this model")
        return int(call(self._client, self.url, "/props")["default_generation_settings"]["n_ctx"])

    def _detokenize(self, ids: list[int]) -> str:
        return str(call(self._client, self.url, "/detokenize", {"tokens": ids})["content"])

    def _request(self, request: IdRequest) -> tuple[str, str]:
        sampling = request.sampling
        values = {
            "prompt": request.prompt, "n_predict": request.max_tokens, "return_tokens": True, "stream": True, "cache_prompt": False,
            "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": 0.0,
            "samplers": ["temperature", "top_k", "top_p"], "seed": request.seed % (2**32 - 1),
        }  # fmt: skip
        return "/completion", f'{json.dumps(values)[:-1]}, "logit_bias": {self._ruled_out(request.allowed, request.forbidden)}}}'

    @lru_cache(maxsize=16)  # noqa: B019, servers live as long as the process
    def _ruled_out(self, allowed: tuple[int, ...], forbidden: tuple[int, ...]) -> str:
        ids = sorted(set(range(self._vocab_size)) - set(allowed)) if allowed else forbidden
        return json.dumps([[index, False] for index in ids])

    def _event(self, event: dict[str, Any]) -> tuple[list[int], bool]:
        return event["tokens"], event["stop"]


class Vllm(HttpServer):
    """A vLLM server: ids through OpenAI's `/v1/completions` with vLLM's own fields."""

    def _describe(self, about: dict[str, Any]) -> int:
        return int(about["max_model_len"])

    def _detokenize(self, ids: list[int]) -> str:
        return str(call(self._client, self.url, "/detokenize", {"model": self.name, "tokens": ids})["prompt"])

    def _request(self, request: IdRequest) -> tuple[str, str]:
        sampling = request.sampling
        values = {
            "model": self.name, "prompt": request.prompt, "max_tokens": request.max_tokens, "stream": True, "return_token_ids": True,
            "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "seed": request.seed,
            "min_p": 0.0, "repetition_penalty": 1.0,  # else those of generation_config.json
            "stop_token_ids": request.stop_ids, "ignore_eos": True,
        }  # fmt: skip
        if request.allowed:
            values["allowed_token_ids"] = request.allowed
        if request.forbidden:
            values["logit_bias"] = {str(index): -100 for index in request.forbidden}
        return "/v1/completions", json.dumps(values)

    def _event(self, event: dict[str, Any]) -> tuple[list[int], bool]:
        choice = event["choices"][0]
        return choice.get("token_ids") or [], choice.get("finish_reason") is not None


SERVERS: dict[str, type[HttpServer]] = {"llamacpp": LlamaCpp, "vllm": Vllm}
"""What a server says of itself in the `owned_by` of `/v1/models` -> how it is asked."""


class HttpEngine:
    """Servers of one model over HTTP; a request goes to the one with the fewest, and to another one where that fails.

    A server that does not answer is left out. `RETRY` seconds later the next request asks it again, with the checks of the start. `urls`:
    their addresses, separated by commas. `model`: what turns conversations into ids; `unicode.llm.load.open_without_weights` is enough.
    Raises ValueError: a server of another kind or with another vocabulary, or a model that such servers cannot serve. Raises
    ConnectionError: none answers.
    """

    def __init__(self, urls: str, model: LanguageModel) -> None:
        httpx = require("httpx", extra="serve")
        if model.reads_pixels or model.card.output_mode != "ids":
            raise ValueError(f"this model {'reads pixels' if model.reads_pixels else 'writes images by cells'}; {ONLY_LOCAL}")
        self.model, self._lock = model, Lock()
        headers = {"Authorization": f"Bearer {os.environ[KEY_VARIABLE]}"} if os.environ.get(KEY_VARIABLE) else {}
        self._client = httpx.Client(timeout=httpx.Timeout(600, connect=CONNECT), limits=httpx.Limits(max_connections=None), headers=headers)
        self._busy: dict[HttpServer, int] = {}  # requests at each server that answers
        self._left_out: dict[str, float] = {}  # addresses of the others -> when they are asked again
        self.context = model.context
        for url in filter(None, (part.strip().rstrip("/").removesuffix("/v1") for part in urls.split(","))):
            self._add(url)
        if not self._busy:
            raise ConnectionError(f"no engine answers at {urls}; start one, or leave out --engine")
        self.kinds = sorted({type(server).__name__.lower() for server in self._busy})
        self.width = len(self._busy)  # Servers at the start

    def _add(self, url: str, *, again: bool = False) -> None:
        try:
            with connection_errors(url):
                about = call(self._client, url, "/v1/models")["data"][0]
                if about.get("owned_by") not in SERVERS:
                    raise ValueError(f"the engine {url} is a server of '{about.get('owned_by')}'; known: {', '.join(SERVERS)}")
                server = SERVERS[about["owned_by"]](url, self.model, self._client, about)
        except ConnectionError as error:
            log.log(logging.DEBUG if again else logging.WARNING, "%s; it is left out", error)
            with self._lock:
                self._left_out[url] = monotonic() + RETRY
        except ValueError as error:
            if not again:
                raise
            log.warning("%s; it stays left out", error)
        else:
            with self._lock:
                self._busy[server], self.context = 0, min(self.context, server.context)
            if again:
                log.warning("the engine %s answers again; it takes requests", url)

    def _take(self, failed: HttpServer | None) -> HttpServer:
        """Return the server with the fewest requests, another than `failed` where there is one. ConnectionError: none is left."""
        with self._lock:
            due = [url for url, when in self._left_out.items() if when <= monotonic()]
            asking = [Thread(target=self._add, args=(url,), kwargs={"again": True}, daemon=True) for url in due]
            for url, thread in zip(due, asking, strict=True):
                del self._left_out[url]
                thread.start()
        for thread in [] if self._busy else asking:
            thread.join(CONNECT)
        with self._lock:
            if not self._busy:
                raise ConnectionError("no engine is left that answers; start one again")
            server = min(self._busy, key=lambda one: (one is failed, self._busy[one]))
            self._busy[server] += 1
            return server

    def complete(self, request: IdRequest, emit: Emit | None = None) -> list[int]:
        """Return the ids of one request; it starts again at another server where one fails.

        Raises ConnectionError: no server is left. EngineError: two servers fail at the request, or the only one does.
        """
        longest = 0
        failed: HttpServer | None = None

        def tell(ids: list[int]) -> bool:
            nonlocal longest
            repeated, longest = len(ids) < longest, max(longest, len(ids))
            return repeated or emit is None or emit(ids)

        while True:
            server = self._take(failed)
            try:
                return server.complete(request, tell)
            except EngineError:
                if failed is not None or len(self._busy) < 2:
                    raise
                failed = server
            except ConnectionError as error:
                with self._lock:
                    if self._busy.pop(server, None) is not None:
                        self._left_out[server.url] = monotonic() + RETRY
                        log.warning("%s; it is left out, %d left", error, len(self._busy))
            finally:
                with self._lock:
                    if server in self._busy:
                        self._busy[server] -= 1

    def write(self, prompt: Prompt, options: WriteOptions, emit: Emit | None = None) -> Written:
        """See `Engine`. Words and pictures are asked for by turns; end markers are ours."""
        ids: list[int] = []
        ends, pictures = tuple(self.model.end_ids), options.max_pictures
        limit, before = room_for(prompt, options.max_tokens, self.context), self._plain(prompt)

        def tell(new: list[int]) -> bool:
            return emit is None or emit([*ids, *new])

        start, end, *others = self.model.markers.ids() if self.model.markers is not None and pictures else (-1, -1)
        num_ids = self.model.layout.num_codes if self.model.layout is not None else 0
        while len(ids) < limit:
            room, seed = limit - len(ids), options.seed + len(ids)
            may_draw = pictures > 0 and room >= num_ids + 2
            stops, most = ((*ends, start), room - num_ids - 1) if may_draw else (ends, room)  # beyond `most` no picture fits
            ruled_out = tuple({start, end, *others} - {*stops, -1})
            ids += self.complete(IdRequest((*before, *ids), most, stops, (), ruled_out, options.words, seed), tell)
            if ids and ids[-1] in ends:
                return Written(ids[:-1], True)
            if may_draw and ids and ids[-1] == start:
                ids += [*self._picture((*before, *ids), num_ids, options.pictures, options.seed + len(ids), tell), end]
                pictures -= 1
            if not tell([]):
                break
        return Written(ids, False)

    def draw(self, request: DrawRequest, sampling: Sampling, tell: Tell | None = None) -> np.ndarray:
        """See `Engine`."""
        model = self.model
        check_can_draw(model)
        assert model.layout is not None
        if request.compressed:
            raise ValueError(f"a compressed image is read by cells; {ONLY_LOCAL}")
        builder = ExampleBuilder(model.template, model.text, model.markers, model.layout, model.vocab_size)
        prompt = Prompt(builder.build([request.question], [request.given], input_mode=model.card.input_mode, open_image=True))
        count = model.layout.num_codes - len(request.given)
        if room_for(prompt, count, self.context) < count or count < 1:
            raise ValueError(f"the prompt has {len(prompt)} tokens; with {count} ids to draw the context of {self.context} is too short")
        told = None if tell is None else lambda ids: tell(len(request.given) + len(ids))
        return np.concatenate([request.given, self._picture(self._plain(prompt), count, sampling, request.seed, told)])

    def _picture(self, prompt: tuple[int, ...], count: int, sampling: Sampling, seed: int, emit: Emit | None) -> list[int]:
        if sampling.guided:
            raise ValueError(f"guidance {sampling.guidance} needs the scores of two prompts at each step; {ONLY_LOCAL}, or set it to 1")
        if sampling.candidates > 1:
            raise ValueError(f"{sampling.candidates} candidates are compared as pictures; {ONLY_LOCAL}, or set it to 1")
        allowed = tuple(self.model.images.row_ids.tolist())
        drawn = self.complete(IdRequest(prompt, count, (), allowed, (), sampling, seed), emit)
        if len(drawn) != count or not set(drawn) <= set(allowed):
            raise ValueError(f"the engine wrote {len(drawn)} of {count} ids of a picture, or others than were allowed")
        return drawn

    @staticmethod
    def _plain(prompt: Prompt) -> tuple[int, ...]:
        if len(prompt.example.extra_at):
            raise ValueError(f"this model reads images by cells (input_mode sum); {ONLY_LOCAL}")
        return tuple(prompt.example.input_ids.tolist())


def answer_with(engine: Engine, config: AnswerConfig, prompts: dict[int, Prompt], seeds: dict[int, int]) -> Iterator[tuple[int, Answer]]:
    """Answer prompts, `config.batch_size` at a time at each server; yields (their place, the answer) as they come."""
    model, stop = engine.model, engine.model.template.stop
    going = None if not stop else lambda ids: stop not in model.read_text(ids).lstrip()
    options = WriteOptions(config.max_new_tokens, Sampling(config.temperature, top_p=config.top_p))
    with ThreadPoolExecutor(config.batch_size * engine.width) as threads:
        asked = {threads.submit(engine.write, one, replace(options, seed=seeds[place]), going): place for place, one in prompts.items()}
        try:
            for future in as_completed(asked):
                try:
                    written = future.result()
                except ValueError as error:
                    yield asked[future], Answer("", error=str(error))
                    continue
                text, found, _ = model.read_text(written.ids).lstrip().partition(stop or "\0")
                length = len(written.ids) + written.ended
                yield asked[future], Answer(text.strip(), length, bool(found) or written.ended, ids=tuple(written.ids))
        finally:
            threads.shutdown(cancel_futures=True)


class EngineSampler:
    """Draws with an engine, a batch at a time, where `unicode.generate.images.ImageSampler` draws with a model."""

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self.model, self._engine, self._sampling = engine.model, engine, sampling

    def draw(self, requests: Sequence[DrawRequest]) -> list[Drawing]:
        """Draw a batch. A request that cannot be drawn has `Drawing.error`. ConnectionError: no server is left."""

        def one(request: DrawRequest) -> Drawing:
            start = perf_counter()
            try:
                return Drawing(self._engine.draw(request, self._sampling), perf_counter() - start)
            except ValueError as error:
                return Drawing(NOTHING, 0.0, str(error))

        with ThreadPoolExecutor(max(1, len(requests))) as threads:
            return list(threads.map(one, requests))
