"""`generate_images --reference`: conversations are held with the model and written down, with their pictures, for a reader.

OUT/conversations.jsonl    {"id", "turns": what was said, pictures as <vistok> runs, "error"?} a line
OUT/page.html, page.md     questions, the model's answers, and the answers of the file beside them; pictures in OUT/pictures/
"""

import argparse
import re
from pathlib import Path
from typing import Any

from unicode.common.distributed import is_main
from unicode.common.files import read_jsonl, write_jsonl
from unicode.common.json_lists import read_json_list
from unicode.common.logging import get_logger
from unicode.generate.images import GenerationConfig, decode_pictures
from unicode.generate.interleaved import ChatSampler, Conversation, Dialogue, hold_conversations, parse_conversations
from unicode.generate.page import PictureFiles, Piece, Turn, write_pages
from unicode.generate.questions import ImageError, ImageReader, open_lookup
from unicode.llm.load import Content, LanguageModel

log = get_logger(__name__)


def answer_conversations(model: LanguageModel, args: argparse.Namespace, config: GenerationConfig) -> int:
    """Hold the conversations of `args.reference` and write them to `args.out`; returns the exit code, 2 where none could be held.

    Raises:
        FileNotFoundError, ValueError: no such file, or it holds no conversations; a model that writes no pictures.
    """
    source = Path(args.reference)
    if source.suffix not in (".json", ".jsonl"):
        raise ValueError(f"--reference {source}: conversations are LLaVA's .json, or .jsonl with one a line")
    records = list(read_jsonl(source) if source.suffix == ".jsonl" else read_json_list(source))
    asked = parse_conversations(records[: config.limit or None], source=str(source))
    if not asked:
        raise ValueError(f"{source} holds no conversations")
    speaker = ChatSampler(model, pictures=config.sampling(), num_tokens=args.max_new_tokens, max_pictures=args.max_pictures)
    if args.dry_run:
        log.info("%d conversations, %d of them cannot be held", len(asked), sum(bool(one.error) for one in asked))
        return 0
    if not is_main():
        return 0  # a few conversations for a reader are not worth dealing out
    asked, contents = read_images(model, asked, open_lookup(args.images, model))
    talks = hold_conversations(speaker, asked, contents, seed=config.seed, batch_size=config.batch_size)
    write_conversations(model, Path(args.out), asked, talks, title=f"{Path(args.model).name}: {source.name}")
    errors = [talk.error for talk in talks if talk.error]
    for error in errors[:5]:
        log.warning("%s", error)
    log.info("%s: %d conversations, %d of them not to the end", args.out, len(talks), len(errors))
    return 2 if len(errors) == len(talks) else 0


def read_images(model: LanguageModel, asked: list[Conversation], pictures: Any) -> tuple[list[Conversation], list[list[Content]]]:
    """What is read for the images of each conversation; a conversation whose image cannot be read carries the reason."""
    contents: list[list[Content]] = []
    with ImageReader(model, pictures=pictures) as reader:
        found = reader.read(image for one in asked for image in one.images)
        for place, one in enumerate(asked):
            try:
                contents.append(reader.contents(one.images, found))
            except ImageError as error:
                contents.append([])
                asked[place] = Conversation(one.id, one.questions, one.references, one.images, f"conversation '{one.id}': {error}")
    return asked, contents


def write_conversations(model: LanguageModel, out: Path, asked: list[Conversation], talks: list[Dialogue], *, title: str) -> None:
    """Write conversations.jsonl, page.html, page.md and the pictures."""
    files = PictureFiles(model, out, decode=lambda ids: decode_pictures(model, ids))
    pages: list[tuple[str, list[Turn]]] = []
    for place, (one, talk) in enumerate(zip(asked, talks, strict=True)):
        name = f"{place:04d}-{re.sub(r'[^0-9A-Za-z_.-]', '_', one.id)[:40]}"
        turns: list[Turn] = []
        for number, said in enumerate(talk.turns):
            speaker = "model" if number % 2 else "user"
            turns.append(Turn(speaker, files.pieces(said, f"{name}-{number}")))
            if number % 2 and number // 2 < len(one.references):
                turns.append(Turn("reference", files.pieces(one.references[number // 2], f"{name}-{number}-reference")))
        if talk.error:
            turns.append(Turn("error", (Piece(talk.error),)))
        pages.append((one.id, turns))
    lines = [{"id": one.id, "turns": talk.turns, "error": talk.error} for one, talk in zip(asked, talks, strict=True)]
    write_jsonl(out / "conversations.jsonl", ({key: value for key, value in line.items() if value != ""} for line in lines))
    write_pages(out, title, pages)
