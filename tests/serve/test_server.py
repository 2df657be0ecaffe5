"""The HTTP server, asked by OpenAI's own client and by what is no client: the engine's answers, limits, refusals, its end."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import httpx
import numpy as np
import openai
import pytest
from bench.serve_load import ask, load
from PIL import Image
from warm import free_port, start

from unicode.annotations.templates import DECOMPRESSION, TEMPLATES
from unicode.generate.chat import Assistant
from unicode.generate.images import FREE_QUESTION, DrawRequest, ImageSampler
from unicode.generate.sampling import GREEDY
from unicode.ids.text import write_run
from unicode.llm.template import text_encoder
from unicode.run.serve import main
from unicode.serve.engines import HttpEngine

KEY = "secret"


def png(seed=0, side=20, kind="PNG"):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def url(content, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def question(words, *images):
    return {
        "role": "user",
        "content": [{"type": "text", "text": words}, *({"type": "image_url", "image_url": {"url": one}} for one in images)],
    }


@pytest.fixture(scope="module")
def served(make_server, local):
    return make_server(local, key=KEY, images=3, tokens=200, body=200_000)


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def raw(served):
    return httpx.Client(base_url=served[0], headers={"Authorization": f"Bearer {KEY}"}, timeout=60)


@pytest.fixture(scope="module")
def assistant(local):
    return Assistant(local.model)


def test_answers_are_those_of_the_model(client, local):
    model = local.model
    (ids,) = model.read_pictures(model.picture(png())[None])
    for words, images in (("how many", []), ("is it blue?", [url(png())])):
        said = client.chat.completions.create(model="tiny", messages=[question(words, *images)], max_tokens=30)
        prompt = model.prompt([words + "<image>" * len(images)], [ids] * len(images))
        assert said.usage.prompt_tokens == len(prompt) and said.usage.completion_tokens <= 30
        assert said.choices[0].finish_reason in ("stop", "length") and said.choices[0].message.role == "assistant"
        again = client.chat.completions.create(model="tiny", messages=[question(words, *images)], max_tokens=30)
        assert again.choices[0].message == said.choices[0].message


def test_streams_are_the_answers_piece_by_piece(client):
    for seed in range(3):
        asked = {"model": "tiny", "messages": [question("a red circle")], "max_tokens": 80, "temperature": 1.0, "seed": seed}
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        assert len(chunks) > 5 and chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
        images = [one for chunk in chunks for one in getattr(chunk.choices[0].delta, "images", None) or []]
        assert images == (getattr(whole.choices[0].message, "images", None) or [])


def test_conversations_keep_pictures_by_their_ids(client, local):
    seen = {"role": "system", "content": question("as this:", url(png(2)))["content"]}
    asked = question("draw", url(png(1)))
    assert client.chat.completions.create(model="tiny", messages=[seen, asked], max_tokens=1).usage.prompt_tokens > 44
    first = client.chat.completions.create(model="tiny", messages=[asked], max_tokens=90, temperature=1.0, seed=3)
    message = first.choices[0].message.model_dump()
    assert message["content"].count("<image>") == len(message.get("images") or []) > 0, "another seed for a test with pictures"
    said = client.chat.completions.create(
        model="tiny",
        max_tokens=5,
        messages=[{"role": "system", "content": "be brief"}, question("draw", url(png(1))), message, question("how many")],
    )
    ids = np.array(message["images"][0]["ids"])
    assert ids.shape == (20,) and np.isin(ids, local.model.images.row_ids).all()
    assert said.usage.prompt_tokens > first.usage.total_tokens - 10


def test_pictures_are_drawn_as_by_the_model(client, raw, assistant):
    for given in ({"guidance": 1.5}, {"candidates": 3}):
        drawn = client.images.generate(prompt="a red circle", n=2, extra_body={"seed": 4, **given})
        for number, one in enumerate(drawn.data):
            found = Image.open(io.BytesIO(base64.b64decode(one.b64_json)))
            assert found.tobytes() == assistant.draw("a red circle", seed=4 + number, **given).tobytes()
    ids = raw.post("/v1/tokenize_image", json={"url": url(png(2))}).json()["ids"]
    assert ids == assistant.model.read_pictures(assistant.model.picture(png(2))[None])[0].tolist()
    picture = base64.b64decode(raw.post("/v1/decode_ids", json={"ids": ids}).json()["b64_json"])
    assert Image.open(io.BytesIO(picture)).size == (16, 16)


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_pictures_are_completed_and_decompressed_as_by_the_model(raw, local):
    model = local.model
    ids = raw.post("/v1/tokenize_image", json={"url": url(png(2))}).json()["ids"]
    asked = {"given": ids[: model.layout.row_length], "seed": 5, "n": 2}
    drawn = raw.post("/v1/images/generations", json=asked).json()["data"]
    requests = [DrawRequest(FREE_QUESTION, seed=seed, given=np.array(asked["given"])) for seed in (5, 6)]
    assert [one["ids"] for one in drawn] == [one.ids.tolist() for one in ImageSampler(model).draw(requests)]
    streamed = events(raw.post("/v1/images/generations", json={**asked, "stream": True}))
    assert [one["ids"] for one in sorted(streamed, key=lambda one: one["index"]) if "b64_json" in one] == [one["ids"] for one in drawn]
    assert [one["ids"] for one in streamed if one["index"] == 1 and "of" in one] == list(range(len(asked["given"]) + 1, 21))
    (whole,) = raw.post("/v1/images/generations", json={"compressed": ids}).json()["data"]
    question = TEMPLATES[DECOMPRESSION][0].format(ids=write_run(ids))
    (expected,) = ImageSampler(model, sampling=GREEDY).draw([DrawRequest(question, compressed=True)])
    assert whole["ids"] == expected.ids.tolist()


def test_the_words_of_a_picture(raw, local):
    model, codebooks = local.model, local.model.images.codebooks
    found = raw.post("/v1/tokenize_image", json={"url": url(png(2)), "neighbours": 3}).json()
    assert [one["id"] for one in found["words"]] == found["ids"]
    assert [one["level"] for one in found["words"]] == model.layout.levels().tolist()
    for one in found["words"]:
        rows, code = codebooks[one["level"]].rows, model.images.row_ids.tolist().index(one["id"])
        nearest = (rows - rows[code]).norm(dim=1).argsort()[1:4]
        assert [near["id"] for near in one["neighbours"]] == model.images.row_ids[nearest].tolist()
        assert [near["text"] for near in [one, *one["neighbours"]]] == [
            text_encoder(model.text).decode([near["id"]]) for near in [one, *one["neighbours"]]
        ]


def test_many_clients_get_the_answers_that_they_get_alone(client):
    def ask(number):
        said = client.chat.completions.create(
            model="tiny", messages=[question("how many " * (number % 7 + 1), url(png(number)))], max_tokens=12
        )
        return said.choices[0].message.content

    alone = [ask(number) for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(ask, [*range(12)] * 3)) == alone * 3


def test_the_script_of_the_readme_runs(make_server, local, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (example,) = (block for block in blocks if "import OpenAI" in block)
    assert example.count("\n") <= 25
    monkeypatch.chdir(tmp_path)
    (tmp_path / "back.png").write_bytes(png())
    address, _ = make_server(local)
    exec(compile(example.replace("http://127.0.0.1:8000", address), "README.md", "exec"), {"__name__": "example"})
    assert [Image.open(tmp_path / f"drawn_{number}.png").size for number in range(2)] == [(16, 16)] * 2
    answer, _, streamed = capsys.readouterr().out.rstrip("\n").partition("\n")
    assert answer and answer == streamed.split("\n")[0]


def test_a_stop_text_is_looked_for_in_words_and_not_in_the_ids_of_pictures(client):
    asked = {"model": "tiny", "messages": [question("draw", url(png(1)))], "max_tokens": 90, "temperature": 1.0, "seed": 3}
    free = client.chat.completions.create(**asked).choices[0].message
    for stop in ("-", "1", "</vistok>", "a text that never comes"):
        said = client.chat.completions.create(**asked, stop=stop).choices[0].message
        words = free.content.partition(stop)[0].rstrip()
        assert said.content == words and said.images == free.images[: words.count("<image>")], stop
        chunks = list(client.chat.completions.create(**asked, stop=stop, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == words


SVG = url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg+xml")
REFUSED = [
    ({"model": "other"}, 404, "no model 'other' here; this server has 'tiny'"),
    ({"messages": []}, 400, "messages: "),
    ({"max_tokens": 10**9}, 400, "1000000000 tokens are asked for; this server writes at most 200"),
    ({"temperature": float("nan")}, 400, "temperature: Input should be"),
    ({"temperature": -1}, 400, "temperature: "),
    ({"seed": 2**70}, 400, "seed: "),
    ({"n": 2}, 400, "n: "),
    ({"messages": [question("what?", url(png())[:-20] + "!")]}, 400, "the data URL of an image is damaged"),
    ({"messages": [question("what?", url(png()[:200]))]}, 400, "an image cannot be read: "),
    ({"messages": [question("what?", SVG)]}, 400, "an image cannot be read: "),
    ({"messages": [question("what?", *[url(png())] * 4)]}, 400, "the request has 4 images; this server takes 3"),
    ({"messages": [question("what?", "http://127.0.0.1:1/a.png")]}, 400, "images are not fetched from 'http://127.0.0.1:1/a.png'"),
    ({"messages": [question("what?", "file:///etc/passwd")]}, 400, "images are not fetched from"),
    ({"messages": [question("how many " * 400)]}, 400, "shorten it"),
    ({"messages": [question("an <image> of?")]}, 400, "a message has 1 <image> for 0 images"),
    ({"messages": [question("what?", url(png())), {"role": "assistant", "content": "a"}] * 4}, 400, "the request has 4 images"),
    ({"messages": [question("a"), {"role": "assistant", "content": "b"}] * 300}, 400, "cannot fit into the context of 512 tokens"),
    ({"messages": [question("a" * 90_000)]}, 400, "1 texts of 90000 characters cannot fit into the context"),
    ({"messages": [question("half a character \ud83d")]}, 400, "surrogates not allowed"),
    ({"messages": [question("<vistok>2-2-2</vistok>")]}, 400, "a text holds a run of ids"),
    ({"stop": ["a"] * 5}, 400, "stop."),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, 400, "beginning with the user"),
    ({"messages": [question("a"), {"role": "assistant", "content": "b"}]}, 400, "the last message is not the user's"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "ids": [1, 2]}]}]}, 400, "2 ids are no picture of this model"),
]


@pytest.mark.parametrize(("change", "status", "message"), REFUSED, ids=[entry[2][:30] for entry in REFUSED])
def test_what_is_refused_says_why(raw, change, status, message):
    body = json.dumps({"messages": [question("what?")], "max_tokens": 3, **change})
    for stream in (False, True):
        content = body[:-1] + f', "stream": {json.dumps(stream)}}}'
        found = raw.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
        assert found.status_code == status and message in found.json()["error"]["message"], found.text
        assert "Traceback" not in found.text


def test_other_refusals(raw, served, make_server, local):
    for path, body, status, message in (
        ("/v1/images/generations", {"prompt": " "}, 400, "the prompt is empty"),
        ("/v1/images/generations", {"prompt": "a", "size": "1024x1024"}, 400, "this model draws 16x16"),
        ("/v1/images/generations", {"prompt": "a", "n": 9}, 400, "at most 3 at a time"),
        ("/v1/images/generations", {"prompt": "a", "given": [1] * 7}, 400, "7 ids are no first rows of 10 ids each"),
        ("/v1/images/generations", {"compressed": [1] * 20, "stream": True}, 400, "20 ids are no picture of this model"),
        ("/v1/tokenize_image", {"url": url(png()), "neighbours": 99}, 400, "neighbours: "),
        ("/v1/images/generations", {"prompt": "a <vistok>1-2</vistok>"}, 400, "a text holds a run of ids"),
        ("/v1/models/", {}, 404, "Not Found"),
        ("/v1/decode_ids", {"ids": [1] * 20}, 400, "20 ids are no picture of this model"),
        ("/v1/tokenize_image", {"url": "x" * 300_000}, 413, "the body is larger than 200000 bytes"),
        ("/v1/nothing", {}, 404, "Not Found"),
    ):
        found = raw.post(path, json=body)
        assert (found.status_code, message in found.json()["error"]["message"]) == (status, True), found.text
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        found = httpx.get(f"{served[0]}/v1/models", headers=headers)
        assert found.status_code == 401 and "API key is missing or wrong" in found.json()["error"]["message"]
    assert httpx.get(f"{served[0]}/health").json() == {"status": "ok"}
    text = raw.get("/metrics").text
    assert 'unicode_requests_total{route="/v1/images/generations",status="400"}' in text and "unicode_request_seconds_bucket" in text
    assert raw.get("/v1/models").json()["data"][0]["id"] == "tiny"


class SlowEngine:
    """An engine that writes one token each 20 ms until it is told to stop."""

    def __init__(self, model):
        self.model, self.context, self.kinds, self.stopped = model, 512, ["slow"], 0

    def write(self, prompt, options, emit):
        for number in range(1, 500):
            time.sleep(0.02)
            if not emit([20] * number):
                self.stopped += 1
                break
        raise ConnectionError("no engine is left")


def test_a_full_queue_the_time_limit_and_clients_that_leave(make_server, local):
    engine = SlowEngine(local.model)
    address, _ = make_server(engine, queue=2, seconds=1)
    body = {"messages": [question("what?")], "max_tokens": 9}
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30), range(3)))
    assert sorted(one.status_code for one in found) == [429, 504, 504]
    assert "2 requests are in work" in next(one for one in found if one.status_code == 429).json()["error"]["message"]
    with httpx.stream("POST", f"{address}/v1/chat/completions", json={**body, "stream": True}) as response:
        next(response.iter_lines())
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.2)
    deadline = time.monotonic() + 5
    while engine.stopped < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.stopped == 4


def test_the_same_answers_through_llama_cpp(make_server, llama, described, client):
    address, _ = make_server(HttpEngine(llama, described))
    through = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    asked = {"model": "tiny", "messages": [question("how many?", url(png()))], "max_tokens": 15}
    assert through.chat.completions.create(**asked).choices[0].message == client.chat.completions.create(**asked).choices[0].message
    with pytest.raises(openai.BadRequestError, match=r"guidance 2.0 needs .* only our own engine can"):
        through.images.generate(prompt="a", extra_body={"guidance": 2.0})
    assert (
        through.images.generate(prompt="a", extra_body={"top_k": 1}).data
        == client.images.generate(prompt="a", extra_body={"top_k": 1}).data
    )


def start_command(words, log, **environment):
    served, port = start("serve", *words, "--device", "cpu", log=log, **environment), words[words.index("--port") + 1]
    for _ in range(1200):
        with contextlib.suppress(httpx.ConnectError):
            assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=60).status_code == 200
            break
        time.sleep(0.05)
    return served


def test_a_killed_server_gives_errors_and_never_wrong_answers(merged, tmp_path):
    words, half_way = ["--model", merged, "--port", free_port()], Event()
    first = start_command(words, tmp_path / "first")
    again = []

    def kill_later():
        half_way.wait()
        first.process.kill()
        first.process.join()
        again.append(start_command(words, tmp_path / "again"))

    with httpx.Client(base_url=f"http://127.0.0.1:{words[-1]}", timeout=60) as asking:
        alone = [ask(asking, number) for number in range(60)]
        killer = Thread(target=kill_later)
        killer.start()
        found = load(asking, 60, 8, half_way=half_way)
        killer.join()
    again[0].process.kill()
    assert sum(one.errors for one in found) > 0 and {one.status for one in found} == {200, 400}
    assert all(one.same(other) for one, other in zip(found, alone, strict=True))


def test_the_command_finishes_what_runs_when_it_is_told_to_end(merged, tmp_path, capsys):
    port = free_port()
    words = ["--model", merged, "--port", port]
    served = start_command(words, tmp_path / "log", UNICODE_API_KEY=KEY)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}) as asking:
        assert main([str(word) for word in words]) == 2 and f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err
        body = {"messages": [question("how many")], "max_tokens": 400, "stream": True}
        with asking.stream("POST", "/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            first = next(lines)
            os.kill(served.process.pid, signal.SIGTERM)
            rest = [line for line in lines if line]
        assert first.startswith("data: ") and rest[-1] == "data: [DONE]" and '"finish_reason": "' in rest[-2]
    assert served.wait(30) in (0, -signal.SIGTERM) and "Traceback" not in served.printed, served.printed
