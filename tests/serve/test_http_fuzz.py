"""The first 300 requests of http_fuzz.py: documented answers, nothing fetched that may not be, and the server as before at the end."""

import logging

import http_fuzz as fuzz
import httpx


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
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR and "LocalProtocolError" not in str(record.exc_info)]
    assert not errors, errors[0].exc_info
