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
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_SHARED_LINES = 600, 90, 12
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


def test_imports_point_downwards():
    order = {package: level for level, packages in enumerate(layers()) for package in packages}
    wrong = []
    for path in MODULES:
        own = package_of(module_name(path))
        for name in sorted(imported_modules(path)):
            other = package_of(name)
            if own is None or other is None or other == own:
                continue
            if order[other] >= order[own] or (own == "metrics" and other != "common"):
                wrong.append(f"{module_name(path)} imports {name}")
    assert not wrong, "a package imports only those above it in docs/architecture.md, metrics/ only common/:\n" + "\n".join(wrong)


def test_modules_form_no_cycle():
    modules = [path for path in MODULES if path != PACKAGE / "__init__.py"]
    graph = {module_name(path): imported_modules(path) - {module_name(path), "unicode"} for path in modules}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_size():
    large = []
    for path in MODULES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        large += [f"{name_of(path)}: {lines} lines"] if lines > MAX_FILE_LINES else []
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                large += [f"{name_of(path)}: {node.name} has {size} lines"] if size > MAX_FUNCTION_LINES else []
    assert not large, f"at most {MAX_FILE_LINES} lines a file and {MAX_FUNCTION_LINES} a function:\n" + "\n".join(large)


def test_docstrings():
    lacking = [name_of(path) for path in MODULES if not ast.get_docstring(tree_of(path))]
    entry_points = {"main", "build_parser"}  # every command has them
    for path in MODULES:
        exempt = entry_points if path.parent.name == "run" else set()
        for node in tree_of(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                lacking += [f"{name_of(path)}: {node.name}"] if node.name not in exempt else []
    assert not lacking, "no docstring: " + ", ".join(lacking)


def test_nothing_is_written_twice():
    """No run of MAX_SHARED_LINES lines stands in two places of the package; blank lines, comments and imports do not count."""
    places: dict[tuple[str, ...], str] = {}
    twice = []
    for path in MODULES:
        lines = [
            (number, line.strip())
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if line.strip() and not line.strip().startswith(("#", "import ", "from "))
        ]
        for start in range(len(lines) - MAX_SHARED_LINES + 1):
            run = tuple(text for _, text in lines[start : start + MAX_SHARED_LINES])
            here = f"{name_of(path)}:{lines[start][0]}"
            if places.setdefault(run, here) != here:
                twice.append(f"{here} repeats {places[run]}")
    assert not twice, "\n".join(twice)


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
