"""`python data/unicode/process.py --func NAME ...`: the functions of unicode.run.make_annotations from a bare clone.

The package need not be installed. Where the interpreter lacks the dependencies, that of .venv takes over.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"


def find_dependencies() -> None:
    """Start again with the interpreter of .venv where this one has no torch; end with a message where there is no .venv either."""
    if find_spec("torch") is not None:
        return
    python = VENV / "bin" / "python"
    if Path(sys.prefix).resolve() == VENV.resolve() or not python.exists():
        sys.exit(f"error: {sys.executable} lacks the dependencies; install them with: pip install -e {ROOT}")
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


if __name__ == "__main__":
    find_dependencies()
    sys.path.insert(0, str(ROOT))
    from unicode.run.make_annotations import main

    raise SystemExit(main())
