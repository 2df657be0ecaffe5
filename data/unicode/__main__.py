"""`python data/unicode process.py --func NAME ...`: runs the script of this folder that the first argument names."""

import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().with_name("process.py")

if __name__ == "__main__":
    if sys.argv[1:2] != [SCRIPT.name]:
        sys.exit("usage: python data/unicode process.py --func NAME [options]")
    del sys.argv[1]
    runpy.run_path(str(SCRIPT), run_name="__main__")
