"""Load on a server: requests one at a time, then from 64 clients; every answer is compared with the same request alone.

python tests/bench/serve_load.py --model MERGED                  # starts a server of its own, and measures its memory too
python tests/bench/serve_load.py --model MERGED --kill           # SIGKILL half-way, started again; SIGTERM under load at the end
python tests/bench/serve_load.py http://127.0.0.1:8000           # a server that runs
"""

import argparse
import base64
import contextlib
import io
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles

import httpx
from PIL import Image

KINDS = 120  # different requests: one in ten is bad, a third of the others draw, the rest ask about a picture
BAD = [
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
    {"messages": [{"role": "user", "content": "word " * 20_000}]},
    {"messages": [{"role": "user", "content": "what?"}], "max_tokens": 10**9},
    {"messages": []},
]


@dataclass
class Answer:
    """What one request got."""

    status: int
    content: str
    seconds: float
    errors: int = 0  # broken or refused connections before

    def same(self, other: "Answer") -> bool:
        return (self.status, self.content) == (other.status, other.content)


def picture(number: int) -> str:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 37 % 256, number * 91 % 256, number * 13 % 256)).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def ask(client: httpx.Client, number: int, *, again: bool = True) -> Answer:
    """Send one request; `again`: until it has an answer."""
    kind, start, errors = number % KINDS, time.perf_counter(), 0
    path, body = "/v1/chat/completions", BAD[kind // 10 % len(BAD)]
    if kind % 10 != 9 and kind % 3 == 0:
        path, body = "/v1/images/generations", {"prompt": f"a red circle {kind}", "seed": kind}
    elif kind % 10 != 9:
        content = [{"type": "image_url", "image_url": {"url": picture(kind)}}, {"type": "text", "text": "What is this?"}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 24}
    while True:
        try:
            found = client.post(path, json=body)
            break
        except httpx.TransportError as error:
            errors += 1
            if not again:
                return Answer(0, type(error).__name__, time.perf_counter() - start, errors)
            time.sleep(0.1)
    values = found.json()
    if found.status_code != 200:
        content = found.text
    else:
        content = values["data"][0]["b64_json"] if "data" in values else values["choices"][0]["message"]["content"]
    return Answer(found.status_code, content, time.perf_counter() - start, errors)


class Running:
    """A server of one model in a process of its own, that can be killed and started again at the same port."""

    def __init__(self, *words: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.words, self.address = words, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "unicode.run.serve", *self.words, "--port", str(self.port)])
        while self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{self.address}/health")
                return
            time.sleep(0.1)
        raise SystemExit("the server did not start")

    def restart(self) -> None:
        self.process.kill()
        self.process.wait()
        self.start()

    @property
    def memory(self) -> str:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return f"{next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) // 1024} MB"


def measure(name: str, found: list[Answer], seconds: float) -> float:
    """Print requests per second and latencies; returns the first."""
    cuts = quantiles((one.seconds for one in found), n=20)
    print(f"{name}: {len(found) / seconds:.1f} requests/s, p50 {cuts[9]:.3f} s, p95 {cuts[18]:.3f} s", flush=True)
    return len(found) / seconds


def load(client: httpx.Client, count: int, clients: int, *, half_way: threading.Event | None = None) -> list[Answer]:
    """Send `count` requests from many clients; `half_way` is set when half of them are answered."""
    done = iter(range(1, count + 1))

    def one(number: int) -> Answer:
        answer = ask(client, number)
        if half_way is not None and next(done) == count // 2:
            half_way.set()
        return answer

    with ThreadPoolExecutor(clients) as threads:
        return list(threads.map(one, range(count)))


def end_under_load(running: Running, client: httpx.Client, alone: list[Answer], clients: int) -> None:
    """Send SIGTERM while requests are in work, and print what they got."""
    with ThreadPoolExecutor(clients) as threads:
        asked = [threads.submit(partial(ask, again=False), client, number) for number in range(clients)]
        time.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        found = [one.result() for one in asked]
    answered = [(number, one) for number, one in enumerate(found) if one.status]
    wrong, refused = sum(not one.same(alone[number]) for number, one in answered), Counter(one.content for one in found if not one.status)
    code = running.process.wait(60)
    print(f"SIGTERM: {len(answered)} of {clients} answered, {wrong} of them differ, the others {dict(refused)}; exit code {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?", help="of a server that runs")
    parser.add_argument("--model", help="start a server of this model")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--kill", action="store_true", help="kill the server half-way and start it again")
    args = parser.parse_args()
    running = Running("--model", args.model, "--device", "cpu") if args.model else None
    client = httpx.Client(base_url=running.address if running else args.address, timeout=300, limits=httpx.Limits(max_connections=None))
    ask(client, 0)
    print(f"memory {running.memory if running else 'unknown'}")
    start = time.perf_counter()
    alone = [ask(client, number) for number in range(KINDS)]
    rate = measure("alone", alone, time.perf_counter() - start)
    half_way = threading.Event()
    if args.kill and running:
        threading.Thread(target=lambda: half_way.wait() and running.restart(), daemon=True).start()
    start = time.perf_counter()
    found = load(client, args.count, args.clients, half_way=half_way)
    together = measure(f"{args.clients} clients", found, time.perf_counter() - start)
    wrong = sum(not one.same(alone[number % KINDS]) for number, one in enumerate(found))
    print(
        f"{together / rate:.1f} times as many; {wrong} of {args.count} answers differ; status {dict(Counter(one.status for one in found))}"
    )
    print(f"{sum(one.errors for one in found)} connections broken or refused; memory {running.memory if running else 'unknown'}")
    if running and args.kill:
        end_under_load(running, client, alone, args.clients)
    elif running:
        running.process.terminate()


if __name__ == "__main__":
    main()
