"""Engines over HTTP: the ids of our own engine, requests as the servers document them, and servers that fail or are of another model."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from llama_server import llama_server

from unicode.generate.answers import AnswerConfig, answer_questions
from unicode.generate.images import Drawing, DrawRequest, ImageSampler, caption_request
from unicode.generate.questions import AskedQuestion
from unicode.generate.sampling import GREEDY, Sampling
from unicode.llm.load import open_model, open_without_weights
from unicode.serve import engines
from unicode.serve.engines import EngineSampler, HttpEngine, WriteOptions, answer_with
from unicode.serve.local import LocalEngine

WORDS = ["how many", "a red circle", "blue things are there ?", "two", "is the square green", "top left of"]


@pytest.fixture(scope="module")
def over_http(llama, described):
    return HttpEngine(f"{llama}/v1/", described)


def test_pictures_of_llama_cpp_are_ours_id_for_id(over_http, local):
    requests = [caption_request(words) for words in WORDS]
    requests += [replace(requests[0], given=ImageSampler(local.model).draw(requests[:1])[0].ids[:10])]
    ours = EngineSampler(local, GREEDY).draw(requests)
    theirs = EngineSampler(over_http, GREEDY).draw(requests)
    assert [one.error for one in ours + theirs] == [""] * 14
    assert all(np.array_equal(one.ids, other.ids) for one, other in zip(ours, theirs, strict=True))
    sampled = [over_http.draw(requests[1], Sampling(1.0, top_k=8)) for _ in range(2)]
    assert np.array_equal(*sampled) and not np.array_equal(sampled[0], over_http.draw(replace(requests[1], seed=5), Sampling()))


@pytest.mark.parametrize("max_pictures", [0, 2])
def test_answers_of_llama_cpp_are_ours_id_for_id(over_http, local, max_pictures):
    options = WriteOptions(60, pictures=GREEDY, max_pictures=max_pictures)
    prompts = [local.model.prompt([words]) for words in WORDS]
    with ThreadPoolExecutor(6) as threads:
        ours, theirs = (list(threads.map(lambda one, engine=engine: engine.write(one, options), prompts)) for engine in (local, over_http))
    assert [one.ids for one in ours] == [one.ids for one in theirs]
    assert ours == theirs
    start = local.model.markers.image_start
    assert sum(one.ids.count(start) for one in ours) > 0 or not max_pictures


def test_answers_are_those_of_the_command(over_http, local):
    model, config = local.model, AnswerConfig(max_new_tokens=12)
    expected = dict(answer_questions(model, [AskedQuestion(words) for words in WORDS], config=config))
    prompts = {place: model.prompt([words]) for place, words in enumerate(WORDS)}
    for engine in (local, over_http):
        assert dict(answer_with(engine, config, prompts, dict.fromkeys(prompts, 0))) == expected


def test_an_answer_ends_where_its_reader_leaves(over_http, local):
    prompt = local.model.prompt(["how many"])
    for engine in (over_http, local):
        seen = []
        written = engine.write(prompt, WriteOptions(200), lambda ids, seen=seen: seen.append(list(ids)) or len(ids) < 4)
        assert not written.ended and len(written.ids) in (4, 5) and len(seen) < 7


def test_a_server_that_dies_is_left_out_and_its_requests_go_elsewhere(gguf, llama, local, described, caplog):
    requests = [caption_request(f"{words} {number}") for words in WORDS for number in range(10)]
    with llama_server(gguf) as (url, process):
        engine = HttpEngine(f"{url},{llama},http://127.0.0.1:9", described)
        assert "http://127.0.0.1:9 does not answer" in caplog.text and engine.width == 2
        sampler = EngineSampler(engine, GREEDY)
        first = sampler.draw(requests[:20])
        process.kill()
        drawn = first + sampler.draw(requests[20:])
    assert f"{url} does not answer" in caplog.text and "it is left out, 1 left" in caplog.text
    expected = EngineSampler(local, GREEDY).draw(requests)
    assert all(np.array_equal(one.ids, other.ids) for one, other in zip(drawn, expected, strict=True))


def test_requests_to_vllm_are_as_it_documents_them(vllm, described):
    server, ids = vllm(), described.images.row_ids.tolist()
    engine = HttpEngine(server.url, described)
    server.tokens = ids[:20]
    drawn = engine.draw(DrawRequest("a red circle", seed=7), Sampling(0.5, top_k=3))
    assert drawn.tolist() == ids[:20]
    path, asked = server.asked[-1]
    assert path == "/v1/completions" and asked["allowed_token_ids"] == ids and asked["ignore_eos"] and asked["max_tokens"] == 20
    assert (asked["min_p"], asked["repetition_penalty"]) == (0, 1), "else those of the model's generation_config.json"
    assert (asked["temperature"], asked["top_k"], asked["seed"]) == (0.5, 3, 7) and asked["prompt"][-1] == described.markers.image_start
    server.tokens = [40, described.markers.image_start]
    with pytest.raises(ValueError, match="wrote 2 of 20 ids of a picture"):
        engine.write(described.prompt(["draw"]), WriteOptions(60, max_pictures=1))
    first = server.asked[-2][1]
    assert described.markers.image_start in first["stop_token_ids"] and set(first["stop_token_ids"]) > set(described.end_ids)
    assert first["max_tokens"] == 39 and set(first["logit_bias"]) == {str(index) for index in described.markers.ids()[1:]}
    server.tokens, server.breaks_after = ids[:20], 3
    with pytest.raises(ConnectionError, match="no engine is left"):
        engine.draw(DrawRequest("a red circle"), GREEDY)


def test_a_server_that_was_left_out_is_taken_back_if_it_serves_this_model(vllm, described, monkeypatch, caplog):
    monkeypatch.setattr(engines, "RETRY", 0.3)
    first, second, ids = vllm(), vllm(), described.images.row_ids.tolist()
    engine = HttpEngine(f"{first.url},{second.url}", described)

    def draw_until(count, message):
        deadline = time.monotonic() + 10
        while caplog.text.count(message) < count and time.monotonic() < deadline:
            assert engine.draw(DrawRequest("a red circle"), GREEDY).tolist() == ids[:20]
            time.sleep(0.02)
        assert caplog.text.count(message) == count
        assert engine.draw(DrawRequest("a red circle"), GREEDY).tolist() == ids[:20]

    first.tokens = second.tokens = ids[:20]
    first.breaks_after = 3
    draw_until(1, "broke off an answer after 3 tokens; it is left out, 1 left")
    first.breaks_after = -1
    while len(engine._busy) < 2:
        draw_until(1, "left out")
        time.sleep(0.02)
    second.breaks_after, second.wrong = 3, 1
    draw_until(1, "has another vocabulary than this model; give it the file of this model (tiny); it stays left out")
    first.shutdown()
    first.server_close()
    with pytest.raises(ConnectionError, match="no engine is left"):
        engine.draw(DrawRequest("a red circle"), GREEDY)
    again = vllm(first.server_port)
    again.tokens = ids[:20]
    time.sleep(0.3)
    assert engine.draw(DrawRequest("a red circle"), GREEDY).tolist() == ids[:20], "the only one is waited for"


def test_a_request_at_which_a_server_fails_is_tried_at_another_one_and_no_server_is_left_out(vllm, described, caplog):
    first, second, ids = vllm(), vllm(), described.images.row_ids.tolist()
    engine = HttpEngine(f"{first.url},{second.url}", described)
    first.tokens = second.tokens = ids[:20]
    first.fails = 500
    for _ in range(2):
        assert engine.draw(DrawRequest("a red circle"), GREEDY).tolist() == ids[:20]
    second.fails = 500
    with pytest.raises(engines.EngineError, match=r"fails at a request: .*no room"):
        engine.draw(DrawRequest("a red circle"), GREEDY)
    assert [sum(path == "/v1/completions" for path, _ in server.asked) for server in (first, second)] == [3, 3]
    first.fails = 0
    assert engine.draw(DrawRequest("a red circle"), GREEDY).tolist() == ids[:20] and "left out" not in caplog.text


def test_an_engine_of_another_model_is_refused_at_the_start(vllm, llama, described, tuned, make_tuned, tmp_path):
    server = vllm()
    server.wrong = 1
    with pytest.raises(ValueError, match="has another vocabulary than this model"):
        HttpEngine(server.url, described)
    server.owner = "somebody"
    with pytest.raises(ValueError, match="is a server of 'somebody'; known: llamacpp, vllm"):
        HttpEngine(server.url, described)
    with pytest.raises(ConnectionError, match=r"no engine answers at http://127.0.0.1:9; start one"):
        HttpEngine("http://127.0.0.1:9", described)
    with pytest.raises(ValueError, match="is no merged model"):
        open_without_weights(tuned.run)


def test_what_an_engine_cannot_do_names_one_that_can(over_http, make_tuned):
    with pytest.raises(ValueError, match=r"guidance 2.0 needs .* only our own engine can; leave out --engine, or set it to 1"):
        over_http.draw(DrawRequest("a circle"), Sampling(guidance=2.0))
    with pytest.raises(ValueError, match=r"4 candidates are compared as pictures; only our own engine can; .* or set it to 1"):
        over_http.draw(DrawRequest("a circle"), Sampling(candidates=4))
    with pytest.raises(ValueError, match=r"a compressed image is read by cells; only our own engine can"):
        over_http.draw(DrawRequest("a circle", compressed=True), GREEDY)
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens, the context 512; shorten it"):
        over_http.write(over_http.model.prompt(["how many " * 300]), WriteOptions(5))
    summed = open_model(make_tuned(input_mode="sum").run, device="cpu")
    prompt = summed.prompt(["<image> how many"], [np.array(summed.images.row_ids[:20].cpu())])
    with pytest.raises(ValueError, match=r"this model reads images by cells \(input_mode sum\); only our own engine can"):
        over_http.write(prompt, WriteOptions(5))


def test_work_for_clients_that_left_is_not_begun_and_one_request_does_not_fail_with_another(local, monkeypatch):
    engine, begun, wait = LocalEngine(local.model), [], Event()

    def draw(jobs, sampling):
        begun.append([job.seed for job in jobs])
        assert wait.wait(10)
        if any(job.seed == 13 for job in jobs):
            raise MemoryError("too large")
        return [Drawing(np.array([job.seed]), 0.0) for job in jobs]

    monkeypatch.setattr(engine, "_draw", draw)
    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(engine.draw, DrawRequest("a"), GREEDY)
        while not begun:
            time.sleep(0.01)
        work = threads.submit  # the others wait and make one batch
        others = {seed: work(engine.draw, DrawRequest("a", seed=seed), GREEDY, lambda count, n=seed: n != 5) for seed in (5, 6, 13, 7)}
        while len(engine._waiting) < 4:
            time.sleep(0.01)
        wait.set()
    assert first.result() == [0] and begun[0] == [0] and sorted(begun[1]) == [6, 7, 13] and sorted(begun[2:]) == [[6], [7], [13]]
    assert (others[6].result(), others[7].result()) == ([6], [7])
    for seed, kind in ((5, TimeoutError), (13, MemoryError)):
        with pytest.raises(kind):
            others[seed].result()
