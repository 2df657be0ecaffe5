"""Load on a running server: requests one at a time, then from 64 clients; every answer is compared with the same request alone.

python -m unicode.run.serve --model MERGED --port 8000 &
python tests/bench/serve_load.py http://127.0.0.1:8000 2000
"""

import base64
import io
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import quantiles

import httpx
from PIL import Image

KINDS, CLIENTS = 120, 64  # different requests: one in fifteen is bad, a third draw, the others ask about a picture


def picture(number: int) -> str:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 37 % 256, number * 91 % 256, number * 13 % 256)).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def ask(client: httpx.Client, number: int) -> tuple[int, str, float]:
    """Return status, answer and seconds of one request."""
    kind, start = number % KINDS, time.perf_counter()
    if kind % 3 == 0:
        found = client.post("/v1/images/generations", json={"prompt": f"a red circle {kind}", "seed": kind})
        answer = lambda: found.json()["data"][0]["b64_json"]  # noqa: E731
    else:
        url = "data:image/png;base64,AAAA" if kind % 10 == 9 else picture(kind)
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
        found = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], "max_tokens": 24})
        answer = lambda: found.json()["choices"][0]["message"]["content"]  # noqa: E731
    return found.status_code, answer() if found.status_code == 200 else found.text, time.perf_counter() - start


def main(address: str, count: int) -> None:
    client = httpx.Client(base_url=address, timeout=300, limits=httpx.Limits(max_connections=None))
    start = time.perf_counter()
    alone = [ask(client, number) for number in range(KINDS)]
    rate = KINDS / (time.perf_counter() - start)
    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as threads:
        found = list(threads.map(partial(ask, client), range(count)))
    together = count / (time.perf_counter() - start)
    wrong = sum(one[:2] != alone[number % KINDS][:2] for number, one in enumerate(found))
    for name, rows, value in (("alone", alone, rate), (f"{CLIENTS} clients", found, together)):
        cuts = quantiles((seconds for *_, seconds in rows), n=20)
        print(f"{name}: {value:.1f} requests/s, p50 {cuts[9]:.3f} s, p95 {cuts[18]:.3f} s")
    print(f"{together / rate:.1f} times as many; {wrong} of {count} answers differ; status {dict(Counter(status for status, *_ in found))}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
