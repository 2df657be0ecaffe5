"""Libraries that only some commands need: imported when they are used, or an error that names the extra to install."""

from importlib import import_module
from typing import Any


def require(library: str, *, extra: str) -> Any:
    """Import and return a library of one of the project's optional dependencies.

    Raises ValueError: it is not installed; the message has the command that installs it.
    """
    try:
        return import_module(library)
    except ImportError as error:
        command = f"python -m pip install 'unicode-mllm[{extra}]'"
        raise ValueError(f"the package {library.partition('.')[0]} is not installed; this installs it: {command}") from error
