"""Every command that a document names exists and, where it can, runs with --dry-run on small stand-ins for the data it names."""

import ast
import contextlib
import io
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from public_sets import write_fashion
from transformers import Dinov2Config, Dinov2Model

ROOT = Path(__file__).parents[1]
GENERATED = {"LOG.md", "commands.md"}  # a diary, and what the commands say themselves
FOUND = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("data/**/*.md")]
DOCUMENTS = sorted(path for path in FOUND if path.name not in GENERATED)
DEFAULT_CONFIG = "configs/tokenizer/hqvae_shapes.yaml"
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
# scripts that pass their arguments on to a command, and the config that they take without one
FORWARDS = {
    "scripts/vae_train/train_hqvae.sh": ("train_tokenizer", DEFAULT_CONFIG),
    "scripts/vae_train/train_rqvae.sh": ("train_tokenizer", DEFAULT_CONFIG),
    "scripts/vae_train/train_hqvae_stage2.sh": ("train_llm", "configs/llm/code_decoder.yaml"),
    "scripts/finetune.sh": ("train_llm", "configs/llm/unicode_full.yaml"),
    "scripts/finetune_lora.sh": ("train_llm", "configs/llm/unicode_lora.yaml"),
    "scripts/finetune_visual_text_lora.sh": ("train_llm", "configs/llm/unicode_visual_text.yaml"),
    "scripts/pretrain_llava.sh": ("train_llm", "configs/llm/llava_pretrain.yaml"),
    "scripts/finetune_llava_lora.sh": ("train_llm", "configs/llm/llava_lora.yaml"),
}
# what makes any training config small enough to be built in a moment
SMALL = [
    "model.autoencoder.channels=32", "model.codebook.num_rows=32", "objective.perceptual.weight=0",
    "data.name=folder", "data.path=''", "data.holdout=0.5", "train.val_split=val", "train.num_workers=0",
    "run.precision=float32",
]


def has_main(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(path.read_text(encoding="utf-8")).body)


COMMANDS = sorted(path.stem for path in (ROOT / "unicode" / "run").glob("*.py") if has_main(path))


@dataclass(frozen=True)
class Line:
    """A command line of a document."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"


def documented_lines() -> list[Line]:
    """Return the command lines in the fenced and indented blocks of all documents, without environment variables and comments."""
    lines: dict[tuple[str, ...], Line] = {}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in re.finditer(r"^ *(?:\$ )?((?:[A-Z_]+=\S+ )*(?:python|sh|bash) [^\n`|]*)$", text, flags=re.MULTILINE):
            words = shlex.split(found[1], comments=True)
            while words and ASSIGNMENT.fullmatch(words[0]):
                del words[0]
            lines.setdefault(tuple(words), Line(path.name, tuple(words)))
    return list(lines.values())


LINES = documented_lines()


def target(line: Line) -> tuple[str | None, list[str]]:
    """Return the command of unicode.run that a line ends up in, None when it does not, and the arguments."""
    first, second, *rest = line.words
    if first == "python" and second == "-m" and rest[0].startswith("unicode.run."):
        return rest[0].removeprefix("unicode.run."), rest[1:]
    if first == "python" and second.rstrip("/") == "data/unicode" and rest[0] == "process.py":
        return "make_annotations", rest[1:]
    if second in FORWARDS:
        name, config = FORWARDS[second]
        return name, rest if rest and rest[0].endswith(".yaml") else [config, *rest]
    benchmark = re.fullmatch(r"scripts/llava_eval/(\w+)\.sh", second)
    if benchmark and rest and not rest[0].startswith("-"):
        return "benchmark", [benchmark[1], "--model", rest[0], "--data", "datasets/llava/eval", "--out", f"{rest[0]}/eval"]
    if second == "scripts/generate_images.sh":
        return "generate_images", ["--model", rest[0], *config_or_prompts(rest[1]), "--out", *rest[2:]]
    return None, rest


def config_or_prompts(word: str) -> list[str]:
    """What scripts/generate_images.sh makes of its second argument."""
    config = f"configs/generation/{word}.yaml"
    return ["--config", config] if (ROOT / config).exists() else ["--prompts", word]


def test_what_documents_name_exists():
    for line in LINES:
        first, second, *rest = line.words
        if first == "python" and second == "-m":
            module = rest[0]
            assert not module.startswith("unicode.") or module.removeprefix("unicode.run.") in COMMANDS, f"{line}: no command {module}"
        else:
            assert (ROOT / second).exists(), f"{line}: no file {second}"


def run(name: str, *words: object) -> None:
    """Run a command in this process; a user's error is a failure with the arguments and the message."""
    arguments = [str(word) for word in words]
    messages = io.StringIO()
    with contextlib.redirect_stderr(messages):
        code = import_module(f"unicode.run.{name}").main(arguments)
    assert code == 0, f"{name} {shlex.join(arguments)}\n{messages.getvalue()}"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, tiny_llama) -> dict[str, str]:
    """Small things for the options that name large ones: a language model, its table, a tokenizer, pictures, ids."""
    folder = tmp_path_factory.mktemp("stand_ins")
    (folder / "images").mkdir()
    for index in range(8):
        Image.new("RGB", (72, 64), (index * 30, 99, 200 - index * 20)).save(folder / "images" / f"{index}.png")
        (folder / "images" / f"{index}.txt").write_text(f"Colour number {index}.")
    table, tokenizer, store = folder / "table.safetensors", folder / "tokenizer", folder / "ids"
    run("export_codebook", "--model", tiny_llama, "--out", table)
    settings = ["train.steps=1", "train.batch_size=4", "train.val_images=4", f"run.dir={tokenizer}"]
    data = [f"model.codebook.table={table}", f"data.root={folder / 'images'}"]
    run("train_tokenizer", ROOT / DEFAULT_CONFIG, *SMALL, *settings, *data)
    run("encode_images", "--ckpt", tokenizer, "--images", folder / "images", "--out", store, "--workers", 0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**tiny)).save_pretrained(folder / "vision")
    known = {"vision": folder / "vision", "--base": tiny_llama}
    paths = {"--model": tiny_llama, "table": table, "--ckpt": tokenizer, "--images": folder / "images", "--ids": store}
    pq.write_table(pa.table({"text": ["A red circle."]}), folder / "a.parquet")
    roots = {"get_folder_anno": folder / "images", "get_parquet_anno": folder, "get_label_anno": write_fashion(folder / "fashion")}
    return {option: str(path) for option, path in (known | paths | roots).items()}


def small_arguments(name: str, words: list[str], stand_ins: dict[str, str], out: Path) -> list[str]:
    """Replace the values of options that name large things, and those of configs; drop what a document only hints at."""
    words = [word for word in words if "..." not in word and not word.startswith("[")]
    if name == "train_tokenizer":
        config, *overrides = words
        config = DEFAULT_CONFIG if config == "CONFIG.yaml" else config
        overrides = [word for word in overrides if not word.startswith(("data.", "run.", "model.codebook.table="))]
        overrides += [f"objective.semantic.words.model={stand_ins['--model']}", f"objective.semantic.teacher.path={stand_ins['vision']}"]
        return [
            str(ROOT / config), *overrides, *SMALL, f"model.codebook.table={stand_ins['table']}",
            f"data.root={stand_ins['--images']}", f"run.dir={out}",
        ]
    if name == "make_annotations":
        function = words[words.index("--func") + 1]
        root = stand_ins.get(function, str(ROOT / "data" / "sample"))
        return ["--func", function, "--root", root, "--out", str(out)]
    result: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if before == "--out":
            result.append(str(out / Path(word).name))
        elif before in stand_ins and not word.startswith("shapes:"):
            result.append(stand_ins[before])
        else:
            result.append(word)
    return result


# commands that run as they are written, in a folder that has what the documents name
IN_PROJECT = {
    "train_llm", "answer", "chat", "choose_sampling", "merge_lora", "benchmark", "generate_images", "eval_generation", "report",
    "export_questions",
}
SMALL_LLM = [
    "model.path=outputs/base", "model.image_tokenizer=outputs/hqvae_shapes", "data.val_files=[]", "data.max_length=500",
    "data.skip_bad=true", "data.stores=[outputs/hqvae_shapes/ids/val]", "data.num_workers=0", "train.steps=1",
    "train.batch_size=1", "train.micro_batch_size=1",
    "run.deepspeed=''",
]  # fmt: skip
SMALL_VISION = [
    "vision.kind=tokenizer", "vision.path=outputs/hqvae_shapes", "vision.dtype=float32", "vision.images=[shapes]", "data.stores=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tuned, tmp_path_factory) -> Path:
    """A folder with tiny stand-ins for what the documents name below it: models, a tokenizer with ids, the world's files, pictures."""
    folder = tmp_path_factory.mktemp("project")
    outputs = folder / "outputs"
    shutil.copytree(tuned.base, outputs / "base")
    from unicode.llm.base_model import CHAT_TEMPLATE

    (outputs / "base" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    shutil.copytree(tuned.image_tokenizer, outputs / "hqvae_shapes")
    shutil.copytree(outputs / "base", folder / "models" / "vicuna-7b-v1.5")
    made = ("unicode_lora", "unicode_lora_shapes", "unicode_visual_text", "unicode_shapes", "unicode_stage1", "unicode_stage1_shapes")
    for name in ("quickstart", "world"):
        shutil.copytree(tuned.image_tokenizer, outputs / name / "hqvae")
    for name in (*made, "quickstart/both", "world/draw"):
        shutil.copytree(tuned.run, outputs / name)
    (folder / "configs").symlink_to(ROOT / "configs")
    store = outputs / "hqvae_shapes" / "ids" / "val"
    run("encode_images", "--ckpt", outputs / "hqvae_shapes", "--images", "shapes:val", "--out", store, "--workers", 0, "limit=4")
    run("make_annotations", "--func", "get_shapes_anno", "--out", outputs / "shapes", "--limit", 4, "--questions", 1)
    questions = outputs / "shapes" / "shapes_questions_val.json"
    run("export_questions", "--anno", questions, "--out", outputs / "shapes" / "questions_val.jsonl")
    for place in (folder / "datasets" / "llava" / "eval", outputs / "shapes" / "eval"):
        run("export_benchmarks", "--out", place, "--scenes", 2)
    (folder / "prompts.txt").write_text("a red circle\n")
    for name in ("imagenet/class_names.txt", "cc3m/val_captions.txt"):
        (folder / "datasets" / name).parent.mkdir()
        (folder / "datasets" / name).write_text("a red circle\n")
    drawn = ["--prompts", "shapes:val", "--out", outputs / "drawn", "limit=2"]
    run("generate_images", "--model", outputs / "unicode_visual_text", *drawn)
    metrics = {"metrics": {}, "codes": {"levels": []}, "protocol": {"num_images": 0, "image_set": "shapes:val"}}
    (outputs / "hqvae_shapes" / "eval").mkdir()
    (outputs / "hqvae_shapes" / "eval" / "metrics.json").write_text(json.dumps(metrics))
    return folder


def replace_after(words: list[str], option: str, value: str) -> list[str]:
    """The words with another value of an option."""
    return [value if before == option else word for before, word in zip(["", *words], words, strict=False)]


def project_arguments(name: str, words: list[str]) -> list[str]:
    """The words of a line that runs in the project; a training's model, data and length are replaced by small ones."""
    words = [word for word in words if "..." not in word and not word.startswith("[")]
    if "CONFIG.yaml" in words and name == "generate_images":
        words = ["--model", "outputs/unicode_visual_text", "--config", "configs/generation/shapes.yaml", "--out", "outputs/new"]
    if name == "generate_images":  # outputs/drawn is there already, of another command
        renamed = [word.replace("outputs/drawn", "outputs/new_drawn") for word in words]
        return replace_after(renamed, "--model", "outputs/unicode_visual_text")
    if name == "eval_generation":
        return ["--pictures", "outputs/drawn"]
    if name != "train_llm":
        return words
    config, *rest = words
    config = "configs/llm/unicode_lora.yaml" if config == "CONFIG.yaml" else config
    kept = [word for word in rest if not word.startswith(("model.", "data.", "vision.", "run."))]
    vision = "vision:" in (ROOT / config).read_text(encoding="utf-8")
    own = ["vision.projector_path=''"] if vision and "projector_path" in (ROOT / config).read_text(encoding="utf-8") else []
    files = "data.files=[outputs/shapes/shapes_questions_val.json]"
    return [config, *kept, *SMALL_LLM, files, *(SMALL_VISION if vision else []), *own, f"run.dir=outputs/new_{Path(config).stem}"]


ELSEWHERE = {"--help", "--engine"}  # lines with an engine need its server; tests/serve runs them
RUNNABLE = [line for line in LINES if target(line)[0] in COMMANDS and not ELSEWHERE & set(line.words)]
NOT_SMALL = {"convert_tokenizer", "import_ids"}  # they read folders that only their own tests make


def options(line: Line) -> tuple[object, ...]:
    """What distinguishes a line from others: its command, its configs and the names of its options and settings."""
    name, words = target(line)
    return name, *sorted({word.partition("=")[0] for word in words if word.startswith("-") or "=" in word or word.endswith(".yaml")})


DIFFERENT = list({options(line): line for line in reversed(RUNNABLE)}.values())[::-1]


@pytest.mark.parametrize("line", [line for line in DIFFERENT if target(line)[0] not in NOT_SMALL | IN_PROJECT], ids=str)
def test_documented_commands_run_dry(line, stand_ins, tmp_path):
    name, words = target(line)
    assert name is not None
    arguments = small_arguments(name, words, stand_ins, tmp_path / "out")
    run(name, *arguments, *([] if "--dry-run" in arguments else ["--dry-run"]))


@pytest.mark.parametrize("line", [line for line in DIFFERENT if target(line)[0] in IN_PROJECT], ids=str)
def test_documented_commands_run_in_a_project(line, project, monkeypatch):
    name, words = target(line)
    assert name is not None
    monkeypatch.chdir(project)
    arguments = project_arguments(name, words)
    run(name, *arguments, *([] if "--dry-run" in arguments else ["--dry-run"]))
