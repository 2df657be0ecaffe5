"""A merged tiny model, the same as a GGUF file behind a llama.cpp server, and a stand-in for vLLM that checks what it is asked."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from llama_server import llama_server

from unicode.llm.load import open_model, open_without_weights
from unicode.run.serve import listener
from unicode.serve.local import LocalEngine
from unicode.serve.server import Limits, Server


@pytest.fixture(scope="session")
def merged(tuned, tmp_path_factory):
    from unicode.run.merge_lora import main

    folder = tmp_path_factory.mktemp("served") / "merged"
    assert main([str(tuned.run), str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def gguf(merged):
    from unicode.run.export_gguf import main

    path = merged.with_name("model.gguf")
    assert main(["--model", str(merged), "--out", str(path), "--type", "f32"]) == 0
    return path


@pytest.fixture(scope="session")
def local(merged):
    return LocalEngine(open_model(merged, device="cpu"), batch_size=8)


@pytest.fixture(scope="session")
def described(merged):
    return open_without_weights(merged, device="cpu")


@pytest.fixture(scope="session")
def llama(gguf):
    with llama_server(gguf) as (url, _):
        yield url


@pytest.fixture(scope="session")
def make_server():
    """Starts a server on a thread: an engine -> its address and its `Server`."""
    started = []

    def make(engine, *, key="", hosts=(), **limits):
        server = Server(engine, name="tiny", limits=Limits(**limits), hosts=frozenset(hosts))
        runner = listener(server, key=key)
        listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=runner.run, args=([listening],), daemon=True).start()
        while not runner.started:
            time.sleep(0.01)
        started.append(runner)
        return f"http://127.0.0.1:{listening.getsockname()[1]}", server

    yield make
    for one in started:
        one.should_exit = True


class StandIn(BaseHTTPRequestHandler):
    """vLLM's routes as its documentation has them, answered by our own engine; every request is kept."""

    protocol_version = "HTTP/1.0"
    server: "VllmServer"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer({"data": [{"id": "tiny", "owned_by": self.server.owner, "max_model_len": 512}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, asked))
        if self.path == "/detokenize":
            encoder = self.server.encoder
            return self.answer({"prompt": encoder.decode([*asked["tokens"][: self.server.wrong], *asked["tokens"]])})
        if self.headers["Content-Type"] != "application/json":
            return self.answer({"error": {"message": "Unsupported Media Type: Only 'application/json' is allowed"}}, 400)
        if self.server.fails:
            return self.answer({"error": {"message": "no room"}}, self.server.fails)
        assert self.path == "/v1/completions" and asked["stream"] and asked["return_token_ids"] and asked["model"] == "tiny"
        self.send_response(200)
        self.end_headers()
        for number, token in enumerate(self.server.tokens[: asked["max_tokens"]]):
            if number == self.server.breaks_after:
                return None
            self.wfile.write(f"data: {json.dumps({'choices': [{'token_ids': [token], 'finish_reason': None}]})}\n\n".encode())
        self.wfile.write(b'data: {"choices": [{"token_ids": [], "finish_reason": "length"}]}\n\ndata: [DONE]\n\n')
        return None

    def answer(self, values, status=200):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(values).encode())


class VllmServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, encoder, port=0):
        super().__init__(("127.0.0.1", port), StandIn)
        self.encoder, self.owner, self.wrong, self.tokens, self.breaks_after, self.asked, self.fails = encoder, "vllm", 0, [], -1, [], 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def vllm(described):
    from unicode.llm.template import text_encoder

    started = []

    def make(port=0):
        started.append(VllmServer(text_encoder(described.text), port))
        return started[-1]

    yield make
    for one in started:
        one.shutdown()
        one.server_close()
