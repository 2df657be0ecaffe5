"""A pipeline: named steps, each one plain command; a step that ended well is not run again, and what each cost is written down."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unicode.common.records import name_errors, open_append, read_jsonl

RECORD = "steps.jsonl"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: what the step is called in --from and --only.
        command: the command and its arguments, run from the root of the repository.
        made: what is there when it has ended.
    """

    name: str
    command: tuple[str, ...]
    made: Path

    def line(self) -> str:
        """Return the command as one would type it."""
        return shlex.join(self.command)


def choose_steps(steps: Sequence[Step], *, first: str = "", only: Sequence[str] = ()) -> list[Step]:
    """Return the steps from `first` on, or those named in `only`.

    Raises:
        ValueError: no step of that name.
    """
    names = [step.name for step in steps]
    for name in [*([first] if first else []), *only]:
        if name not in names:
            raise ValueError(f"there is no step '{name}'; the steps are: {', '.join(names)}")
    if only:
        return [step for step in steps if step.name in only]
    return list(steps[names.index(first) if first else 0 :])


def finished(record: Path) -> dict[str, str]:
    """Return name -> command of the steps that ended well, as the record of a pipeline has them.

    Raises:
        ValueError: a line is not JSON or no step.
    """
    done = {}
    for line in read_jsonl(record) if record.is_file() else ():
        if not isinstance(line, dict) or not {"step", "command"} <= line.keys():
            raise ValueError(f'{record} has a line without "step" and "command": {str(line)[:80]}; delete it, that step is then done again')
        done[line["step"]] = line["command"]
    return done


def run_steps(steps: Sequence[Step], out: Path, *, environment: Mapping[str, str], again: bool = False) -> int:
    """Run steps one after another and append to OUT/steps.jsonl what each took.

    A step is skipped if it ended well before with this command and what it made is there; one that was interrupted goes on by itself.

    Args:
        steps: in order.
        out: folder of the record.
        environment: variables set for the commands.
        again: run steps that were asked for by name although they are done.

    Returns:
        0, or the exit code of the step that failed; the later ones are not run.

    Raises:
        ValueError: `out` is a file, or its record holds a line that is no step.
    """
    if out.is_file():
        raise ValueError(f"{out} is a file; name a folder, it is made if it is not there")
    record = out / RECORD
    open_append(record).close()  # half a line, as a full stop leaves it, is gone now; its step is done again
    done = finished(record)
    for number, step in enumerate(steps, 1):
        title = f"\n== {number}/{len(steps)} {step.name}"
        if not again and done.get(step.name) == step.line() and step.made.exists():
            print(f"{title}: done before\n   {step.line()}", flush=True)
            continue
        print(f"{title}\n   {step.line()}", flush=True)
        start = time.monotonic()
        process = subprocess.Popen(step.command, env={**os.environ, **environment})
        try:
            _, status, usage = os.wait4(process.pid, 0)  # the largest process of the step, its children among them
        except KeyboardInterrupt:
            process.wait()
            raise
        code = os.waitstatus_to_exitcode(status)
        if code or not step.made.exists():
            print(f"\nthe step '{step.name}' failed (exit code {code}); once mended, the same command goes on from here", flush=True)
            return code if code > 0 else 1
        line = {"step": step.name, "command": step.line(), "seconds": round(time.monotonic() - start, 1)}
        with name_errors(record), open_append(record) as file:
            file.write(json.dumps({**line, "peak_mib": usage.ru_maxrss // 1024, "skipped": False}) + "\n")
    return 0
