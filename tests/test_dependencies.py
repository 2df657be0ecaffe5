"""What the package imports: declared, and heavy libraries not before a command works."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "torchmetrics", "transformers", "tokenizers", "deepspeed", "accelerate", "peft", "lpips", "scipy")
COMMANDS = sorted(path.stem for path in (ROOT / "unicode" / "run").glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8"))
SHOW_HELP = f"""
import contextlib, io, sys
from importlib import import_module

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY}:
            raise AssertionError(f"{{name}} is imported")

sys.meta_path.insert(0, Refuse())
for name in {COMMANDS}:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        import_module("unicode.run." + name).main(["--help"])
    assert "usage:" in printed.getvalue() and "--dry-run" in printed.getvalue(), name
print("all", len({COMMANDS}))
"""


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(*folders: str) -> set[str]:
    """Return the libraries that the modules of some folders import, and those that they `require`."""
    names: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require" and isinstance(node.args[0], ast.Constant):
                names.add(node.args[0].value.split(".")[0])
    own = {path.stem for path in [*(ROOT / "tests").rglob("*"), *(ROOT / "data").rglob("*.py")]} | {"unicode", "__future__"}
    return {name for name in names if name not in sys.stdlib_module_names and name not in own}


def declared(*extras: str) -> set[str]:
    """Return the distributions that pyproject.toml names, for users and for some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {normalized(re.match(r"[\w.-]+", line)[0]) for line in lines}


def undeclared(libraries: set[str], known: set[str]) -> list[str]:
    distributions = packages_distributions()
    return sorted(name for name in libraries if not {normalized(one) for one in distributions.get(name, [name])} & known)


def test_what_the_package_imports_is_declared():
    extras = ("demo", "gguf", "judge", "lmms-eval", "lsun", "mmbench", "parquet", "serve")
    assert undeclared(imported("unicode"), declared(*extras)) == []
    assert undeclared(imported("tests", "docs", "data"), declared("dev", "lmms-eval")) == []


def test_help_needs_no_heavy_library():
    done = subprocess.run([sys.executable, "-c", SHOW_HELP], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == f"all {len(COMMANDS)}", done.stderr[-2000:]
