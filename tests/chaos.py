"""Commands killed at random moments: `python tests/chaos.py --kills 20 [--only NAME] [--seed S] [--out FILE]`.

Each command runs once without a kill. Then it starts in an empty folder, its whole process group gets SIGKILL at a random moment of that
duration, and the same command starts again, with another moment, until it ends by itself. The folder must then hold the same bytes as
that of the uninterrupted run, but for `DIFFERS` and `TIMINGS`. This is repeated in new folders until the command was killed so many times.
All processes are forks of a warm interpreter, so a moment is one of work, not of imports. `--two-starts` starts each command that fills a
folder twice at once instead: one works, the other works too or leaves with one sentence, and the result is that of a single start.
"""

import argparse
import fnmatch
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from warm import CONTEXT, _command, open_server  # noqa: E402

DIFFERS = ("*events.out.tfevents*", "report.html", ".lock", "*/.lock", "training_args.bin", "*/training_args.bin")
"""Files that may differ: curves and the report hold times of day, a lock its holder, training_args.bin the name of the machine's log."""
TIMINGS = {
    "seconds", "peak_mib", "tokens_per_second", "images_per_second", "peak_memory_bytes", "eval_seconds", "seconds_per_step", "time",
    "tokens", "num_asked",
}  # fmt: skip
"""Keys of JSON that may differ: how long things took. `tokens` and `num_asked` are those of the last start."""
LEFT = re.compile(r"\..+\.[0-9a-f]{8}")  # a file that was being written; nothing reads it
REFUSED = re.compile("^error: .* is in use: .* by process .*; wait for it to end, stop it, or choose another folder$")
GOLDEN_RATIO = 0.618034
COMMAND_LIMIT = 300


@dataclass(frozen=True)
class Case:
    """A command and its words; `{made}` stands for the folder of what it reads, "out" in the working folder is what it fills."""

    name: str
    words: str
    filled: str = "out"
    change: Callable[[], None] | None = None


def shrink_quickstart() -> None:
    """Make the quickstart's steps short, and run them as forks of this process."""
    from unicode.run import quickstart

    plan = quickstart.plan

    def small(out: Path, **options: Any) -> list[Any]:
        steps = plan(out, **options)
        return [quickstart.Step(one.name, (*one.command, *SMALL.get(one.name, "").split()), one.made) for one in steps]

    quickstart.plan = small
    quickstart.subprocess = SimpleNamespace(Popen=_Fork)  # type: ignore[assignment]


SMALL_LLM = "train.steps=6 train.batch_size=4 train.save_every=2 train.eval_every=3 train.eval_samples=4 run.threads=1 train.log_every=1"
SMALL = {
    "base": "--steps 3 --tokenizer-lines 300 --layers 1 --width 32 --hidden 48 --batch-size 2",
    "data": "--limit 40 --questions 2",
    "tokenizer": "model.autoencoder.channels=8 model.autoencoder.latent_channels=16 train.steps=8 train.batch_size=4 train.save_every=2 "
    "train.eval_every=4 train.val_images=8 run.threads=1",
    "ids_train": "limit=40 --shard-size 8",
    "ids_val": "limit=40 --shard-size 8",
    "reconstruction": "--limit 8",
    "questions": "--limit 12",
    "export_benchmarks": "--scenes 3 --train 10",
    "vqa": SMALL_LLM,
    "draw": SMALL_LLM,
    "answers": "--max-new-tokens 2 --batch-size 4",
    "answers_blind": "--max-new-tokens 2",
    "drawings": "limit=4 batch_size=2",
    "drawings_unguided": "limit=4",
    "decompressed": "limit=4",
    "benchmarks": "--limit 4 --max-new-tokens 2",
    "benchmarks_blind": "--limit 4 --max-new-tokens 2",
}
SCRIPTS = {
    "train_hqvae.sh": "train_tokenizer",
    "finetune_lora.sh": "train_llm",
    "finetune_visual_text_lora.sh": "train_llm",
}


class _Fork:
    """A stand-in for Popen: `python -m unicode.run.NAME WORDS`, or the script that starts it, as a fork of this process."""

    def __init__(self, command: tuple[str, ...], env: dict[str, str]) -> None:
        name = command[2].rpartition(".")[2] if command[1] == "-m" else SCRIPTS[Path(command[1]).name]
        rest = [str(ROOT / word) if word.startswith("configs/") else word for word in command[3 if command[1] == "-m" else 2 :]]
        self.pid = os.fork()
        if self.pid == 0:
            log = os.readlink("/proc/self/fd/1")
            _command(name, rest, log, os.getcwd(), env)


TWICE = {
    "answer": "--model {made}/tuned/run --questions {made}/anno/questions.jsonl --answers out/a.jsonl --images shapes --max-new-tokens 4",
    "benchmark": "pope --model {made}/tuned/run --data {made}/benchmarks --out out --max-new-tokens 2",
    "convert_tokenizer": "{made}/tuned/image_tokenizer out",
    "decode_ids": "--ckpt {made}/tuned/image_tokenizer --ids {made}/ids --out out",
    "encode_images": "--ckpt {made}/tuned/image_tokenizer --images shapes:train --out out limit=200",
    "eval_generation": "--pictures {made}/drawn --out out/metrics.json",
    "eval_tokenizer": "--ckpt {made}/tuned/image_tokenizer --images shapes:val --out out/metrics.json --limit 8",
    "export_benchmarks": "--out out --scenes 3 --train 20",
    "export_codebook": "--model {made}/tuned/base --out out/table.safetensors",
    "export_questions": "--anno {made}/anno/shapes_questions_val.json --out out/questions.jsonl",
    "generate_images": "--model {made}/tuned/run --prompts shapes:val limit=4 --out out",
    "generate_images reference": "--model {made}/tuned/run --reference {made}/anno/talk.json limit=2 --max-new-tokens 4 --out out",
    "import_ids": "{made}/published out",
    "make_annotations": "--func get_shapes_anno --out out --limit 200",
    "make_base_model": "--out out/base --steps 3 --tokenizer-lines 300 --layers 1 --width 32 --hidden 48 --batch-size 2",
    "merge_lora": "{made}/tuned/run out",
    "quickstart": "out --only codebook data questions --llm {made}/tuned/base",
    "report": "--out out/report.html --ids {made}/ids --tokenizer {made}/tuned/image_tokenizer --base {made}/tuned/base --images shapes",
    "train_llm": "",
    "train_tokenizer": "",
    "stamps": "--root {made}/stamps --out out --size 32 --val-share 0.3",
}
"""Every command that writes files -> words with which it fills "out"; empty: those of `CASES`. chat numbers its pictures one by one."""
FILES = {"stamps": "data/stamps/__main__.py"}
CASES = [
    Case(
        "train_tokenizer",
        "{configs}/tokenizer/hqvae_shapes.yaml model.codebook.table={made}/table.safetensors run.dir=out model.autoencoder.channels=8 "
        "model.autoencoder.latent_channels=16 objective.discriminator.enabled=true objective.discriminator.start=8 run.threads=1 "
        "objective.discriminator.alone_steps=4 objective.discriminator.lecam_weight=0.01 train.average_decay=0.9 train.steps=24 "
        "train.batch_size=4 train.save_every=4 train.eval_every=8 train.log_every=2 train.val_images=8 run.device=cpu",
    ),
    Case(
        "train_llm",
        "{configs}/llm/unicode_lora_shapes.yaml model.path={made}/tuned/base model.template=vicuna_v1 "
        "model.image_tokenizer={made}/tuned/image_tokenizer data.stores=[{made}/ids] data.files=[{made}/anno/shapes_questions_train.json] "
        "train.steps=24 train.batch_size=8 "
        "data.val_files=[{made}/anno/shapes_questions_train.json] train.save_every=4 train.eval_every=8 train.eval_samples=8 "
        "train.log_every=2 lora.dropout=0.1 run.dir=out run.threads=1 run.device=cpu",
    ),
    Case(
        "encode_images",
        "--ckpt {made}/tuned/image_tokenizer --images shapes:train --out out limit=1500 --shard-size 64 --batch-size 8 --views whole,flip",
    ),
    Case(
        "answer",
        "--model {made}/tuned/run --questions {made}/anno/questions.jsonl --answers out/answers.jsonl --images shapes "
        "--batch-size 4 --max-new-tokens 24 --device cpu",
    ),
    Case("generate_images", "--model {made}/tuned/run --prompts shapes:val --device cpu limit=30 batch_size=4 guidance=2 --out out"),
    Case("quickstart", "out", change=shrink_quickstart),
]


def prepare(made: Path) -> None:
    """Write what the commands read."""
    from conftest import write_tuned

    tuned = write_tuned(made / "tuned", context=1024)
    for name, words in (
        ("export_codebook", f"--model {tuned.base} --out {made}/table.safetensors"),
        ("make_annotations", f"--func get_shapes_anno --out {made}/anno --questions 4 --limit 60"),
        ("export_questions", f"--anno {made}/anno/shapes_questions_val.json --out {made}/anno/questions.jsonl --limit 40"),
        ("encode_images", f"--ckpt {tuned.image_tokenizer} --images shapes:train --out {made}/ids limit=60"),
        ("generate_images", f"--model {tuned.run} --prompts shapes:val limit=4 --out {made}/drawn"),
        ("export_benchmarks", f"--out {made}/benchmarks --scenes 3"),
    ):
        assert import_module(f"unicode.run.{name}").main(words.split()) == 0, name
    from PIL import Image

    talk = [{"id": str(at), "conversations": [{"from": "human", "value": "how many"}, {"from": "gpt", "value": "two"}]} for at in range(2)]
    (made / "anno" / "talk.json").write_text(json.dumps(talk))
    for folder in ("published", "stamps/animals", "stamps/food"):
        (made / folder).mkdir(parents=True)
    (made / "published" / "train_image_list.json").write_text(json.dumps([f"{at}.jpg" for at in range(100)]))
    for part, count in (("t", 4), ("b", 16)):
        torch.save(torch.arange(100 * count).view(100, count) % 90, made / "published" / f"train_codes_{part}.pth")
    for at in range(12):
        picture = made / "stamps" / ("animals", "food")[at % 2] / f"{at}.png"
        Image.new("RGB", (20, 30), (at * 20, 0, 0)).save(picture)
        picture.with_suffix(".txt").write_text(f"stamp number {at}\n")


def work(case_name: str, words: list[str], log: str, cwd: str, environment: dict[str, str]) -> None:
    """The forked process: its own group, then the command."""
    os.setsid()
    case = find_case(case_name)
    if case.change:
        case.change()
    name = case.name.split()[0]
    if name in FILES:
        spec = importlib.util.spec_from_file_location(f"unicode.run.{name}", ROOT / FILES[name])
        assert spec and spec.loader
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    _command(name, words, log, cwd, environment)


def find_case(name: str) -> Case:
    """The case of a name, of "NAME twice" with the words of TWICE."""
    known, twice = {case.name: case for case in CASES}, name.removesuffix(" twice")
    if twice == name or not TWICE[twice]:
        return known[twice]
    return Case(twice, TWICE[twice], change=shrink_quickstart if twice == "quickstart" else None)


def start_twice(name: str, made: Path, top: Path) -> list[object]:
    """Start a command twice at once; return the row of the table and print what is wrong."""
    trials = Trials(find_case(f"{name} twice"), made, top, alias=f"{name} twice")
    expected, seconds = trials.whole()
    both = [trials.start(top / "both") for _ in range(2)]
    for process in both:
        process.join(COMMAND_LIMIT)
    codes = [process.exitcode for process in both]
    logs = [path.read_text(errors="replace") for path in sorted((top / "both").glob("*.log"))]
    refused = [log.strip().splitlines()[-1] for code, log in zip(codes, logs, strict=True) if code]
    found = content(top / "both" / "out")
    wrong = [one for one in sorted({*found, *expected}) if found.get(one) != expected.get(one)]
    fair = all(REFUSED.search(line) for line in refused) and not any("Traceback" in log for log in logs)
    sound = 0 in codes and fair and not wrong
    if not sound:
        print(name, codes, wrong[:6], *logs, sep="\n", file=sys.stderr, flush=True)
    outcome = "one is refused" if refused else "both work"
    return [name, outcome, f"{seconds:.1f}", len(expected), int(not sound)]


@dataclass
class Trials:
    """Runs of one case below `top`."""

    case: Case
    made: Path
    top: Path
    alias: str = ""
    starts: int = 0
    seconds: list[float] = field(default_factory=list)

    def start(self, folder: Path) -> Any:
        """Start the command with `folder` as its working folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        log = folder / f"{self.starts:03d}.log"
        log.touch()
        words = self.case.words.format(made=self.made, configs=ROOT / "configs").split()
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "UNICODE_CACHE": "", "NUM_RANKS": "1"}
        process = CONTEXT.Process(target=work, args=(self.alias or self.case.name, words, str(log), str(folder), environment))
        open_server()
        process.start()
        return process

    def finish(self, folder: Path, limit: float = COMMAND_LIMIT) -> int | None:
        """Run the command until it ends or the limit is over; return its exit code, None if it was killed at the limit."""
        begun, process = time.monotonic(), self.start(folder)
        process.join(limit)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            self._wait_for_group(process.pid)
            return None
        self.seconds.append(time.monotonic() - begun)
        return int(process.exitcode)

    def whole(self) -> tuple[dict[str, bytes], float]:
        """Content and seconds of an uninterrupted run."""
        code = self.finish(self.top / "whole")
        assert code == 0, self.last_log("whole")
        return content(self.top / "whole" / self.case.filled), self.seconds[-1]

    def last_log(self, name: str) -> str:
        """The end of the newest log of a folder."""
        return sorted((self.top / name).glob("*.log"))[-1].read_text(errors="replace")[-3000:]

    @staticmethod
    def _wait_for_group(group: int) -> None:
        """Wait until no process of a killed group holds a file any more."""
        while True:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            time.sleep(0.005)


def content(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of what must be equal in a folder."""
    return {name: stable(path) for name, path in files(folder) if not any(fnmatch.fnmatch(name, pattern) for pattern in DIFFERS)}


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of each file that is not left over from a killed write."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(LEFT.fullmatch(part) for part in path.relative_to(folder).parts):
            yield path.relative_to(folder).as_posix(), path


def stable(path: Path) -> bytes:
    """The content of a file, of JSON without the times in it."""
    data = path.read_bytes()
    if path.suffix == ".pt" and zipfile.is_zipfile(path):  # equal strings are written once or twice, as the process happens to hold them
        with zipfile.ZipFile(path) as archive:
            parts = [archive.read(name) for name in archive.namelist() if not name.endswith(("data.pkl", "serialization_id"))]
        return b"".join([*parts, repr(torch.load(path, weights_only=True)).encode()])
    if path.name == "manifest.json" and path.parent.name.startswith(("checkpoint-", "step_")):
        described = json.loads(data)
        return repr({name: value for name, value in described.items() if name not in UNSTABLE}).encode()
    if path.suffix not in (".json", ".jsonl"):
        return data
    lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
    try:
        return "\n".join(json.dumps(without_times(json.loads(line))) for line in lines).encode()
    except ValueError:  # some benchmarks call JSON Lines .json
        return data


UNSTABLE = {"training_args.bin", "trainer_state.json", "training.pt", "optimizer.pt", "scheduler.pt"}


def without_times(value: Any) -> Any:
    """JSON without the keys of TIMINGS."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMINGS}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def kill_often(case: Case, made: Path, top: Path, *, kills: int, seed: int) -> list[object]:
    """Kill a case so many times; return the row of the table and print differences."""
    begun, trials = time.monotonic(), Trials(case, made, top)
    expected, seconds = trials.whole()
    done = folders = draws = left = 0
    faults: list[str] = []
    while done < kills:
        folders += 1
        folder = top / f"{folders:03d}"
        code = None
        while code is None:
            draws += 1
            moment = (seed * 0.137 + draws * GOLDEN_RATIO) % 1 * seconds  # spread over the whole duration
            code = trials.finish(folder, moment if done < kills else COMMAND_LIMIT)
            done += code is None
            if code is None:
                print(f"{case.name} {folder.name}: killed after {moment:.2f} of {seconds:.2f} s", file=sys.stderr, flush=True)
        found = content(folder / case.filled)
        wrong = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
        left += sum(bool(LEFT.fullmatch(path.name)) for path in (folder / case.filled).rglob(".*"))
        if code or wrong:
            faults.append(f"{folder}: exit code {code}, {len(wrong)} files differ: {', '.join(wrong[:6])}")
            print(f"{faults[-1]}\n{trials.last_log(folder.name) if code else ''}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder)
    size = len(expected)
    return [case.name, done, folders, trials.starts - 1, f"{seconds:.1f}", f"{time.monotonic() - begun:.0f}", size, left, len(faults)]


def main() -> int:
    """Kill the cases, print a table, and return 1 if a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each command (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TWICE, action="append", help="only these commands")
    parser.add_argument("--two-starts", action="store_true", help="start commands twice at once, kill none")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    killed = {case.name for case in CASES}
    if not args.two_starts and not killed.issuperset(args.only or ()):
        parser.error(f"only these commands are killed: {', '.join(sorted(killed))}; --two-starts takes the others")
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    top = Path(tempfile.mkdtemp(prefix="chaos"))
    CONTEXT.set_forkserver_preload(["warm_imports", "chaos_imports"])
    prepare(top / "made")
    open_server()
    first = CONTEXT.Process(target=os.getpid)  # waits for the imports of the server process, which belong to no command
    first.start()
    first.join()
    rows: list[list[object]]
    if args.two_starts:
        rows = [["command", "two starts at once", "seconds of one", "files compared", "differences"]]
    else:
        columns = "command, kills, folders, restarts, seconds uninterrupted, seconds in all, files compared, left over, differences"
        rows = [[*columns.split(", ")]]
    rows.append(["---"] + ["---:"] * (len(rows[0]) - 1))
    for name in args.only or (TWICE if args.two_starts else [case.name for case in CASES]):
        if args.two_starts:
            rows.append(start_twice(name, top / "made", top / name))
        else:
            rows.append(kill_often(find_case(name), top / "made", top / name, kills=args.kills, seed=args.seed))
        table = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
        if args.out:  # after each row: a run that is stopped keeps what it has measured
            args.out.write_text(f"{shlex.join(['python', *sys.argv])}\n\n{table}\n", encoding="utf-8")
    print(table)
    failed = any(row[-1] for row in rows[2:])
    print(f"the folders of failures are in {top}" if failed else "", file=sys.stderr)
    if not failed:
        shutil.rmtree(top)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
