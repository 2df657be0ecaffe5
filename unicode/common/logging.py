"""Console messages: one logger per module; INFO on the main rank, warnings on the others."""

import logging
import sys

from unicode.common.distributed import is_main


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; call with `__name__`."""
    return logging.getLogger(name)


def setup_logging() -> None:
    """Send messages to standard error: everything from INFO on the main rank, warnings elsewhere. Commands call it once."""
    level = logging.INFO if is_main() else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("PIL", "httpx", "matplotlib", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
