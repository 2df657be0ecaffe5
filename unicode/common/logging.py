"""Console messages: one logger per module, INFO on the main rank, warnings on the others; no warnings about the inside of libraries."""

import logging
import os
import re
import sys
import warnings

from unicode.common.distributed import is_main

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
QUIET = ("PIL", "httpx", "httpx2", "matplotlib", "urllib3")
IGNORED_WARNINGS = ",".join(f"ignore::{name}Warning" for name in ("Future", "Deprecation", "PendingDeprecation", "User"))
get_logger = logging.getLogger  # of a module; call with `__name__`


def printable(text: str) -> str:
    """Return a text of unknown origin with control characters, bidirectional overrides and lone surrogates written as escapes.

    Line breaks and tabs stay. A terminal or a page then shows the text and does nothing else.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def setup_logging() -> None:
    """Send messages to standard error: everything from INFO on the main rank, warnings elsewhere. Commands call it once.

    Python warnings that arise in other packages are hidden, in worker processes too, unless PYTHONWARNINGS or `python -W` is set.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if is_main() else logging.WARNING, handlers=[handler])
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(?!unicode\b)")
        os.environ.setdefault("PYTHONWARNINGS", IGNORED_WARNINGS)


def _is_news(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()  # the commands log themselves that there is no GPU
