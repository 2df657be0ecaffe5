"""One HTTP server in front of an engine: OpenAI's protocol for words and pictures, and pictures to ids and back."""

import asyncio
import base64
import binascii
import hmac
import io
import json
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from threading import BoundedSemaphore, Event, Lock
from typing import Annotated, Any, Literal

import httpx
import numpy as np
import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import AfterValidator, BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from unicode.annotations.records import IMAGE_TAG
from unicode.annotations.templates import DECOMPRESSION, TEMPLATES
from unicode.common.logging import get_logger, printable
from unicode.generate.images import FREE_QUESTION, NOTHING, DrawRequest, caption_request, check_can_draw, decode_pictures
from unicode.generate.interleaved import answer_parts
from unicode.generate.sampling import Sampling, merge_sampling
from unicode.ids.text import CLOSE, RUN, write_run
from unicode.images.listing import UnreadableImageError
from unicode.llm.card import SAMPLED
from unicode.llm.load import Content
from unicode.llm.template import text_encoder
from unicode.serve.engines import Emit, Engine, EngineError, WriteOptions, Written, room_for

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
PROGRESS = 16  # ids of a picture from one message about it to the next
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**53)]
Words = Annotated[str, AfterValidator(lambda text: text.encode().decode())]  # JSON can hold halves of characters, a tokenizer takes none
Events = AsyncGenerator[dict[str, Any], None]
Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]
DECODERS = 4  # pictures that are decoded at a time: a small file can hold many pixels
log = get_logger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one server takes on. ValueError: a value below 1."""

    body: int = 32 << 20  # Bytes of a request
    images: int = 8  # Pictures in a request, and in its answer
    tokens: int = 4096  # Longest answer, pictures with all their ids included
    queue: int = 128  # Requests that are worked on or wait; others are refused (429)
    seconds: int = 300  # Until a request is given up (504)

    def __post_init__(self) -> None:
        if wrong := [f"{name} {value}" for name, value in vars(self).items() if value < 1]:
            raise ValueError(f"limits are at least 1; found {', '.join(wrong)}")


class Url(BaseModel):
    """Where a picture is: a data URL, or a remote one of an allowed host."""

    url: str


class Part(BaseModel):
    """A piece of a message; `ids` stand for the picture where they are given."""

    type: Literal["text", "image_url"]
    text: Words = ""
    image_url: Url | None = None
    ids: list[int] | None = None


class Message(BaseModel):
    """A turn; `images` of an answer stand where its text has <image>."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Words | list[Part] | None = None
    images: list[Part] = []


class Sampled(BaseModel):
    """Which model, and the seed."""

    model: str = ""
    seed: Seed = 0


class ChatRequest(Sampled):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    temperature: Temperature = 0.0
    top_p: Share = 1.0
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Words | Annotated[list[Words], Field(max_length=4)] | None = None
    stream: bool = False
    n: Literal[1] = 1


class DrawingRequest(Sampled):
    """Body of /v1/images/generations; sampling that is left out is as the model's card has it."""

    prompt: Words = ""
    n: int = Field(1, ge=1)
    given: Ids = []  # Of the first rows of the picture, which are kept; a prompt is then not necessary
    compressed: Ids = []  # Of a picture that the model reads compressed and writes out
    stream: bool = False
    size: str | None = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    guidance: Temperature | None = None
    candidates: int | None = Field(None, ge=1, le=64)  # Each takes rows of the batch
    temperature: Temperature | None = None
    top_k: int | None = Field(None, ge=0)
    top_p: Share | None = None


class IdsRequest(BaseModel):
    """Body of /v1/decode_ids."""

    ids: Ids


class ImageRequest(Url):
    """Body of /v1/tokenize_image."""

    neighbours: int | None = Field(None, ge=0, le=20)  # With each id its text and so many of the nearest rows of its codebook


class Server:
    """What the routes do, with `engine`; `name`: of the model; `hosts`: from which pictures may be fetched."""

    def __init__(self, engine: Engine, *, name: str, limits: Limits, hosts: frozenset[str] = frozenset()) -> None:
        self.engine, self.model, self.name, self.limits, self.hosts = engine, engine.model, name, limits, hosts
        self._threads, self._busy, self._lock, self._decoders = ThreadPoolExecutor(limits.queue), 0, Lock(), BoundedSemaphore(DECODERS)
        self.longest = max(map(len, self.model.text.get_vocab()))  # characters of a token
        self.registry = CollectorRegistry()
        Gauge("unicode_requests_in_work", "Requests in work or waiting", registry=self.registry).set_function(lambda: self._busy)
        self.tokens = Counter("unicode_tokens", "Tokens written", registry=self.registry)
        guided = "local" in engine.kinds
        self.sampling = merge_sampling(self.model.card.sampling, guided=guided).values()  # Of pictures, where a request leaves it out
        self.why_not = ""  # Why the model cannot draw
        try:
            check_can_draw(self.model)
            _ = self.model.images  # opens it
        except (ValueError, OSError) as error:
            self.why_not = printable(str(error))
        self.can_draw = not self.why_not

    def start(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Begin work in a thread; raises 429 where the queue is full."""
        if self._busy >= self.limits.queue:
            raise HTTPException(429, f"{self._busy} requests are in work, the most that this server takes; try again later")
        self._busy += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        future.add_done_callback(self._finished)
        return future

    def _finished(self, future: asyncio.Future[Any]) -> None:
        self._busy -= 1
        if not future.cancelled():
            future.exception()  # a client that has left does not ask for it

    async def run(self, request: Request, work: Callable[[Emit], Any]) -> Any:
        """Return what `work` gives; it is told to stop, by its argument, as in `follow`."""
        found: list[Any] = []
        async with aclosing(self.follow(request, lambda put: found.append(work(lambda _: put(None))))) as events:
            async for _ in events:
                pass
        return found[0]

    async def follow(self, request: Request, *works: Callable[[Callable[[Any], bool]], Any]) -> AsyncGenerator[Any, None]:
        """Yield what works in threads put, until all have ended; `put` tells them to stop when the reader leaves or the time is over.

        Raises TimeoutError: the time is over (504). HTTPException: the client has left. Raises the errors of the works.
        """
        loop, left, deadline = asyncio.get_running_loop(), Event(), time.monotonic() + self.limits.seconds
        coming: asyncio.Queue[Any] = asyncio.Queue()  # what is put, and each work when it has ended

        def put(event: Any) -> bool:
            if event:
                loop.call_soon_threadsafe(coming.put_nowait, event)
            return not left.is_set()

        try:
            for work in works:
                self.start(partial(work, put)).add_done_callback(coming.put_nowait)
            going = len(works)
            while going:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the request took longer than {self.limits.seconds} s")
                try:
                    event = await asyncio.wait_for(coming.get(), 0.2)
                except TimeoutError:
                    if await request.is_disconnected():
                        raise HTTPException(499, "the client has left") from None
                    continue
                if isinstance(event, asyncio.Future):
                    event.result()
                    going -= 1
                else:
                    yield event
        finally:
            left.set()

    def check_model(self, name: str) -> None:
        """Raise 404 for another model than this server's."""
        if name not in ("", self.name):
            raise HTTPException(404, f"no model '{printable(name)[:100]}' here; this server has '{self.name}'")

    def read_url(self, url: str) -> bytes:
        """Return the content of the file of a URL. ValueError: it is none, is too large, or its host is not allowed."""
        if found := DATA_URL.match(url):
            try:
                return base64.b64decode(url[found.end() :], validate=True)
            except binascii.Error as error:
                raise ValueError(f"the data URL of an image is damaged: {error}") from error
        try:
            place = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ValueError("an image_url is no URL; expected data:image/png;base64,...") from error
        if place.scheme not in ("http", "https") or place.host not in self.hosts:
            raise ValueError(f"images are not fetched from '{printable(url)[:60]}'; send a data URL (data:image/png;base64,...)")
        content, deadline = io.BytesIO(), time.monotonic() + self.limits.seconds
        try:
            with httpx.stream("GET", place, timeout=10, follow_redirects=False, headers={"Accept-Encoding": "identity"}) as response:
                response.raise_for_status()
                for block in response.iter_raw():
                    if content.tell() + len(block) > self.limits.body or time.monotonic() > deadline:
                        raise ValueError(f"the image at {place} is larger than {self.limits.body} bytes or comes too slowly")
                    content.write(block)
        except httpx.HTTPError as error:
            raise ValueError(f"the image at {place} cannot be fetched ({type(error).__name__})") from error
        return content.getvalue()

    def read_images(self, parts: list[Part]) -> list[Content]:
        """Return what the model reads for each picture of a request. ValueError: one cannot be read."""
        contents: list[Content] = []
        for part in parts:
            if part.ids is not None:
                contents.append(self.check_ids(part.ids))
                continue
            content = self.read_url(part.image_url.url if part.image_url is not None else "")
            try:
                with self._decoders:
                    pixels = self.model.picture(content)
            except UnreadableImageError as error:
                raise ValueError(f"an image cannot be read: {error}") from error
            with self._lock:
                contents += self.model.read_pictures(pixels[None])
        return contents

    def check_texts(self, texts: list[str]) -> None:
        """Raise ValueError for texts that cannot fit into the context, before they are tokenized, or that hold ids of any tokens."""
        length, context = sum(map(len, texts)), self.engine.context
        if len(texts) > context or length > context * self.longest:
            raise ValueError(f"{len(texts)} texts of {length} characters cannot fit into the context of {context} tokens; shorten them")
        if any(map(RUN.search, texts)):
            raise ValueError("a text holds a run of ids; give the ids of a picture as `ids` of an image_url part")

    def check_ids(self, ids: list[int], *, rows: bool = False) -> np.ndarray:
        """Return the ids of a picture, or of its first `rows`, as an array. ValueError: they are no complete ones of this model."""
        check_can_draw(self.model)
        assert self.model.layout is not None
        known, count, row = set(self.model.images.row_ids.tolist()), self.model.layout.num_codes, self.model.layout.row_length
        if len(ids) not in (range(row, count, row) if rows else (count,)) or not known.issuperset(ids):
            what = f"first rows of {row} ids each" if rows else "picture"
            raise ValueError(f"{len(ids)} ids are no {what} of this model, which has {count} of its {len(known)} image ids")
        return np.array(ids, dtype=np.int64)

    def requests(self, body: "DrawingRequest") -> list[DrawRequest]:
        """Return what is to be drawn. ValueError: this model or this server does not draw that."""
        check_can_draw(self.model)
        self.check_texts([body.prompt])
        size = f"{self.model.image_size}x{self.model.image_size}"
        if body.n > self.limits.images or body.size not in (None, "auto", size):
            here = f"this model draws {size}, this server at most {self.limits.images} at a time"
            raise ValueError(f"{body.n} pictures of {body.size}: {here}")
        if body.compressed:
            question = TEMPLATES[DECOMPRESSION][0].format(ids=write_run(self.check_ids(body.compressed)))
        else:
            free = body.given and not body.prompt
            question = FREE_QUESTION if free else caption_request(body.prompt, template=self.model.card.request).question
        given, compressed = self.check_ids(body.given, rows=True) if body.given else NOTHING, bool(body.compressed)
        return [DrawRequest(question, body.seed + number, given, compressed) for number in range(body.n)]

    def words(self, ids: np.ndarray, count: int) -> list[dict[str, Any]]:
        """Return for each id of a picture its text, its level, and the `count` nearest rows of the codebook of its level."""
        images, layout, read = self.model.images, self.model.layout, text_encoder(self.model.text).decode
        assert layout is not None
        codes = layout.arrange(images.from_ids(torch.from_numpy(ids)[None].to(self.model.device), layout=layout))[0]
        found = []
        for code, token, level in zip(codes, ids.tolist(), layout.levels().tolist(), strict=True):
            book = images.codebooks[min(level, len(images.codebooks) - 1)]
            nearest = torch.cdist(book.rows[code][None], book.rows)[0].topk(min(count + 1, len(book.rows)), largest=False).indices[1:]
            neighbours = [{"id": index, "text": read([index])} for index in images.row_ids[nearest].tolist()]
            found.append({"id": token, "text": read([token]), "level": level, "neighbours": neighbours})
        return found

    def read_conversation(self, messages: list[Message]) -> tuple[list[str], list[Content]]:
        """Return turns with <image> tags, and what is read for these. ValueError: no conversation, or too large a one."""
        read: list[tuple[str, str, list[Part]]] = []
        for message in messages:
            parts = [Part(type="text", text=message.content)] if isinstance(message.content, str) else message.content or []
            words = "".join(IMAGE_TAG if part.type == "image_url" else part.text for part in parts)
            read.append((message.role, words, [*(part for part in parts if part.type == "image_url"), *message.images]))
        self.check_texts([words for _, words, _ in read])
        if (count := sum(part.ids is None for *_, seen in read for part in seen)) > self.limits.images:
            raise ValueError(f"the request has {count} images; this server takes {self.limits.images}")
        turns: list[str] = []
        shown: list[Part] = []
        system = ""
        for role, words, seen in read:
            if words.count(IMAGE_TAG) != len(seen):
                raise ValueError(f"a message has {words.count(IMAGE_TAG)} {IMAGE_TAG} for {len(seen)} images")
            if role in ("system", "developer"):
                system += f"{words}\n"
                shown += seen
                continue
            if (role == "assistant") != bool(len(turns) % 2):
                raise ValueError("messages of user and assistant come by turns, beginning with the user")
            if role == "assistant":
                for ids in self.read_images(seen):
                    words = words.replace(IMAGE_TAG, write_run(ids), 1)
            else:
                shown += seen
            turns.append(system + words)
            system = ""
        if len(turns) % 2 == 0:
            raise ValueError("the last message is not the user's; there is nothing to answer")
        return turns, self.read_images(shown)

    def picture(self, ids: np.ndarray) -> str:
        """Return the PNG of a picture's ids, base64."""
        with self._lock:
            pixels = decode_pictures(self.model, ids[None])[0]
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        return base64.b64encode(content.getvalue()).decode()

    def delta(self, text: str) -> dict[str, Any]:
        """Return an answer's text as a message: <image> for each picture in its words, and the pictures."""
        parts = list(answer_parts(text, self.model)) if self.can_draw else [text]
        found: dict[str, Any] = {"content": "".join(part if isinstance(part, str) else IMAGE_TAG for part in parts)}
        pictures = [part for part in parts if not isinstance(part, str)]
        urls = [{"url": f"data:image/png;base64,{self.picture(ids)}"} for ids in pictures]
        images = [{"type": "image_url", "image_url": url, "ids": ids.tolist()} for url, ids in zip(urls, pictures, strict=True)]
        return {**found, "images": images} if images else found


class Answering:
    """One answer of the chat: its request to the engine, its text so far, its end."""

    def __init__(self, server: Server, body: ChatRequest) -> None:
        self.server, self.model, self.body = server, server.model, body
        wanted = body.max_completion_tokens or body.max_tokens or min(512, server.limits.tokens)
        if wanted > server.limits.tokens:
            raise ValueError(f"{wanted} tokens are asked for; this server writes at most {server.limits.tokens}")
        self.stops = [*([body.stop] if isinstance(body.stop, str) else body.stop or []), self.model.template.stop]
        self.stops = [stop for stop in self.stops if stop]
        self._ending = re.compile("|".join([RUN.pattern, *map(re.escape, self.stops)]))
        words, pictures = Sampling(body.temperature, top_p=body.top_p), merge_sampling(self.model.card.sampling, guided=False)
        self.options = WriteOptions(wanted, words, pictures, max_pictures=server.limits.images * server.can_draw, seed=body.seed)
        self.about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": server.name}

    def text(self, ids: list[int]) -> tuple[str, bool]:
        """Return the text of an answer's ids up to the first stop text, and whether there is one."""
        text = self.model.read_text(ids).lstrip()
        found = next((found for found in self._ending.finditer(text) if not RUN.fullmatch(found[0])), None)  # not within pictures
        return (text, False) if found is None else (text[: found.start()], True)

    def begun(self, ids: list[int]) -> int:
        """Return how many ids there are of a picture that is not complete; 0 outside of pictures."""
        start, end = self.model.markers.ids()[:2] if self.model.markers is not None and self.options.max_pictures else (-1, -1)
        behind = next((place for place, token in enumerate(reversed(ids)) if token in (start, end)), 0)
        return behind if behind and ids[-1 - behind] == start else 0

    def prompt(self) -> Any:
        """Return the prompt. ValueError: messages that are no conversation, or too long a one."""
        prompt = self.model.prompt(*self.server.read_conversation(self.body.messages))
        room_for(prompt, 1, self.server.engine.context)
        return prompt

    def write(self, prompt: Any, emit: Emit) -> Written:
        """Have the engine answer."""
        written = self.server.engine.write(prompt, self.options, lambda ids: emit(ids) and not (self.stops and self.text(ids)[1]))
        self.server.tokens.inc(len(written.ids))
        return written

    def end(self, prompt: Any, written: Written) -> tuple[str, dict[str, int]]:
        """Return finish_reason and usage."""
        counts = {"prompt_tokens": len(prompt), "completion_tokens": len(written.ids) + written.ended}
        reason = "stop" if written.ended or self.text(written.ids)[1] else "length"
        return reason, {**counts, "total_tokens": sum(counts.values())}

    async def stream(self, prompt: Any, request: Request) -> Events:
        """Yield events: words as they come, pictures whole, the progress of pictures in between."""
        loop, held, sent = asyncio.get_running_loop(), max(map(len, self.stops), default=1) - 1, ""

        def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return {"object": "chat.completion.chunk", **self.about, "choices": [choice], **more}

        yield event({"role": "assistant", "content": ""})
        written: list[Written] = []
        newest: list[int] = []

        def work(put: Callable[[Any], bool]) -> None:
            def emit(ids: list[int]) -> bool:
                newest[:] = ids
                return put(len(ids))  # only their number waits for a client that reads slowly

            written.append(self.write(prompt, emit))

        async with aclosing(self.server.follow(request, work)) as coming:
            async for count in coming:
                ids = newest[:count]
                text = self.text(ids)[0].rstrip().rstrip("\ufffd")
                text = text[: max(len(text) - held, text.rfind(CLOSE) + len(CLOSE) if CLOSE in text else 0)]
                if text.startswith(sent) and len(text) > len(sent):
                    yield event(await loop.run_in_executor(None, self.server.delta, text[len(sent) :]))
                    sent = text
                begun = self.begun(ids)
                if begun and begun % PROGRESS == 0 and self.model.layout is not None:
                    yield event({}, progress={"ids": begun, "of": self.model.layout.num_codes})
        text, (reason, usage) = self.text(written[0].ids)[0].rstrip(), self.end(prompt, written[0])
        if len(text) > len(sent):
            yield event(await loop.run_in_executor(None, self.server.delta, text[len(sent) :]))
        yield event({}, reason, usage=usage)


async def draw_pictures(server: Server, request: Request, asked: list[DrawRequest], sampling: Sampling) -> Events:
    """Yield events: how many ids each picture has, and each picture when it is drawn."""
    whole = server.model.layout.num_codes if server.model.layout is not None else 0

    def draw(number: int, put: Callable[[Any], bool]) -> None:
        about = {"type": "image_generation.progress", "index": number}
        ids = server.engine.draw(asked[number], sampling, lambda count: put(count and {**about, "ids": count, "of": whole}))
        put({**about, "type": "image_generation.completed", "b64_json": server.picture(ids), "ids": ids.tolist()})

    async with aclosing(server.follow(request, *(partial(draw, number) for number in range(len(asked))))) as events:
        async for event in events:
            yield event


async def write_events(source: Events) -> AsyncGenerator[str, None]:
    """Write events as server-sent ones; an error becomes the last of them."""
    try:
        async with aclosing(source) as events:
            async for event in events:
                yield f"data: {json.dumps(event)}\n\n"
    except Exception as error:
        status, message = status_of(error)
        if status == 500:
            log.exception("a stream broke off")
        yield f"data: {json.dumps(describe_error(status, message))}\n\n"
    yield "data: [DONE]\n\n"


def status_of(error: Exception) -> tuple[int, str]:
    """Return the HTTP status and the sentence of an error."""
    if isinstance(error, StarletteHTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        nearest = max(error.errors(), key=lambda one: len(one["loc"]))  # of the forms that a value may have
        return 400, f"{'.'.join(map(str, nearest['loc'][1:])) or 'the body'}: {nearest['msg']}"
    status = {TimeoutError: 504, ConnectionError: 503, EngineError: 502, ValueError: 400, FileNotFoundError: 400}  # no image tokenizer
    found = next((code for kind, code in status.items() if isinstance(error, kind)), 500)
    message = (str(error) or "the request took too long") if found != 500 else "an error of this server; its log has the reason"
    return found, printable(message)


def describe_error(status: int, message: str) -> dict[str, Any]:
    """Return an error as OpenAI's protocol has it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message[:1000], "type": kind, "param": None, "code": status}}


class Guard:
    """Around all routes: the key, the size of the body, the metrics. `key`: "" for none."""

    def __init__(self, app: Any, *, server: Server, key: str) -> None:
        self.app, self.server, self.key = app, server, key
        self.requests = Counter("unicode_requests", "Requests by route and status", ["route", "status"], registry=server.registry)
        self.seconds = Histogram("unicode_request_seconds", "Time of requests by route", ["route"], registry=server.registry)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, size, status = time.perf_counter(), 0, 500
        await asyncio.sleep(0)  # where the body is no HTTP, uvicorn has answered and closes; after that it drops what the routes send

        async def count_body() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.server.limits.body:
                raise HTTPException(413, f"the body is larger than {self.server.limits.body} bytes")
            return message

        async def note_status(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        given = dict(scope["headers"]).get(b"authorization", b"")
        allowed = not self.key or scope["path"] == "/health" or hmac.compare_digest(given, f"Bearer {self.key}".encode())
        refused = JSONResponse(describe_error(401, "the API key is missing or wrong; send it as Authorization: Bearer KEY"), 401)
        try:
            await (self.app if allowed else refused)(scope, count_body, note_status)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.requests.labels(route, str(status)).inc()
            self.seconds.labels(route).observe(time.perf_counter() - start)


def build_app(server: Server, *, key: str = "") -> FastAPI:
    """Return the application; see docs/serving.md for its routes. `key`: what clients have to send, "" for nothing."""
    app = FastAPI(title="UniCode", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Guard, server=server, key=key)  # type: ignore[arg-type]

    async def answer_error(request: Request, error: Exception) -> JSONResponse:
        status, message = status_of(error)
        return JSONResponse(describe_error(status, message), status)

    for kind in (StarletteHTTPException, RequestValidationError, ValueError, ConnectionError, TimeoutError, FileNotFoundError, Exception):
        app.add_exception_handler(kind, answer_error)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(server.registry))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card, layout = server.model.card, server.model.layout
        about = {"context": server.model.context, "draws": server.can_draw, "image_tokenizer": card.fingerprint}
        about |= {"why_not": server.why_not, "tasks": card.config.get("tasks"), "sampling": server.sampling}
        about |= {"grid": layout.grids[0], "cell_length": layout.cell_length} if layout is not None else {}
        return {"object": "list", "data": [{"id": server.name, "object": "model", "created": 0, "owned_by": "unicode", **about}]}

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        server.check_model(body.model)
        answering = Answering(server, body)
        prompt = await server.run(request, lambda _: answering.prompt())
        if body.stream:
            return StreamingResponse(write_events(answering.stream(prompt, request)), media_type="text/event-stream")
        written = await server.run(request, lambda emit: answering.write(prompt, emit))
        reason, usage = answering.end(prompt, written)
        message = await server.run(request, lambda _: server.delta(answering.text(written.ids)[0].rstrip()))
        choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
        return {"object": "chat.completion", **answering.about, "choices": [choice], "usage": usage}

    @app.post("/v1/images/generations")
    async def draw(body: DrawingRequest, request: Request) -> Any:
        server.check_model(body.model)
        asked, given = server.requests(body), body.model_dump(include=set(SAMPLED))
        stored = {"temperature": 0.0} if body.compressed else server.sampling
        events = draw_pictures(server, request, asked, merge_sampling(stored, given))
        if body.stream:
            return StreamingResponse(write_events(events), media_type="text/event-stream")
        drawn = sorted([event async for event in events if "b64_json" in event], key=itemgetter("index"))
        form = (lambda one: {"url": f"data:image/png;base64,{one}"}) if body.response_format == "url" else lambda one: {"b64_json": one}
        return {"created": int(time.time()), "data": [{**form(one["b64_json"]), "ids": one["ids"]} for one in drawn]}

    @app.post("/v1/tokenize_image")
    async def tokenize_image(body: ImageRequest, request: Request) -> Any:
        check_can_draw(server.model)
        (ids,) = await server.run(request, lambda _: server.read_images([Part(type="image_url", image_url=body)]))
        found = {"ids": ids.tolist(), "image_tokenizer": server.model.card.fingerprint}
        if body.neighbours is None:
            return found
        return {**found, "words": await server.run(request, lambda _: server.words(ids, body.neighbours or 0))}

    @app.post("/v1/decode_ids")
    async def decode_ids(body: IdsRequest, request: Request) -> Any:
        return {"b64_json": await server.run(request, lambda _: server.picture(server.check_ids(body.ids)))}

    return app
