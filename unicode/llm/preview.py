"""Samples as a person reads them: what is learned and what is masked told apart, images as the number of their ids."""

import sys
from collections.abc import Iterable
from itertools import islice
from typing import Any, TextIO

from unicode.llm.pieces import piece_encoder
from unicode.llm.supervise import IGNORED, Example

GREEN, GREY, RESET = "\033[1;32m", "\033[90m", "\033[0m"
OPEN, CLOSE = "⟦", "⟧"


def format_example(example: Example, text_tokenizer: Any, *, colour: bool = False) -> str:
    """Return an example as text: learned stretches in brackets, or green among grey, and each run of image ids as its length."""
    learned = (example.labels != IGNORED).tolist()
    images, branches, ids = example.is_image.tolist(), example.branch.tolist(), example.input_ids.tolist()
    encoder, compressed = piece_encoder(text_tokenizer), set(example.extra_at.tolist())
    pieces, start = [], 0
    for place in range(1, len(ids) + 1):
        whole = place < len(ids) and (learned[place], images[place], branches[place]) == (learned[start], images[start], branches[start])
        if whole:
            continue
        words = encoder.decode(ids[start:place])
        if images[start]:
            words = f"({place - start} {'cells' if start in compressed else 'ids'})"
        if branches[start] and (not start or branches[start] != branches[start - 1]):
            pieces.append(f"\n--- turn {branches[start]} ---\n")
        opened, closed = (GREEN if learned[start] else GREY, RESET) if colour else ((OPEN, CLOSE) if learned[start] else ("", ""))
        pieces.append(f"{opened}{words}{closed}")
        start = place
    return "".join(pieces).replace(f"{CLOSE}{OPEN}", "")


def preview(examples: Iterable[Example], text_tokenizer: Any, *, count: int, stream: TextIO | None = None) -> None:
    """Print the first `count` examples with the number of their tokens, in colour where the stream is a terminal."""
    stream = stream or sys.stdout
    for number, example in enumerate(islice(examples, count)):
        targets = f"{example.num_text_targets} words or marks and {example.num_image_targets} image ids learned"
        print(f"=== {number}: {example.task or 'no task'}, {len(example)} tokens, {targets}", file=stream)
        print(format_example(example, text_tokenizer, colour=stream.isatty()), file=stream)
