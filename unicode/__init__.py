"""UniCode: one codebook for text and images."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Given on first use, so that `import unicode` stays fast: name -> the module that has it.
_PUBLIC = {"load_tokenizer": "unicode.tokenizer.load", "load_model": "unicode.generate.chat"}


def __getattr__(name: str) -> Any:
    """Give `load_tokenizer` and `load_model`."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'unicode' has no attribute '{name}'")
