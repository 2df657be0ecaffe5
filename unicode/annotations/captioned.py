"""Captioned pictures (the shapes world, folders, data sets with labels or text) -> annotation files of LLaVA's form, for train and val.

<name>_captions_{train,val}.json    {"id", "image", "conversations": ["<image>\\nDescribe it.", caption]}, as LLaVA's 558K
<name>_questions_{train,val}.json   the same with short questions and answers, as LLaVA's 665K mix, and "kinds", one a question

Of the shapes world there are <name>_{captions,questions}_val_held.json too: the val scenes in forms of words that training does not have.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from unicode.annotations.build import Made, Report, build, check_share
from unicode.annotations.records import IMAGE_TAG, NO_CAPTION, NOT_TEXT, RefusedError, make_turns, read_record
from unicode.annotations.templates import CAPTION, draw, fill
from unicode.common.config import load_config
from unicode.images.listing import is_held_out, list_folder
from unicode.images.shapes import SPLITS, ShapesConfig, find_scene, scene_keys
from unicode.images.shapes_text import SceneQuestion, scene_questions, typed_caption, typed_question

SHORT = "Answer the question using a single word or phrase."
"""What stands after the first question of a conversation in LLaVA's mix, and after every question of the benchmarks."""
NUM_CHOICES, OTHERS = 4, 8  # answers to choose from; pictures among which another caption is looked for
Conversation = list[dict[str, Any]]  # Turns as a data set has them
Words = tuple[int, str, Sequence[SceneQuestion] | Conversation]  # Of one picture: place of its split, caption ("": none), questions
Groups = dict[str, list[str]]  # Folder of a tree ("" for its root) -> names of the folders in it that hold pictures


def get_shapes_anno(
    out: str | Path, *, seed: int = 0, world: Sequence[str] = (), limit: int = 0, questions: int = 5, dry_run: bool = False
) -> Report:
    """Captions and questions of the shapes world. Its pictures are generated when they are encoded: --images shapes:train, shapes:val.

    Writes shapes_captions_{train,val,val_held}.json and shapes_questions_{train,val,val_held}.json, shuffled. Words are in many forms;
    those of val_held do not occur in the other files. The scenes have a seed of their own in `world`.

    Args:
        world: settings of the world, as "colours=8"; the same that the tokenizer's command is given as shapes.colours=8.
        limit: the first so many scenes of each split; 0: all.
    """
    config = load_config(ShapesConfig, None, world)
    if limit < 0:
        raise ValueError(f"limit is {limit}; it must be 0 (all scenes) or more")

    def describe(key: str, rng: Random) -> list[Words]:
        scene, split = find_scene(config, key), SPLITS.index(key.partition("/")[0])
        made: list[Words] = []
        for held in (False, True)[: split + 1]:
            asked = [typed_question(question, rng, held=held) for question in scene_questions(scene, rng)]
            made.append((split + held, typed_caption(scene, rng, held=held), asked))
        return made

    report = Report("get_shapes_anno", seed, inputs=["shapes"])
    keys = [key for split in SPLITS for key in scene_keys(config, split, limit=limit)]
    splits = (*SPLITS, "val_held")
    return build_words(report, "shapes", keys, describe, Path(out), splits=splits, questions=questions, dry_run=dry_run)


def get_folder_anno(
    root: str | Path, out: str | Path, *, seed: int = 0, val_share: float = 0.05, questions: int = 5, dry_run: bool = False
) -> Report:
    """Captions and questions of a folder of captioned pictures: animals/birds/owl.png with animals/birds/owl.txt.

    The caption is the first line of the text; the questions ask for the subject (animals) and the group (birds), taken from the tree
    of folders, or of a picture in none, which of two captions is its own. Writes <name>_captions_{train,val}.json and
    <name>_questions_{train,val}.json, shuffled; <name> is the folder's.

    Args:
        root: the folder of pictures, from which the paths in the output start.
    """
    check_share(val_share)
    keys = list(list_folder(root).keys)
    groups = find_groups(keys)

    def describe(key: str, rng: Random) -> Words:
        caption = read_caption((Path(root) / key).with_suffix(".txt"))
        asked = subject_questions(key, groups, rng) or caption_questions(caption, others(rng), rng)
        return int(is_held_out(key, val_share)), caption, asked

    def others(rng: Random) -> Iterator[str]:
        for key in rng.sample(keys, min(OTHERS, len(keys))):
            with suppress(RefusedError):
                yield read_caption((Path(root) / key).with_suffix(".txt"))

    report = Report("get_folder_anno", seed, inputs=[str(root)])
    return build_words(report, Path(root).resolve().name, keys, describe, Path(out), questions=questions, dry_run=dry_run)


def build_words(
    report: Report,
    name: str,
    things: Iterable[Any],
    describe: Callable[[Any, Random], Words | list[Words]],
    out: Path,
    *,
    splits: Sequence[str] = SPLITS,
    questions: int,
    dry_run: bool,
) -> Report:
    """Write the files of `name`, captions and questions for each of `splits`, from the words of every picture.

    `things`: keys of pictures, or objects that have the key as "id"; `describe` gets them one after another and returns their words,
    or several of them. The first groups are captions, the later ones questions.
    """
    if questions < 1:
        raise ValueError(f"questions is {questions}; ask at least one question per picture")
    if out.suffix in (".json", ".txt"):
        raise ValueError(f"--out {out} is a file; {2 * len(splits)} files are written, name their folder")
    seed = report.seed

    def convert(thing: Any, _: str) -> Made:
        key = thing["id"] if isinstance(thing, dict) else thing
        described, made = describe(thing, Random(draw(2**63, seed, "words", key))), []
        for split, caption, asked in described if isinstance(described, list) else [described]:
            if caption:
                prompt = fill(CAPTION, seed, key)
                prompt = f"{IMAGE_TAG}\n{prompt}" if draw(2, seed, "tag", key) else f"{prompt}\n{IMAGE_TAG}"
                made.append((split, _record(key, make_turns([prompt, caption]))))
            if asked and isinstance(asked[0], dict):
                made.append((len(splits) + split, _record(key, asked)))
            elif asked:
                chosen = [question for question in asked[:questions] if isinstance(question, SceneQuestion)]
                turns = [text for question in chosen for text in (question.text, question.answer)]
                turns[0] = f"{IMAGE_TAG}\n{turns[0]}\n{SHORT}"
                record = {**_record(key, make_turns(turns)), "kinds": [question.kind for question in chosen], "split": splits[split]}
                made.append((len(splits) + split, record))
        return made

    items = ((report.inputs[0], place, thing) for place, thing in enumerate(things))
    files = [out / f"{name}_{form}_{split}.json" for form in ("captions", "questions") for split in splits]
    return build(report, items, convert, {file: (group,) for group, file in enumerate(files)}, dry_run=dry_run)


def _record(key: str, turns: Sequence[Any]) -> dict[str, Any]:
    """A record that every reader takes; RefusedError for words that hold a tag of images or ids, or damaged turns."""
    record = {"id": key, "image": key, "conversations": list(turns)}
    read_record(record, form="llava")
    return record


def find_groups(keys: Iterable[str]) -> Groups:
    """The tree of the folders of pictures, two levels deep: subjects, and groups within a subject."""
    groups: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        folders = key.split("/")[:-1][:2]
        for depth, name in enumerate(folders):
            groups["/".join(folders[:depth])].add(name)
    return {folder: sorted(names) for folder, names in groups.items()}


def subject_questions(key: str, groups: Groups, rng: Random) -> list[SceneQuestion]:
    """Questions about the place of a picture in the tree: subject and group among others, yes and no; in random order."""
    found: list[SceneQuestion] = []
    folders = key.split("/")[:-1][:2]
    for depth, name in enumerate(folders):
        others = [other for other in groups["/".join(folders[:depth])] if other != name]
        if not others:
            continue
        options = [name, *rng.sample(others, min(NUM_CHOICES - 1, len(others)))]
        *first, last = map(_plain, rng.sample(options, len(options)))
        choice = f"{', '.join(first)} or {last}"
        if depth == 0:
            found.append(SceneQuestion(f"Which subject does the picture belong to: {choice}?", _plain(name), "subject"))
            found.append(SceneQuestion(f"Does the picture belong to the subject {_plain(name)}?", "yes", "yesno"))
            found.append(SceneQuestion(f"Does the picture belong to the subject {_plain(rng.choice(others))}?", "no", "yesno"))
        else:
            found.append(SceneQuestion(f"Within {_plain(folders[0])}, which group fits best: {choice}?", _plain(name), "group"))
    return rng.sample(found, len(found))


def caption_questions(caption: str, others: Iterable[str], rng: Random) -> list[SceneQuestion]:
    """Questions about a caption and the first of others that differs, in random order; none where there is no such one."""
    other = next((other for other in others if other != caption), None)
    if other is None:
        return []
    first, second = rng.sample((caption, other), 2)
    found = [SceneQuestion(f'Which caption fits the picture: "{first}" or "{second}"?', caption, "caption")]
    found += [SceneQuestion(f'Does "{text}" describe the picture?', said, "yesno") for text, said in ((caption, "yes"), (other, "no"))]
    return rng.sample(found, len(found))


def read_caption(path: Path) -> str:
    """The first line of a caption file. RefusedError where there is no file, no text, or no UTF-8 text."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            caption = " ".join(file.readline().split())
    except FileNotFoundError:
        raise RefusedError(NO_CAPTION, f"no {path.name} beside the picture") from None
    except UnicodeDecodeError as error:
        raise RefusedError(NOT_TEXT, f"{path.name} is not UTF-8: {error.reason}") from None
    if not caption:
        raise RefusedError(NO_CAPTION, f"the first line of {path.name} is empty")
    return caption


def _plain(folder: str) -> str:
    """Name of a folder in words: without the number that only sorts it, "00_symbols", and without underscores."""
    return re.sub(r"^\d+_", "", folder).replace("_", " ")
