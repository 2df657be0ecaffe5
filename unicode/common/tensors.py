"""Files of tensors written by torch: read without running what a pickle might hold."""

import re
from pathlib import Path
from typing import Any

import torch


def read_tensors(path: str | Path, *, wanted: str) -> Any:
    """Load a file of `torch.save` onto the CPU, plain tensors and containers only.

    Args:
        wanted: what the caller expects in the file, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of torch, is damaged, or holds objects other than plain tensors and containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}; {wanted} is expected there")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on bytes that are no pickle the reader fails in whatever way they lead it to
        raise ValueError(f"{path} is damaged or not a file of plain tensors ({_reason(error)}); {wanted} is expected there") from error


def _reason(error: Exception) -> str:
    """Return what the reader found, without its advice, which is to load the file unsafely."""
    found = re.search(r"unsupported [^\n]*?(?= was| whose|\n|$)", str(error), flags=re.IGNORECASE)
    return found[0] if found else (str(error).splitlines() or [type(error).__name__])[0][:120]
