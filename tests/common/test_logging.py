"""What reaches the terminal: our messages and warnings, not those of libraries that a user cannot act on."""

import logging
import os
import subprocess
import sys
from pathlib import Path

from unicode.common.logging import printable

PROGRAM = """
import logging, subprocess, sys, warnings
from unicode.common.logging import get_logger, setup_logging

setup_logging()
for module in ("torch.autograd.graph", "deepspeed", "transformers.utils", "unicodedata2", "unicode.images.decode"):
    warnings.warn_explicit(f"from {module}", FutureWarning, "file.py", 1, module=module)
logging.getLogger("DeepSpeed").warning("Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it.")
logging.getLogger("DeepSpeed").warning("a real one")
get_logger("unicode.x").warning("ours")
subprocess.run([sys.executable, "-c", "import warnings; warnings.warn('from a worker', FutureWarning)"])
"""


def test_warnings_of_libraries_are_hidden_ours_are_not() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}  # commands that ran in this process set it
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True, env=clean)
    assert "from unicode.images.decode" in done.stderr
    assert "a real one" in done.stderr and "ours" in done.stderr
    for hidden in ("torch", "deepspeed", "transformers", "unicodedata2", "accelerator", "worker"):
        assert hidden not in done.stderr, done.stderr


def test_a_user_who_asks_for_warnings_gets_them() -> None:
    command = [sys.executable, "-W", "default", "-c", PROGRAM]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert "from transformers.utils" in done.stderr


def test_the_filter_is_added_once() -> None:
    from unicode.common.logging import setup_logging

    setup_logging()
    before = list(logging.getLogger("DeepSpeed").filters)
    setup_logging()
    assert logging.getLogger("DeepSpeed").filters == before


def test_control_characters_of_unknown_text_are_written_as_escapes():
    assert printable("a\x1b[2J\x07\u202eb\x9b\r\ud800\n\tcé🙂") == "a\\x1b[2J\\x07\\u202eb\\x9b\\r\\ud800\n\tcé🙂"
