"""UniCode: one codebook for text and images."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Give `load_tokenizer` on first use, so that `import unicode` stays fast."""
    if name == "load_tokenizer":
        from unicode.tokenizer.load import load_tokenizer

        return load_tokenizer
    raise AttributeError(f"module 'unicode' has no attribute '{name}'")
