"""Damaged input for every reader: `python tests/fuzz.py --cases 2000 --seed 0 --jobs 2`.

Each case changes one file (bytes, or values of its JSON) and reads it. It must end in a result, in a counted skip, or in a ValueError or
OSError of one printable line; not in another exception, not after more than five seconds, not with a file outside of its folder and not
with code of the file executed. The targets take turns. `--only NAME --case N` repeats one case, with the traceback.
"""

import argparse
import atexit
import io
import json
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import traceback
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from unicode.annotations.build import open_image_ids  # noqa: E402
from unicode.annotations.image_lists import concat_vae_with_mix, concat_vae_with_vqabench  # noqa: E402
from unicode.annotations.instructions import concat_llava_anno, concat_uni_anno  # noqa: E402
from unicode.annotations.records import RefusedError, read_record  # noqa: E402
from unicode.annotations.text_to_image import get_t2v_anno  # noqa: E402
from unicode.codebook.embedding_table import load_table  # noqa: E402
from unicode.common.checkpoint import list_checkpoints, newest_checkpoint, save_checkpoint  # noqa: E402
from unicode.common.files import read_json, read_jsonl, read_list, read_tensors  # noqa: E402
from unicode.common.json_lists import locate_json_list, read_json_list  # noqa: E402
from unicode.ids.store import Store  # noqa: E402
from unicode.images.archives import TarShards  # noqa: E402
from unicode.images.decode import decode_image  # noqa: E402
from unicode.images.listing import UnreadableImageError  # noqa: E402
from unicode.llm.card import read_card  # noqa: E402
from unicode.metrics.benchmarks import BENCHMARKS  # noqa: E402
from unicode.run.command import one_line  # noqa: E402
from unicode.tokenizer.load import load_tokenizer  # noqa: E402

GOLDEN, SAMPLE = ROOT / "tests" / "golden", ROOT / "data" / "sample"
SECONDS = 5
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # flushing a file to a disk costs more than a case
VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 10**30, 1.5, float("nan"), "", " ", "../x", "/etc/hostname", "a\0b", "\x1b[31mred", "\ud800", "x" * 5000,
    "<image>", "<vistok>1-2", "</vistok>", "<vistok>1--2</vistok>", [], {}, [[]], {"a": 1}, ["human"], "text_to_image",
]  # fmt: skip
TOKENS = [
    b"\0" * 8,
    b"\xff" * 4,
    b"../",
    b"\n",
    b"\r",
    b'"',
    b"[" * 20000,
    b'{"a":' * 20000,
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"\xed\xa0\x80",
    b"PK\x03\x04",
]


IMAGES = {"PNG": "RGBA", "JPEG": "RGB", "GIF": "P", "WEBP": "RGB", "TIFF": "RGB", "BMP": "RGB", "PPM": "L"}
"""Format -> mode of its image."""


class TooSlow(BaseException):
    """A case took more than SECONDS."""


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, insert or drop bytes, once to four times; half of the changes near the beginning, where headers are."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(content), 200) if rng.random() < 0.5 else len(content)) if content else 0
        length = rng.choice((1, 2, 4, 8, 50))
        kind = rng.randrange(6)
        if kind == 0 and content:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at:at] = content[at : at + length] * rng.randint(1, 20)
        elif kind == 3:
            content[at:at] = rng.choice(TOKENS)
        elif kind == 4:
            del content[at : at + length]
        else:
            content[at : at + length] = rng.randbytes(length)
    return bytes(content)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Replace, drop or double one value somewhere in a JSON value."""
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        changed = value.copy()
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        action = rng.random()
        if action < 0.1:
            del changed[key]
        elif action < 0.15 and isinstance(changed, list):
            changed.insert(key, changed[key])
        elif action < 0.2 and isinstance(changed, dict):
            changed[rng.choice(("new", "", "file", "\x1b"))] = changed[key]
        else:
            changed[key] = mutate_json(value[key], rng)
        return changed
    return rng.choice(VALUES)


def mutate_file(path: Path, rng: random.Random) -> None:
    """Damage a file: the values of JSON in two of three cases, else its bytes."""
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.67:
        lines = [json.loads(line) for line in data.decode().splitlines() if line] if path.suffix == ".jsonl" else [json.loads(data)]
        for _ in range(rng.randint(1, 3)):
            lines = [mutate_json(line, rng) for line in lines]
        path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    else:
        path.write_bytes(mutate_bytes(data, rng))


def mutate_one(folder: Path, rng: random.Random, pattern: str = "*") -> None:
    """Damage one file of a folder."""
    mutate_file(rng.choice(sorted(path for path in folder.rglob(pattern) if path.is_file())), rng)


def image(folder: Path, rng: random.Random) -> str:
    """An image file of one of seven formats, decoded."""
    kind, mode = rng.choice([*IMAGES.items()])
    buffer = io.BytesIO()
    pixels = np.random.default_rng(rng.randrange(99)).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    decode_image(mutate_bytes(buffer.getvalue(), rng), shorter=rng.choice((0, 4)), max_pixels=10**6)
    return "decoded"


def json_files(folder: Path, rng: random.Random) -> str:
    """JSON, a JSON list, JSON Lines or a list of lines, read to the end."""
    name = rng.choice(("anno.json", "questions.jsonl", "answers.jsonl.run.json"))
    shutil.copy(GOLDEN / "v0.1" / name, folder / name)
    mutate_file(folder / name, rng)
    for reader in (read_json_list, locate_json_list, read_jsonl, read_json, read_list):
        try:
            result = reader(folder / name)
            _ = result if reader in (read_json, read_list) else list(result)
        except (ValueError, OSError) as error:
            check_line(error, naming=folder / name)
    return "read"


def records(folder: Path, rng: random.Random) -> str:
    """One record of LLaVA's form or ours, in all three forms of reading."""
    record = rng.choice([*read_json_list(SAMPLE / "llava_v1_5_mix665k.json"), *read_json_list(GOLDEN / "v0.1" / "anno.json")])
    for _ in range(rng.randint(1, 3)):
        record = mutate_json(record, rng)
    outcome = set()
    for form in ("any", "llava", "written"):
        try:
            read = read_record(record, form=form)
            outcome.add("read")
            _ = read.keys, read.runs, read.first_rounds(1)
        except RefusedError as refused:
            outcome.add("refused")
            check_line(refused)
    return " and ".join(sorted(outcome))


def annotations(folder: Path, rng: random.Random) -> str:
    """An annotation file, list, table or store of a whole annotation function."""
    shutil.copytree(SAMPLE, folder / "in")
    bench = folder / "in" / "eval"
    for name in ("mmbench", "pope"):
        (bench / BENCHMARKS[name].files["questions"].paths[0]).parent.mkdir(parents=True)
    (bench / BENCHMARKS["mmbench"].files["questions"].paths[0]).write_text("index\timage\n1\tAAAA\n2\tAAAA\n")
    (bench / BENCHMARKS["pope"].files["questions"].paths[0]).write_text('{"image": "a.jpg"}\n{"image": "b.jpg"}\n')
    for split in ("train", "val"):
        (folder / "in" / f"llava_concat_{split}.txt").write_text("a.jpg\nb/c.jpg\n")
    shutil.copy(GOLDEN / "v0.1" / "anno.json", folder / "in" / "ours.json")
    mutate_one(folder / "in", rng)
    functions = [
        lambda: get_t2v_anno(folder / "in", open_image_ids([folder / "in" / "ids"]), folder / "out"),
        lambda: concat_llava_anno(folder / "in", folder / "out"),
        lambda: concat_uni_anno(folder / "in", folder / "out", annos=["ours.json"]),
        lambda: concat_vae_with_mix(folder / "in", folder / "out" / "mix"),
        lambda: concat_vae_with_vqabench(folder / "in", folder / "out", allow_test_images=True),
    ]
    for run in rng.sample(functions, 2):
        try:
            run()
        except (ValueError, OSError) as error:
            check_line(error)
    return "ran"


def store(folder: Path, rng: random.Random) -> str:
    """A store of ids: its manifest, keys, shards and list of skipped images."""
    shutil.copytree(rng.choice((SAMPLE / "ids", GOLDEN / "v0.1" / "ids")), folder / "ids")
    mutate_one(folder / "ids", rng)
    opened = Store(folder / "ids")
    for key in list(opened)[:20]:
        opened.get(key)
    opened.verify()
    return "opened"


def safetensors(folder: Path, rng: random.Random) -> str:
    """An embedding table, or a tokenizer's folder."""
    if rng.random() < 0.6:
        shutil.copy(GOLDEN / "v0.1" / "table.safetensors", folder / "table.safetensors")
        mutate_one(folder, rng)
        load_table(folder / "table.safetensors")
        return "table"
    (folder / "tokenizer").mkdir()
    for path in _saved_tokenizer().iterdir():
        shutil.copy(path, folder / "tokenizer" / path.name)
    mutate_one(folder / "tokenizer", rng)
    load_tokenizer(folder / "tokenizer")
    return "tokenizer"


def card(folder: Path, rng: random.Random) -> str:
    """The card of a language model."""
    shutil.copy(GOLDEN / "v0.1" / "lora" / "unicode.json", folder / "unicode.json")
    mutate_one(folder, rng)
    read_card(folder)
    return "read"


def checkpoint(folder: Path, rng: random.Random) -> str:
    """A run folder with two checkpoints, as a copy may leave it, or one whose state is a pickle that would run a command."""

    shutil.copytree(_saved_tokenizer().parent / "checkpoints", folder / "checkpoints")
    state = folder / "checkpoints" / "step_00000002" / "training.pt"
    if rng.random() < 0.1:
        plant(state, folder.parents[1] / "witness")
    else:
        mutate_one(state.parent if rng.random() < 0.8 else folder, rng)
    found = []
    for path in (newest_checkpoint(folder / "checkpoints"), *list_checkpoints(folder / "checkpoints")):
        try:
            if path is not None:
                read_tensors(path / "training.pt", wanted="the state of a training run")
                found.append(path.name)
        except (ValueError, OSError) as error:
            check_line(error)
    return f"{len(set(found))} of 2 read"


class _Command:
    """Pickled, it is a command that the unpickling process runs."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.line,)


def plant(path: Path, witness: Path) -> None:
    """Replace the pickle in a file of `torch.save` by one that writes to `witness` where it is unpickled."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, pickle.dumps(_Command(f"echo executed > {witness}"), 2) if name.endswith("data.pkl") else content)


def tar(folder: Path, rng: random.Random) -> str:
    """A shard of images, or its index."""
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number in range(5):
            member = tarfile.TarInfo(f"f/{number}.png")
            member.size = 700
            archive.addfile(member, io.BytesIO(bytes(700)))
    if rng.random() < 0.4:
        TarShards("a.tar", str(folder))
    mutate_one(folder, rng)
    found = TarShards("a.tar", str(folder))
    for index in range(len(found.keys)):
        _ = found.keys[index]
        try:
            found.read(index)
        except UnreadableImageError as error:
            check_line(error)
    return "read"


TARGETS: dict[str, Callable[[Path, random.Random], str]] = {
    function.__name__: function for function in (image, json_files, records, annotations, store, safetensors, card, checkpoint, tar)
}
_saved: list[Path] = []


def _saved_tokenizer() -> Path:
    """A small published tokenizer in our own form, written once, with checkpoints of it in a folder beside it."""
    if not _saved:
        top = Path(tempfile.mkdtemp(dir=MEMORY))
        atexit.register(shutil.rmtree, top, ignore_errors=True)
        load_tokenizer(GOLDEN / "rq_shared").save_pretrained(top / "tokenizer")

        def write(target: Path) -> None:
            torch.save({"step": 1, "model": {"weight": torch.arange(6.0)}}, target / "training.pt")
            shutil.copy(GOLDEN / "v0.1" / "lora" / "unicode.json", target / "unicode.json")

        for step in (1, 2):
            save_checkpoint(top / "checkpoints" / f"step_{step:08d}", write, keep=2)
        _saved.append(top / "tokenizer")
    return _saved[0]


def check_line(error: BaseException, *, naming: Path | None = None) -> None:
    """AssertionError unless an error is one printable line that names the file."""
    line = one_line(error)
    assert line.isprintable(), f"{type(error).__name__} is no printable line: {line[:300]!r}"
    assert naming is None or str(naming) in line, f"{type(error).__name__} does not name its file: {line[:300]!r}"


def run_case(name: str, number: int, seed: int) -> str:
    """The outcome of one case; anything but AssertionError, TooSlow and foreign exceptions is fine."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as top:
        folder, witness = Path(top) / "inside" / "case", Path(top) / "witness"
        folder.mkdir(parents=True)
        witness.write_text("")
        signal.alarm(SECONDS)
        try:
            outcome = TARGETS[name](folder, random.Random(f"{name} {number} {seed}"))
        except (RefusedError, UnreadableImageError) as error:
            check_line(error)
            outcome = "skipped"
        except (ValueError, OSError) as error:
            check_line(error)
            outcome = type(error).__name__
        finally:
            signal.alarm(0)
        around = sorted(str(path.relative_to(top)) for folder in (Path(top), Path(top) / "inside") for path in folder.iterdir())
        assert around == ["inside", "inside/case", "witness"], f"files outside of the folder: {around}"
        assert not witness.read_text(), "code of the file was executed"
        return outcome


@dataclass
class Tally:
    """What came of the cases: target -> outcome -> count, and kind of failure -> the commands that repeat its cases."""

    outcomes: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failures: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: "Tally") -> None:
        for name, counts in other.outcomes.items():
            self.outcomes[name] += counts
        for kind, cases in other.failures.items():
            self.failures[kind] += cases


def _too_slow(*_: Any) -> None:
    raise TooSlow(f"more than {SECONDS} s")


def fuzz(cases: Sequence[int], *, seed: int = 0, names: Sequence[str] = (), show: bool = False) -> Tally:
    """Run cases of some targets (default: all), case N of the target whose turn N is; with `show` print tracebacks of failures."""
    names, tally = names or [*TARGETS], Tally()
    before, _ = signal.signal(signal.SIGALRM, _too_slow), logging.disable(logging.CRITICAL)
    try:
        for number in cases:
            name = names[number % len(names)]
            try:
                outcome = run_case(name, number, seed)
            except (Exception, TooSlow) as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{name}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                tally.failures[kind].append(f"--only {name} --case {number} --seed {seed}: {ascii(str(error))[:200]}")
                outcome = "FAILED"
                if show:
                    traceback.print_exc()
            tally.outcomes[name][outcome] += 1
    finally:
        signal.signal(signal.SIGALRM, before)
        logging.disable(logging.NOTSET)
    return tally


def main() -> int:
    """Run the cases, print what came of them, and return 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="cases of all targets together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--only", choices=TARGETS, action="append", default=[], help="only these targets")
    parser.add_argument("--case", type=int, help="only this case, of the one target that --only names")
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    _saved_tokenizer()
    torch.set_num_threads(1)
    if args.case is not None:
        tally = fuzz([args.case], seed=args.seed, names=args.only, show=True)
    else:
        tally, chunks = Tally(), [range(first, min(first + 500, args.cases)) for first in range(0, args.cases, 500)]
        with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("fork")) as pool:
            for done in pool.map(partial(fuzz, seed=args.seed, names=args.only), chunks):
                tally.add(done)
    for name, counts in tally.outcomes.items():
        print(f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())}")
    for kind, cases in tally.failures.items():
        print(f"{len(cases)} x {kind}; first: {cases[0]}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
