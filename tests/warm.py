"""Commands of unicode.run in forks of a warm interpreter: several ranks, or a process to be killed, without the seconds of a cold start.

The first use starts one clean server process that has torch, transformers and the package imported; each command is a fork of it.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["warm_imports"])


@dataclass
class Forked:
    """A command in a process of its own, its output in a file."""

    process: BaseProcess
    log: Path

    def wait(self, timeout: float = 300) -> int:
        """Return the exit code; a process that does not end in time is killed and fails the test."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"the command did not end within {timeout} s:\n{self.printed[-3000:]}")
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def printed(self) -> str:
        """What the command has written to its standard output and standard error so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(name: str, *words: object, log: Path, cwd: Path | None = None, **environment: str) -> Forked:
    """Start `python -m unicode.run.NAME WORDS` as a fork, with more environment variables; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    values = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    process = CONTEXT.Process(target=_command, args=(name, [str(word) for word in words], str(log), str(cwd or Path.cwd()), values))
    open_server()
    process.start()
    return Forked(process, log)


def open_server() -> None:
    """Start the server process, unless it runs, with this folder on its path, which Python 3.11 does not hand over by itself."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, [Path(__file__).parent, Path(__file__).parents[1], *filter(None, [before])]))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def run_ranks(name: str, *words: object, logs: Path, ranks: int = 2, cwd: Path | None = None, **environment: str) -> list[str]:
    """Run one command as `ranks` ranks of a job, as torchrun would, and return what each printed; a rank that fails fails the test."""
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    started = [
        start(name, *words, log=logs / f"rank_{rank}.log", cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **job, **environment)
        for rank in range(ranks)
    ]
    codes = [one.wait() for one in started]
    printed = [one.printed for one in started]
    assert codes == [0] * ranks, "\n".join(f"exit code {code}:\n{text[-3000:]}" for code, text in zip(codes, printed, strict=True))
    return printed


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _command(name: str, words: list[str], log: str, cwd: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = [f"unicode.run.{name}", *words]
    code = 1
    try:
        code = import_module(f"unicode.run.{name}").main(words)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
