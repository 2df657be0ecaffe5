"""`python data/unicode/process.py --func NAME ...`: the annotation functions of unicode.run.make_annotations from a bare clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing has to be installed

from unicode.run.make_annotations import main

if __name__ == "__main__":
    raise SystemExit(main())
