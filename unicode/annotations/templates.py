"""Prompt templates of every task, drawn by a hash of seed and record."""

import json
from hashlib import blake2b
from pathlib import Path

TEXT_TO_IMAGE = "text_to_image"
NEXT_ROW = "next_row"
FIRST_ROW = "first_row"
UNCONDITIONAL = "unconditional"
DECOMPRESSION = "decompression"
CAPTION = "caption"
LABEL_CAPTION, LABEL_WHAT, LABEL_CHOICE, LABEL_CLAIM = "label_caption", "label_what", "label_choice", "label_claim"
HELD = 4  # templates at the end of each list of labels that no training file uses

TEMPLATES: dict[str, tuple[str, ...]] = {
    task: tuple(texts) for task, texts in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}
"""The templates of each task, from templates.json; every task has at least sixteen."""


def draw(count: int, seed: int, *keys: str) -> int:
    """A whole number in [0, count), even over keys and fixed by `seed` and `keys`, whatever else is drawn before or after.

    ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"draw among {count} things; there must be one at least")
    return _hash(seed, keys) % count


def draw_share(seed: int, *keys: str) -> float:
    """A number in [0, 1), even over keys and fixed by `seed` and `keys`."""
    return (_hash(seed, keys) >> 11) * 2.0**-53


def fill(task: str, seed: int, key: str, **slots: str) -> str:
    """A template of `task`, drawn for the record `key`, filled in. ValueError for an unknown task."""
    if task not in TEMPLATES:
        raise ValueError(f"no templates for task '{task}'; there are: {', '.join(TEMPLATES)}")
    return TEMPLATES[task][draw(len(TEMPLATES[task]), seed, task, key)].format(**slots)


def fill_caption(request: str, caption: str) -> str:
    """Put a description into the words of a request. ValueError: words without the slot {caption}, or with another."""
    try:
        if "{caption}" in request:
            return request.format(caption=caption)
    except (KeyError, IndexError, ValueError):
        pass
    raise ValueError(f"template '{request}' cannot be filled in; its only slot is {{caption}}")


def _hash(seed: int, keys: tuple[str, ...]) -> int:
    message = "\0".join((str(seed), *keys)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(message, digest_size=8).digest(), "big")
