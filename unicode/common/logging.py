"""Console messages: one logger per module; INFO on the main rank, warnings on the others; no warnings about the inside of libraries."""

import logging
import os
import sys
import warnings

from unicode.common.distributed import is_main

QUIET = ("PIL", "httpx", "matplotlib", "urllib3")
IGNORED_WARNINGS = ",".join(f"ignore::{name}Warning" for name in ("Future", "Deprecation", "PendingDeprecation", "User"))


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; call with `__name__`."""
    return logging.getLogger(name)


def setup_logging() -> None:
    """Send messages to standard error: everything from INFO on the main rank, warnings elsewhere. Commands call it once.

    Python warnings that arise in other packages are hidden, in worker processes too, unless PYTHONWARNINGS or `python -W` is set.
    """
    level = logging.INFO if is_main() else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(?!unicode\b)")
        os.environ.setdefault("PYTHONWARNINGS", IGNORED_WARNINGS)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message of DeepSpeed tells more than that there is no GPU, which the commands log themselves."""
    return "Setting accelerator to CPU" not in record.getMessage()
