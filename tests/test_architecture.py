"""The rules of the house as tests: the order of the packages, the size of files and functions, docstrings, words, scripts."""

import ast
import re
import subprocess
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "unicode"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 90
VAGUE_NAMES = {"utils.py", "util.py", "misc.py", "helpers.py", "helper.py", "common.py", "tools.py"}
FORBIDDEN = re.compile(r"\b(?:pd" r"b|TO" r"DO|FIX" r"ME|XX" r"X)\b|break" r"point\(")
MACHINE_PATH = re.compile(r"(?<![\w.~$}-])/(?:work|share|farm|root|home|Users)/")
TEXT_SUFFIXES = {".py", ".sh", ".md", ".yaml", ".yml", ".toml", ".json", ".txt", ".cfg"}


def tracked_files() -> list[Path]:
    """What git would commit; everything but hidden and generated folders where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        skipped = {".venv", ".git", "outputs", "build", "dist", "__pycache__"}
        return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


FILES = tracked_files()
MODULES = sorted(path for path in FILES if path.suffix == ".py" and path.is_relative_to(PACKAGE))
SCRIPTS = sorted(path for path in FILES if path.suffix == ".sh")
DOCUMENTS = sorted(path for path in FILES if path.suffix == ".md")


def name_of(path: Path) -> str:
    """Return a path relative to the repository, as the name of a test case."""
    return path.relative_to(ROOT).as_posix()


each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def layers() -> list[set[str]]:
    """Return the packages line by line, lowest first, from the table of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+/`(?:, )?)+) \|", text, flags=re.MULTILINE)
    return [set(re.findall(r"`(\w+)/`", row)) for row in rows]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> set[str]:
    """Return the modules of ours that a module names in import statements, inside functions too."""
    known = {module_name(other) for other in MODULES}
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import; write the full name"
            names |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else str(node.module) for alias in node.names}
    return {name for name in names if name == "unicode" or name.startswith("unicode.")}


def package_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def test_every_package_stands_in_the_architecture():
    written = set().union(*layers())
    present = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert present <= written, f"docs/architecture.md lacks {sorted(present - written)}"


@each_module
def test_imports_point_downwards(path):
    order = {package: level for level, packages in enumerate(layers()) for package in packages}
    own = package_of(module_name(path))
    for name in imported_modules(path):
        other = package_of(name)
        if own is None or other is None or other == own:
            continue
        assert order[other] < order[own], f"{module_name(path)} imports {name}: {other}/ does not stand below {own}/"
        assert own != "metrics" or other == "common", f"{module_name(path)} imports {name}: metrics/ imports only common/"


def test_modules_form_no_cycle():
    modules = [path for path in MODULES if path != PACKAGE / "__init__.py"]
    graph = {module_name(path): imported_modules(path) - {module_name(path), "unicode"} for path in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


@each_module
def test_size(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{lines} lines, at most {MAX_FILE_LINES}: one concept per file"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= MAX_FUNCTION_LINES, f"{node.name} has {size} lines, at most {MAX_FUNCTION_LINES}"


@each_module
def test_docstrings(path):
    assert ast.get_docstring(tree_of(path)), "the module says nothing about itself"
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_names_say_what_is_inside():
    assert not [name_of(path) for path in FILES if path.name in VAGUE_NAMES]
    assert not list((ROOT / "data").glob("*.py")), "a module in data/ would see data/unicode in place of the package"


def test_texts_are_clean():
    found = []
    for path in FILES:
        if path.suffix not in TEXT_SUFFIXES or path.stat().st_size > 1_000_000:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if (path != Path(__file__) and FORBIDDEN.search(line)) or MACHINE_PATH.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_parse(path):
    shells = ["bash"] if path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash") else ["sh", "bash"]
    for shell in shells:
        outcome = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_documents_name_files_that_exist(path):
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.-])((?:scripts|configs|docs|tests)/[\w./{}-]*\w\.(?:sh|yaml|md|py))", text))
    named |= {target for target in re.findall(r"\]\(([\w./-]+)\)", text) if "://" not in target}
    absent = [name for name in sorted(named) if "{" not in name and not (ROOT / name).exists() and not (path.parent / name).exists()]
    assert not absent, f"{name_of(path)} names {absent}"
