"""The judge's endpoint against a small server on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unicode.metrics.benchmarks.judged import Endpoint, JudgeError


class Server:
    """Answers chat completions from a list of (status, body) or, when that is empty, with `reply`."""

    def __init__(self):
        self.requests, self.planned, self.reply = [], [], "8 7\nfine"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, self.headers.get("Authorization"), body))
                good = json.dumps({"choices": [{"message": {"content": outer.reply}}]})
                status, text = outer.planned.pop(0) if outer.planned else (200, good)
                self.send_response(status)
                self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.close()


def make(server, tmp_path, **settings):
    return Endpoint(server.url, "judge-1", tmp_path / "sub" / "replies.jsonl", **{"wait": 0.001, "attempts": 3, **settings})


def test_request_and_reply(server, tmp_path):
    endpoint = make(server, tmp_path, key="secret")
    assert endpoint("rate this") == "8 7\nfine"
    path, authorization, body = server.requests[0]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0.2, 1024)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "rate this"
    assert "secret" not in repr(endpoint)
    assert "secret" not in endpoint.cache.read_text()


def test_a_local_server_needs_no_key(server, tmp_path):
    make(server, tmp_path)("x")
    assert server.requests[0][1] is None


def test_replies_are_kept_between_runs(server, tmp_path):
    make(server, tmp_path)("a")
    cache = tmp_path / "sub" / "replies.jsonl"
    cache.write_text(cache.read_text() + '{"request": "cut o')
    again = make(server, tmp_path)
    assert again("a") == "8 7\nfine"
    assert len(server.requests) == 1
    again("b")
    third = make(server, tmp_path)
    third("a"), third("b")
    assert len(server.requests) == 2
    Endpoint(server.url, "judge-2", cache)("a")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "bad",
    [(500, "oops"), (429, "slow down"), (200, "<html>"), (200, '{"choices": []}'), (200, '{"choices": [{"message": {"content": null}}]}')],
)
def test_passing_failures_are_tried_again(server, tmp_path, bad):
    server.planned = [bad, bad]
    assert make(server, tmp_path)("x") == "8 7\nfine"
    assert len(server.requests) == 3


def test_lasting_failures_name_the_remedy(server, tmp_path):
    server.planned = [(500, "oops")] * 3
    with pytest.raises(JudgeError, match=r"did not answer in 3 attempts, at last: HTTP 500: oops; check OPENAI_BASE_URL"):
        make(server, tmp_path)("x")


def test_a_refusal_is_not_repeated(server, tmp_path):
    server.planned = [(401, "who are you")]
    with pytest.raises(JudgeError, match=r"refused model 'judge-1': HTTP 401: who are you; check OPENAI_API_KEY"):
        make(server, tmp_path)("x")
    assert len(server.requests) == 1


def test_nobody_listens(tmp_path, server):
    endpoint = make(server, tmp_path)
    endpoint.base_url = "http://127.0.0.1:9/v1"
    with pytest.raises(JudgeError, match="did not answer in 3 attempts"):
        endpoint("x")


def test_many_threads(server, tmp_path):
    endpoint = make(server, tmp_path)
    threads = [threading.Thread(target=endpoint, args=(f"p{n}",)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((tmp_path / "sub" / "replies.jsonl").read_text().splitlines()) == 20
    fresh = make(server, tmp_path)
    assert all(fresh(f"p{n}") for n in range(20))
    assert len(server.requests) == 20


def test_cost_estimate(server, tmp_path):
    endpoint = make(server, tmp_path, prices=(2.0, 10.0))
    endpoint("a" * 400)
    estimate = endpoint.estimate(["a" * 400, "b" * 4000, "c" * 4000])
    assert (estimate.requests, estimate.cached, estimate.reply_tokens) == (2, 1, 2048)
    assert 2000 < estimate.prompt_tokens < 2100
    assert estimate.price == pytest.approx((estimate.prompt_tokens * 2 + 2048 * 10) / 1e6)
    assert "2 requests to the judge (1 replies are there already)" in estimate.describe()
    assert "prices unknown" in make(server, tmp_path).estimate(["x"]).describe()


def test_from_the_environment(monkeypatch, tmp_path):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "JUDGE_MODEL", "JUDGE_PRICE_IN", "JUDGE_PRICE_OUT"):
        monkeypatch.delenv(name, raising=False)
    cache = tmp_path / "replies.jsonl"
    assert Endpoint.from_environment(cache) is None
    monkeypatch.setenv("OPENAI_BASE_URL", "http://judge.test/v1")
    with pytest.raises(ValueError, match="Set JUDGE_MODEL"):
        Endpoint.from_environment(cache)
    monkeypatch.setenv("JUDGE_MODEL", "m")
    monkeypatch.setenv("JUDGE_PRICE_IN", "1")
    monkeypatch.setenv("JUDGE_PRICE_OUT", "cheap")
    with pytest.raises(ValueError, match="expected prices per million tokens"):
        Endpoint.from_environment(cache)
    monkeypatch.setenv("JUDGE_PRICE_OUT", "2")
    endpoint = Endpoint.from_environment(cache, model="n")
    assert endpoint is not None
    assert (endpoint.model, endpoint.prices) == ("n", (1.0, 2.0))
    monkeypatch.setenv("OPENAI_BASE_URL", "judge.test")
    with pytest.raises(ValueError, match=r"address is 'judge.test'; set OPENAI_BASE_URL"):
        Endpoint.from_environment(cache)
