"""Pages made from the code: `--help` of every command, every field of every config.

    python docs/reference_pages.py        writes docs/commands.md and docs/configs/*.md
"""

import ast
import contextlib
import io
import os
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import getdoc, getsource
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WIDTH = "110"
AGAIN = "This page is made from the code by `python docs/reference_pages.py`; a test compares the two."
FAMILIES = {
    "tokenizer": ("Configs of tokenizers", "unicode.train.config", "TrainTokenizerConfig", "train_tokenizer CONFIG.yaml"),
    "llm": ("Configs of language models", "unicode.train.config", "TrainLlmConfig", "train_llm CONFIG.yaml"),
    "generation": (
        "Configs of image generation",
        "unicode.generate.images",
        "GenerationConfig",
        "generate_images --model DIR --config CONFIG.yaml --out DIR",
    ),
}
"""Folder of configs -> title of its page, module and class of its fields, command that reads them."""



ENVIRONMENT = """| environment variable | effect |
|---|---|
| `PYTHON` | interpreter of the scripts, taken as it is |
| `NUM_RANKS` | processes that the scripts start on a machine without a GPU (default: 1; the quickstart: 2) |
| `NNODES`, `NODE_RANK`, `MASTER_ADDR`, `MASTER_PORT` | several servers |
| `DATA_ROOT` | folder of LLaVA's data (default: `datasets/llava`) |
| `OPENAI_BASE_URL`, `OPENAI_API_KEY`, `JUDGE_MODEL`, `JUDGE_PRICE_IN`, `JUDGE_PRICE_OUT` | the grading model of LLaVA-Bench |
| `UNICODE_CACHE` | folder of the indexes of annotation files (default: `~/.cache/unicode`; empty: none) |
| `UNICODE_TRACEBACK=1` | show the traceback of a user's error |"""


def commands() -> list[str]:
    """Return the names of the commands of unicode.run, in order."""
    return sorted(path.stem for path in (ROOT / "unicode" / "run").glob("*.py") if _has_main(path))


def help_of(name: str) -> str:
    """Return what a command prints with --help, at the width of the page and without colours."""
    printed = io.StringIO()
    before = {key: os.environ.get(key) for key in ("COLUMNS", "NO_COLOR")}
    os.environ.update({"COLUMNS": WIDTH, "NO_COLOR": "1"})
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            import_module(f"unicode.run.{name}").main(["--help"])
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def commands_page() -> str:
    """Return docs/commands.md."""
    lead = "The `--help` of every command. With `--dry-run` a command builds and checks everything and stops before the work."
    parts = [f"## {name}\n\n```text\n{help_of(name)}\n```" for name in commands()]
    return "\n\n".join(["# Commands", f"{lead}\n{AGAIN}", ENVIRONMENT, *parts]) + "\n"


def config_page(family: str) -> str:
    """Return docs/configs/FAMILY.md: the opening comment of each file of configs/FAMILY, and every field it may set."""
    title, module, name, command = FAMILIES[family]
    lead = (
        f"A file of `configs/{family}/` holds what differs from the defaults below, or from the file that its `extends:` names.\n"
        "The command line replaces single fields, `a.b=c`; an unknown field is an error that names the nearest one. The resolved\n"
        "config is saved in the run folder.\n"
        f"{AGAIN}\n\n"
        f"```sh\npython -m unicode.run.{command} [a.b=c ...] --dry-run\n```"
    )
    files = []
    for path in sorted((ROOT / "configs" / family).glob("*.yaml")):
        comment = [line[1:].removeprefix(" ") for line in _leading_comment(path)]
        files.append(f"* `{path.relative_to(ROOT).as_posix()}`: " + _bullet(comment))
    parts = [f"# {title}", lead, "## Files", "\n".join(files), "## Fields"]
    return "\n\n".join([*parts, *field_tables(getattr(import_module(module), name)())]) + "\n"


def field_tables(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield a table of fields for a dataclass and for each dataclass in it."""
    notes, rows, inner = field_notes(type(config)), [], []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            inner.append((f"{prefix}{field.name}", value))
        else:
            what = notes.get(field.name, "").replace("|", "\\|")
            rows.append(f"| `{field.name}` | `{_plain(value)}` | {what} |")
    if prefix:
        yield f"### {prefix.rstrip('.')}"
        yield (getdoc(type(config)) or "").split("\n\n")[0].replace("\n", " ")
    if rows:
        yield "\n".join(["| field | default | what |", "|---|---|---|", *rows])
    for name, value in inner:
        yield from field_tables(value, f"{name}.")


def field_notes(kind: type) -> dict[str, str]:
    """Return field -> its description in its class or in a class it inherits from."""
    notes: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            notes |= {name: note for name, note in _own_notes(base).items() if note or name not in notes}
    return notes


def _own_notes(kind: type) -> dict[str, str]:
    """Return field -> the text below it, or the comments above it and behind it, of the fields in the body of a class."""
    source = textwrap.dedent(getsource(kind))
    comments: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    notes = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            notes[node.target.id] = " ".join(str(below.value.value).split())
            continue
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        notes[node.target.id] = " ".join(comments[line] for line in range(first, (node.end_lineno or node.lineno) + 1) if line in comments)
    return notes


def pages() -> dict[Path, str]:
    """Return path -> content of every page that is made from the code."""
    made = {ROOT / "docs" / "commands.md": commands_page()}
    return made | {ROOT / "docs" / "configs" / f"{family}.md": config_page(family) for family in FAMILIES}


def _plain(value: Any) -> str:
    """A default as YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value == "" else str(value)


def _leading_comment(path: Path) -> list[str]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return lines


def _bullet(comment: list[str]) -> str:
    """The comment that opens a config: its commands as code, the rest as text."""
    words, code = [], []
    for line in comment:
        (code if line.startswith("  ") else words).append(line.strip())
    text = " ".join(words)
    return text + ("\n\n  ```sh\n" + "\n".join(f"  {line}" for line in code) + "\n  ```\n" if code else "")


def _has_main(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for page, content in pages().items():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(content, encoding="utf-8")
