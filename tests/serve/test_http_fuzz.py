"""The first 300 requests of http_fuzz.py: documented answers, nothing fetched that may not be, and the server as before at the end."""

import logging
import socket
import time

import http_fuzz as fuzz
import httpx


def test_a_long_head_gets_an_answer_however_it_comes(make_server, local):
    address, _ = make_server(local)
    for length, status in ((200_000, 404), (300_000, 400)):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20) as connection:
            connection.sendall(f"GET /{'a' * length}".encode())
            time.sleep(0.1)
            connection.sendall(b" HTTP/1.1\r\nHost: a\r\n\r\n" if status == 404 else b"")
            assert connection.recv(12) == b"HTTP/1.1 %d" % status


def test_damaged_requests_end_in_documented_answers(make_server, local, caplog):
    limits = {"body": fuzz.BODY, "images": fuzz.IMAGES, "tokens": fuzz.TOKENS}
    address, server = make_server(local, key=fuzz.KEY, hosts=[fuzz.ALLOWED], **limits)
    target = fuzz.make_target(int(address.rpartition(":")[2]), local.model)

    def ask():
        body = {"messages": [{"role": "user", "content": "how many"}], "max_tokens": 20}
        return httpx.post(f"{address}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {fuzz.KEY}"}).json()["choices"]

    before = ask()
    fuzz.fuzz(target, range(300))
    assert not target.failures, "\n".join(f"{len(cases)} x {kind}; first: {cases[0]}" for kind, cases in target.failures.items())
    assert target.outside.hits > 0 and target.forbidden.hits == 0
    assert fuzz.settled(server) and ask() == before
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors, errors[0].exc_info
