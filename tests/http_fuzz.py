"""Damaged requests for the HTTP server: `python tests/http_fuzz.py --model MERGED --cases 20000 --jobs 8`.

Each case is one request over a socket: a valid one with values, bytes, headers, framing, method or path changed, or a client that leaves.
It must end in an answer of a documented status and form, or in a closed connection where the request is no HTTP. `--case N` repeats one.
"""

import argparse
import base64
import contextlib
import gzip
import http.client
import io
import json
import logging
import random
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1])]  # of the package; the folder of this file is there

from fuzz import VALUES, mutate_bytes, mutate_json  # noqa: E402

KEY, ALLOWED = "secret", "127.0.0.2"  # the host from which pictures may be fetched
IMAGES, TOKENS, BODY = 2, 60, 100_000  # limits of the server
DOCUMENTED = {200, 400, 401, 404, 405, 413, 429, 504}
TRACES = ("Traceback", "site-packages", '.py"', "root:x:", "canary")
NUMBERS = [1e9, 10**9, -1e9, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 5e-324, 2**31, 2**63, 10**400, 1.5, "1", True]
WORDS = ["<image>", "<vistok>", "<vistok>1-2</vistok>", "</s>", "<|im_end|>", "\ud83d", "\u202e", "{caption}", "a" * 3000, "\0", ""]
METHODS = ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "POST", "get", "FOO"]
PATHS = [
    "/v1/models/", "//v1/models", "/v1/../v1/models", "/..%2f..%2fetc/passwd", "/v1/%2e%2e/%2e%2e/etc/passwd", "/%00", "/docs",
    "/v1/models?a=%ff", "/v1/chat/completions/../../metrics", "http://127.0.0.1/v1/models", "/health/", "*", "/\u00e4", "/" + "a" * 70_000,
    "/v1/models#x", "/openapi.json", "/v1/models/../../etc/passwd",
]  # fmt: skip


JUNK = [
    b"", b"null", b"[" * 50_000, b'{"a":' * 9000, b"\xff\xfe", b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": "\\ud800"}', b"9" * 9000,
    b"\x1f\x8b",
]  # fmt: skip
BROKEN = ("short", "bad chunks", "both", "negative")  # kinds of framing that are no HTTP


class Canary(BaseHTTPRequestHandler):
    """A host of pictures: one, a redirect to another host, a compressed bomb, an endless one and one that breaks off."""

    server: "CanaryServer"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.hits += 1
        with contextlib.suppress(OSError):
            kind = self.path.strip("/")
            self.send_response(302 if kind == "redirect" else 200)
            if kind == "redirect":
                self.send_header("Location", self.server.forbidden)
            if kind == "gzip":
                self.send_header("Content-Encoding", "gzip")
            if kind == "broken":
                self.send_header("Content-Length", "5000")
            self.end_headers()
            content = {"gzip": BOMB, "picture": PNG, "endless": bytes(10 * BODY)}.get(kind, b"canary")
            self.wfile.write(content)


class CanaryServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host, forbidden=""):
        super().__init__((host, 0), Canary)
        self.hits, self.forbidden, self.url = 0, forbidden, f"http://{host}:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


def picture(kind="PNG", side=20):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(content, kind)
    return content.getvalue()


def png_of_zeros(width, height):
    """A PNG of one-bit pixels, all alike: small as a file, large when decoded."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(bytes((width // 8 + 2) * min(height, 3000)), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def data(content, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


PNG, BOMB = picture(), gzip.compress(bytes(5_000_000))


@dataclass
class Sent:
    """One request."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    framing: str = "length"
    leaves: str = ""  # When the client leaves: "", "before" the answer, or "after" its first bytes


@dataclass
class Target:
    """A running server with the limits above, and what is known of its model."""

    port: int
    ids: list[int]  # of a complete picture
    row: int  # ids of its first row
    outside: CanaryServer  # on the allowed host
    forbidden: CanaryServer
    statuses: Counter = field(default_factory=Counter)
    failures: defaultdict = field(default_factory=lambda: defaultdict(list))

    def urls(self, rng):
        """Return an address of a picture, mostly one that is refused."""
        port = self.forbidden.server_address[1]
        kinds = [
            lambda: data(picture(rng.choice(("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")), rng.choice((1, 20)))),
            lambda: data(mutate_bytes(picture(rng.choice(("PNG", "JPEG", "GIF", "WEBP", "TIFF"))), rng)),
            lambda: mutate_bytes(data(PNG).encode(), rng).decode(errors="replace"),
            lambda: data(b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "svg+xml"),
            lambda: data(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            lambda: data(png_of_zeros(*rng.choice(((60000, 60000), (2**31 - 1, 1), (1, 100_000), (3000, 3000))))),
            lambda: rng.choice(("file:///etc/passwd", "file://localhost/etc/passwd", "/etc/passwd", "../../etc/passwd", "ftp://127.0.0.1/a")),
            lambda: self.outside.url + rng.choice(("/picture", "/redirect", "/gzip", "/endless", "/broken", "/..%2fpicture", "/\u00e4")),
            lambda: rng.choice(("http://127.0.0.1:{}/", "http://localhost:{}/", "http://127.0.0.2@127.0.0.1:{}/", "http://0x7f000001:{}/",
                                "http://127.0.0.1:{}#@127.0.0.2", "http://127.0.0.1:{}\\@127.0.0.2/", "HTTP://127.0.0.1.:{}/", "http://[::1]:{}/",
                                "http://127.0.0.2.:{}/", "http://①②⑦.0.0.1:{}/", "http://127.1:{}/", "gopher://127.0.0.2:{}/")).format(port),
            lambda: rng.choice(("data:text/html;base64,AAAA", "data:image/png,AAAA", "data:image/png;base64,", "data:", "http://[", "")),
        ]  # fmt: skip
        return rng.choice(kinds)()

    def body(self, route, rng):
        """Return a valid body of a route, small enough to be answered soon."""
        if route.endswith("tokenize_image"):
            return {"url": self.urls(rng), **({"neighbours": 2} if rng.random() < 0.3 else {})}
        if route.endswith("decode_ids"):
            return {"ids": self.ids}
        sampled = {"seed": rng.randrange(9), "temperature": rng.choice((0, 0.5, 1)), "top_p": rng.choice((0.5, 1))}
        if route.endswith("generations"):
            more = {"n": rng.choice((1, 2)), "guidance": rng.choice((1, 2.5)), "top_k": rng.choice((0, 4)), "stream": rng.random() < 0.2}
            more |= rng.choice(({}, {}, {"given": self.ids[: self.row]}, {"compressed": self.ids}))
            return {"prompt": "a red circle", **sampled, **more}
        shown = rng.choice(({"image_url": {"url": self.urls(rng)}}, {"ids": self.ids}))
        content = [{"type": "text", "text": "how many"}, *[{"type": "image_url", **shown}] * rng.choice((0, 1, 1, 2))]
        turns = [{"role": "system", "content": "be brief"}] if rng.random() < 0.2 else []
        if rng.random() < 0.3:
            drawn = {"type": "image_url", "ids": self.ids}
            turns += [{"role": "user", "content": "draw"}, {"role": "assistant", "content": "here: <image>", "images": [drawn]}]
        more = {"stop": rng.choice(("e", ["th", "a long stop"]))} if rng.random() < 0.3 else {}
        return {
            "messages": [*turns, {"role": "user", "content": content}], "max_tokens": rng.choice((1, 5, 30, 60)),
            "stream": rng.random() < 0.3, **sampled, **more,
        }  # fmt: skip

    def make(self, number, seed):
        """Return request `number`."""
        rng = random.Random(f"{number} {seed}")
        route = rng.choice(["/v1/chat/completions"] * 4 + ["/v1/images/generations", "/v1/tokenize_image", "/v1/decode_ids", "/v1/models"])
        method, route = ("GET", rng.choice((route, "/health", "/metrics"))) if route == "/v1/models" else ("POST", route)
        headers = [("Host", "127.0.0.1"), ("Connection", "close")]
        value = self.body(route, rng)
        for _ in range(rng.choice((0, 0, 1, 2))):
            value = mutate_json(value, rng)
            if isinstance(value, dict) and value and rng.random() < 0.4:
                value = {**value, rng.choice([*value]): rng.choice([*NUMBERS, *WORDS, *VALUES, self.urls(rng)])}
        sent = Sent(method, route, headers, json.dumps(value).encode() if method == "POST" else b"")
        change = rng.random()
        if change < 0.08:
            sent.body = mutate_bytes(sent.body, rng)
        elif change < 0.11:
            sent.body = rng.choice(JUNK)
        elif change < 0.13:
            sent.body, sent.framing = b" " * rng.choice((BODY + 1, 3 * BODY)), rng.choice(("length", "chunked"))
        elif change < 0.18:
            sent.framing = rng.choice(("chunked", "none", "short", "both", "bad chunks", "negative"))
        elif change < 0.22:
            sent.method = rng.choice(METHODS)
        elif change < 0.26:
            sent.target = rng.choice(PATHS)
        keys = [f"Bearer {KEY}"] * 60 + ["", "Bearer", "Bearer wrong", KEY, f"Bearer {KEY} ", "Bearer \u00e4", "Basic c2VjcmV0"]
        headers += [("Authorization", rng.choice(keys)) for _ in range(rng.choice((1,) * 20 + (0, 2)))]
        headers += [
            (
                "Content-Type",
                rng.choice(["application/json"] * 20 + ["text/plain", "multipart/form-data", "application/json; charset=utf-16"]),
            )
        ]
        if rng.random() < 0.05:
            headers += [rng.choice((("Expect", "100-continue"), ("Content-Encoding", "gzip"), ("Host", "evil"), ("Upgrade", "websocket"),
                                    ("X" * 500, "y" * 70_000), ("Cookie", "\u00ff" * 99), ("X-A\r\n b", "c")))]  # fmt: skip
        sent.leaves = rng.choice(("",) * 24 + ("before", "after"))
        return sent

    def run(self, number, seed, *, show=False):
        """Send request `number` and check its answer."""
        sent = self.make(number, seed)
        try:
            status = exchange(self.port, sent)
        except Exception as error:
            status = "FAILED"
            kind = f"{type(error).__name__} {str(error)[:60]!r}"
            if not self.failures[kind]:
                print(f"case {number}: {error!s:.400}", file=sys.stderr, flush=True)
            self.failures[kind].append(f"--case {number} --seed {seed}: {sent.target[:40]} {error!s:.400}")
            if show:
                print(sent)
                raise
        self.statuses[f"{sent.target[:25]} {status}"] += 1


def exchange(port, sent):
    """Send a request; returns the status of its answer or a word for what came in its place. AssertionError: an answer that may not be."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        with contextlib.suppress(OSError):  # it refuses before all is there
            connection.sendall(encode(sent))
            if sent.framing == "short":
                connection.shutdown(socket.SHUT_WR)
        if sent.leaves == "before":
            return "left"
        if sent.leaves == "after":
            connection.settimeout(0.3)
            with contextlib.suppress(OSError):
                connection.recv(20)
            return "left"
        answer = http.client.HTTPResponse(connection, method=sent.method)
        try:
            answer.begin()
            content = answer.read()
        except (ConnectionResetError, http.client.HTTPException):
            assert len(sent.body) > BODY or sent.framing in BROKEN, "the connection was closed without an answer"
            return "closed"
        check(sent, answer, content.decode())
        return answer.status


def encode(sent):
    """Return the bytes of a request."""
    lines, body = [f"{sent.method} {sent.target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.headers)], sent.body
    parts = [body[start : start + 40_000] for start in range(0, len(body), 40_000)] + [b""]
    length = {"short": len(body) + 10, "negative": -1}.get(sent.framing, len(body))
    if sent.framing in ("length", "short", "negative", "both"):
        lines.append(f"Content-Length: {length}")
    if sent.framing in ("chunked", "both", "bad chunks"):
        lines.append("Transfer-Encoding: chunked")
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        body = b"zz\r\n" + body if sent.framing == "bad chunks" else chunks
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + (b"" if sent.framing == "none" else body)


def check(sent, answer, text):
    """AssertionError: an answer of another status or form than is documented, beyond the limits, or with inner matters in it."""
    status = answer.status
    assert status in DOCUMENTED, f"status {status}: {text[:300]}"
    assert not any(trace in text for trace in TRACES), f"inner matters: {text[:300]}"
    if sent.method in ("HEAD", "head"):
        return
    if status != 200:
        if not text.startswith("Invalid HTTP request"):  # uvicorn's own
            error = json.loads(text)["error"]
            assert error["code"] == status and error["message"].isprintable() and len(error["message"]) <= 1000, text[:300]
        return
    keys = [value for name, value in sent.headers if name == "Authorization"]
    assert sent.target.startswith("/health") or keys[-1:] in ([f"Bearer {KEY}"], [f"Bearer {KEY} "]), "an answer without the key"
    if answer.headers["Content-Type"].startswith("text/event-stream"):
        check_stream(text)
    elif sent.target.endswith("completions"):
        check_chat(text)
    elif sent.target.endswith("generations"):
        data = json.loads(text)["data"]
        assert 1 <= len(data) <= IMAGES
        for one in data:
            Image.open(io.BytesIO(base64.b64decode(one.get("b64_json") or one["url"].partition(",")[2]))).load()
    elif sent.target.endswith(("tokenize_image", "decode_ids", "models")):
        assert {"ids", "b64_json", "data"} & set(json.loads(text))


def check_chat(text):
    """AssertionError: no complete answer of a chat, or one beyond the limits."""
    found = json.loads(text)
    message = found["choices"][0]["message"]
    assert found["usage"]["completion_tokens"] <= TOKENS and len(message.get("images", [])) <= IMAGES
    assert found["choices"][0]["finish_reason"] in ("stop", "length") and isinstance(message["content"], str)


def check_stream(text):
    """AssertionError: events without their end, or beyond the limits."""
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]", f"a stream without its end: {text[-300:]}"
    last = json.loads(events[-2])
    if "error" in last:
        assert last["error"]["code"] in (400, 429, 504), events[-2]
    elif "type" in last:
        assert last["type"] == "image_generation.completed" and last["index"] < IMAGES
    else:
        assert last["choices"][0]["finish_reason"] in ("stop", "length") and last["usage"]["completion_tokens"] <= TOKENS


def fuzz(target, cases, *, seed=0, jobs=8):
    """Send requests from several clients at once."""
    with ThreadPoolExecutor(jobs) as threads:
        list(threads.map(lambda number: target.run(number, seed), cases))


def settled(server, seconds=60):
    """Whether no request is in work or waiting any more."""
    deadline = time.monotonic() + seconds
    while server._busy or getattr(server.engine, "_waiting", ()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def make_target(port, model):
    forbidden = CanaryServer("127.0.0.1")
    row_ids = model.images.row_ids.tolist()
    ids = (row_ids * model.layout.num_codes)[: model.layout.num_codes]
    return Target(port, ids, model.layout.row_length, CanaryServer(ALLOWED, forbidden.url), forbidden)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder of merge_lora, a small one that draws")
    parser.add_argument("--engine", default="", help="a llama.cpp or vLLM server of the model (default: our own engine)")
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=8, help="clients at once (default: %(default)s)")
    parser.add_argument("--case", type=int, help="only this one")
    args = parser.parse_args()
    from unicode.llm.load import open_model, open_without_weights
    from unicode.run.serve import listener
    from unicode.serve.engines import HttpEngine
    from unicode.serve.local import LocalEngine
    from unicode.serve.server import Limits, Server

    model = open_without_weights(args.model) if args.engine else open_model(args.model, device="cpu")
    engine = HttpEngine(args.engine, model) if args.engine else LocalEngine(model)
    server = Server(engine, name="tiny", limits=Limits(body=BODY, images=IMAGES, tokens=TOKENS), hosts=frozenset({ALLOWED}))
    logging.basicConfig(level=logging.WARNING)
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    threading.Thread(target=listener(server, key=KEY).run, args=([listening],), daemon=True).start()
    target = make_target(listening.getsockname()[1], model)
    if args.case is not None:
        target.run(args.case, args.seed, show=True)
    else:
        start = time.perf_counter()
        for first in range(args.first, args.first + args.cases, 1000):
            fuzz(target, range(first, min(first + 1000, args.first + args.cases)), seed=args.seed, jobs=args.jobs)
            memory = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
            print(first + 1000, f"{time.perf_counter() - start:.0f} s, {memory}, {threading.active_count()} threads", flush=True)
    for name, count in sorted(target.statuses.items()):
        print(f"{count:6d} {name!a}")
    for kind, cases in target.failures.items():
        print(f"{len(cases)} x {kind}; first: {cases[0]}")
    print(f"settled: {settled(server)}; requests to the forbidden host: {target.forbidden.hits}, to the allowed one: {target.outside.hits}")
    return 1 if target.failures or target.forbidden.hits else 0


if __name__ == "__main__":
    raise SystemExit(main())
