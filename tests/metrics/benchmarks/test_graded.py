"""LLaVA-Bench and MM-Vet, and the grader against a small server on this machine."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unicode.metrics.benchmarks.base import Options
from unicode.metrics.benchmarks.graded import (
    DEFAULT_RULES,
    SYSTEM_PROMPT,
    Grader,
    GraderError,
    Llavabench,
    Mmvet,
    Review,
    Rule,
    grade_all,
    grading_prompt,
    summarize,
    summarize_as_llava,
)


def test_prompt():
    text = grading_prompt(context="C", question="Q", reference="R", candidate="K", rule=Rule("Assistant", "P"))
    assert text == (
        "[Context]\nC\n\n[Question]\nQ\n\n[Assistant 1]\nR\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nK\n\n[End of Assistant 2]\n\n[System]\nP\n\n"
    )  # fmt: skip


def test_rules_of_our_own():
    assert set(DEFAULT_RULES) == {"conv", "detail", "complex"}
    assert len({rule.prompt for rule in DEFAULT_RULES.values()}) == 3


@pytest.mark.parametrize(
    ("reply", "pair"),
    {
        "8 7\nBecause": (8, 7), "8,7": (8, 7), "8, 7": (8, 7), "8.5 9 ": (8.5, 9), "8": None, "8 7 6": None,
        "Scores: 8 7": None, "": None, "\n8 7": None, "nan 7": None, "inf 1": None,
    }.items(),
)  # fmt: skip
def test_scores(reply, pair):
    assert Review("1", "conv", reply).pair == pair


def reviews_of(*pairs):
    return [Review(str(n), category, reply) for n, (category, reply) in enumerate(pairs)]


def test_summary_leaves_unparsed_replies_out():
    reviews = reviews_of(("conv", "8 4"), ("conv", "10 7\nx"), ("detail", "no idea"), ("complex", "5,10"))
    values = summarize(reviews)
    assert values["conv"] == {"relative": pytest.approx(1100 / 18), "reference_x10": 90, "candidate_x10": 55, "reviews": 2}
    assert values["all"]["relative"] == pytest.approx(2100 / 23)
    assert "detail" not in values
    assert summarize_as_llava(reviews)["all"] == round(round(20 / 4, 3) / round(22 / 4, 3) * 100, 1)
    assert summarize_as_llava(reviews)["detail"] == 100.0


def test_llava_loses_a_comma_with_a_space():
    assert summarize_as_llava(reviews_of(("conv", "8, 4")))["conv"] == 100.0
    assert summarize(reviews_of(("conv", "8, 4")))["conv"]["relative"] == 50


def test_no_reviews():
    assert summarize([])["all"]["relative"] is None
    assert summarize_as_llava([]) == {"all": None}


@pytest.mark.parametrize("workers", [1, 3])
def test_asking_stops_at_an_error_and_keeps_what_came(workers):
    asked = []
    lock = threading.Lock()

    def ask(prompt):
        with lock:
            asked.append(prompt)
        if prompt == "p3":
            raise GraderError("down")
        return "8 4"

    reviews, error = grade_all({str(n): ("conv", f"p{n}") for n in range(9)}, ask, workers=workers)
    assert isinstance(error, GraderError)
    assert len(asked) == (4 if workers == 1 else 6)
    assert [review.key for review in reviews] == [p[1:] for p in sorted(asked) if p != "p3"]


FOLDER = "llava-bench-in-the-wild"
BENCH = Llavabench()


def put_bench(put):
    questions = [
        {"question_id": n, "image": f"00{n % 2}.jpg", "text": f"Q{n}?", "category": category}
        for n, category in enumerate(("conv", "detail", "complex", "conv"))
    ]
    put(f"{FOLDER}/questions.jsonl", questions)
    put(
        f"{FOLDER}/context.jsonl",
        [{"id": "000", "image": "000.jpg", "caption": "a cat"}, {"image": "001.jpg", "caption": ["two", "lines"]}],
    )
    # the references come in another order: they are found by id
    put(f"{FOLDER}/answers_gpt4.jsonl", [{"question_id": n, "text": f"R{n}"} for n in (3, 1, 0, 2)])
    return [{"question_id": n, "text": f"K{n}", "prompt": f"Q{n}?"} for n in range(4)]


def test_judged(put, score):
    records = put_bench(put)
    asked = []

    def ask(prompt):
        asked.append(prompt)
        return ["8 4\nok", "10 5", "I would rather not", "8 8"][len(asked) - 1]

    result = score(BENCH, records, grade=ask, grader_name="judge-1")
    assert "[Context]\na cat\n\n[Question]\nQ0?\n\n[Assistant 1]\nR0\n\n" in asked[0]
    assert "[Context]\ntwo\nlines\n" in asked[1]
    assert "[Assistant 2]\nK3\n" in asked[3]
    assert result.headline == pytest.approx(1700 / 26)
    assert result.values["conv"]["relative"] == pytest.approx(75)
    assert result.num_unparsed == 1
    assert result.unit == "% of the reference, judge judge-1"
    reviews = [json.loads(line) for line in result.files["reviews.jsonl"].splitlines()]
    assert [review["tuple"] for review in reviews] == [[8, 4], [10, 5], None, [8, 8]]
    assert reviews[2]["category"] == "llava_bench_complex"
    assert any("1 of 4 replies have no two scores" in note for note in result.notes)


def test_without_a_judge_nothing_is_invented(put, score):
    result = score(BENCH, put_bench(put))
    assert result.headline is None
    assert result.values == {"requests": 4}
    assert any("set OPENAI_BASE_URL" in note for note in result.notes)


def test_the_judge_goes_down_on_the_way(put, score):
    replies = iter(["8 4", "8 8"])

    def ask(_):
        try:
            return next(replies)
        except StopIteration:
            raise GraderError("the judge is down") from None

    result = score(BENCH, put_bench(put), grade=ask)
    assert result.headline is None
    assert result.values["judged"] == 2
    assert any("stopped after 2 of 4 questions: the judge is down" in note for note in result.notes)
    assert len(result.files["reviews.jsonl"].splitlines()) == 2


def test_rules_of_llava_are_taken_where_they_are(put, score):
    records = put_bench(put)
    put(
        f"{FOLDER}/rule.json",
        {f"llava_bench_{name}": {"role": "Helper", "prompt": f"judge {name}"} for name in ("conv", "detail", "complex")},
    )
    asked = []
    result = score(BENCH, records, grade=lambda prompt: asked.append(prompt) or "1 1")
    assert asked[1].endswith("[End of Helper 2]\n\n[System]\njudge detail\n\n")
    assert "LLaVA's rule.json" in result.protocol
    put(f"{FOLDER}/rule.json", {"coding": {}})
    with pytest.raises(ValueError, match="has not the three llava_bench rules"):
        score(BENCH, records)


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("context.jsonl", [{"image": "000.jpg", "caption": "x"}], "question 1 .* has no context"),
        ("answers_gpt4.jsonl", [{"question_id": 0, "text": "x"}], "question 1 .* has no reference answer"),
        ("context.jsonl", [{"image": "000.jpg"}], "record 1 has no image and caption"),
    ],
)
def test_incomplete_data(put, score, name, records, message):
    answers = put_bench(put)
    put(f"{FOLDER}/{name}", records)
    with pytest.raises(ValueError, match=message):
        score(BENCH, answers)


def test_missing_files(score):
    assert sum("is not there: download the data set" in note for note in score(BENCH, []).notes) == 3


def test_mmvet(put, score, tmp_path):
    put("mm-vet/llava-mm-vet.jsonl", [{"question_id": n, "image": f"v1_{n}.png", "text": f"Q{n}"} for n in range(3)])
    assert Mmvet().read_questions(tmp_path, Options())[2].image == "v1_2.png"
    result = score(Mmvet(), [{"question_id": 2, "text": "two"}, {"question_id": 0, "text": "zero"}])
    assert json.loads(result.files["mm-vet.json"]) == {"v1_0": "zero", "v1_2": "two"}
    assert (result.headline, result.num_expected, result.num_answered) == (None, 3, 2)
    (tmp_path / "mm-vet/llava-mm-vet.jsonl").unlink()
    assert json.loads(score(Mmvet(), [{"question_id": 1, "text": "x"}]).files["mm-vet.json"]) == {"v1_1": "x"}


class Server:
    """Answers chat completions from a list of (status, body) or, when that is empty, with `reply`."""

    def __init__(self):
        self.requests, self.planned, self.reply, self.location = [], [], "8 7\nfine", ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, self.headers.get("Authorization"), body))
                good = json.dumps({"choices": [{"message": {"content": outer.reply}}]})
                status, text = outer.planned.pop(0) if outer.planned else (200, good)
                self.send_response(status)
                self.send_header("Content-Type", "application/json" if text.startswith("{") else "text/html")
                self.send_header("Retry-After-Ms", "1")
                self.send_header("Location", outer.location)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
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
    return Grader(server.url, "judge-1", tmp_path / "sub" / "replies.jsonl", **{"attempts": 3, **settings})


def test_request_and_reply(server, tmp_path):
    grader = make(server, tmp_path, key="secret")
    assert grader("rate this") == "8 7\nfine"
    path, authorization, body = server.requests[0]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0.2, 1024)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "rate this"
    assert "secret" not in repr(grader)
    assert "secret" not in grader.cache.read_text()


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
    Grader(server.url, "judge-2", cache)("a")
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
    with pytest.raises(GraderError, match=r"did not answer in 3 attempts, at last: HTTP 500: oops; check OPENAI_BASE_URL"):
        make(server, tmp_path)("x")


def test_a_refusal_is_not_repeated(server, tmp_path):
    server.planned = [(401, "who are you")]
    with pytest.raises(GraderError, match=r"refused model 'judge-1': HTTP 401: who are you; check OPENAI_API_KEY"):
        make(server, tmp_path)("x")
    assert len(server.requests) == 1


def test_nobody_listens(server, tmp_path):
    grader = make(server, tmp_path, attempts=1)
    grader.base_url = "http://127.0.0.1:9/v1"
    with pytest.raises(GraderError, match="did not answer in 1 attempts"):
        grader("x")


def test_the_key_does_not_follow_a_redirect(server, tmp_path):
    other = Server()
    try:
        server.planned, server.location = [(307, "")], f"{other.url.replace('127.0.0.1', 'localhost')}/chat/completions"
        with pytest.raises(GraderError, match="HTTP 307"):
            make(server, tmp_path, key="secret")("x")
        assert len(server.requests) == 1
        assert not other.requests
    finally:
        other.close()


def test_errors_show_no_credentials(server, tmp_path):
    server.planned = [(401, "wrong key secret")]
    grader = make(server, tmp_path, key="secret")
    address = grader.base_url.replace("http://", "http://user:password@")
    with pytest.raises(GraderError, match=r"at http://127.0.0.1:\d+/v1 refused .* wrong key \*\*\*;"):
        Grader(address, "judge-1", grader.cache, key="secret")("x")
    with pytest.raises(ValueError, match=r"address is 'ftp://host/v1'"):
        Grader("ftp://user:password@host/v1?key=secret", "judge-1", grader.cache)


@pytest.mark.parametrize(("url", "warns"), [("http://grader.test/v1", True), ("https://grader.test/v1", False), ("http://[::1]/v1", False)])
def test_a_remote_address_without_encryption_is_warned_about(url, warns, tmp_path, caplog):
    Grader(url, "judge-1", tmp_path / "replies.jsonl")
    assert ("not encrypted" in caplog.text) == warns


def test_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"pip install 'unicode-mllm\[judge\]'"):
        Grader("https://grader.test/v1", "judge-1", tmp_path / "replies.jsonl")


def test_many_threads(server, tmp_path):
    grader = make(server, tmp_path)
    threads = [threading.Thread(target=grader, args=(f"p{n}",)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((tmp_path / "sub" / "replies.jsonl").read_text().splitlines()) == 20
    fresh = make(server, tmp_path)
    assert all(fresh(f"p{n}") for n in range(20))
    assert len(server.requests) == 20


def test_cost_estimate(server, tmp_path):
    grader = make(server, tmp_path, prices=(2.0, 10.0))
    grader("a" * 400)
    text = grader.describe_cost(["a" * 400, "b" * 4000, "c" * 4000])
    tokens = (8000 + 2 * len(SYSTEM_PROMPT)) // 4
    assert f"2 requests to the grader (1 replies are there already), about {tokens} tokens" in text
    assert f"at most 2048 of replies: at most {(tokens * 2 + 2048 * 10) / 1e6:.2f}" in text
    assert "prices unknown" in make(server, tmp_path).describe_cost(["x"])


def test_from_the_environment(monkeypatch, tmp_path):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "JUDGE_MODEL", "JUDGE_PRICE_IN", "JUDGE_PRICE_OUT"):
        monkeypatch.delenv(name, raising=False)
    cache = tmp_path / "replies.jsonl"
    assert Grader.from_environment(cache) is None
    monkeypatch.setenv("OPENAI_BASE_URL", "http://judge.test/v1")
    with pytest.raises(ValueError, match="Set JUDGE_MODEL"):
        Grader.from_environment(cache)
    monkeypatch.setenv("JUDGE_MODEL", "m")
    monkeypatch.setenv("JUDGE_PRICE_IN", "1")
    monkeypatch.setenv("JUDGE_PRICE_OUT", "cheap")
    with pytest.raises(ValueError, match="expected prices per million tokens"):
        Grader.from_environment(cache)
    monkeypatch.setenv("JUDGE_PRICE_OUT", "2")
    grader = Grader.from_environment(cache, model="n")
    assert grader is not None
    assert (grader.model, grader.prices) == ("n", (1.0, 2.0))
    monkeypatch.setenv("OPENAI_BASE_URL", "judge.test")
    with pytest.raises(ValueError, match=r"address is 'judge.test'; set OPENAI_BASE_URL"):
        Grader.from_environment(cache)
