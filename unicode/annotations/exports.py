"""Questions for evaluation: question files of conversations, the shapes world in benchmark formats."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from unicode.annotations.captioned import SHORT
from unicode.annotations.records import IMAGE_TAG, RefusedError, make_turns, read_record
from unicode.annotations.templates import draw
from unicode.common.files import atomic_write, write_json, write_jsonl, write_list
from unicode.common.json_lists import read_json_list
from unicode.images.shapes import Scene, ShapesConfig, find_scene, scene_keys
from unicode.images.shapes_text import SceneQuestion, scene_questions, with_article


def write_question_file(
    annotations: str | Path, out: str | Path, *, limit: int = 0, kinds: tuple[str, ...] = (), instruct: bool = True, dry_run: bool = False
) -> int:
    """Write each question of LLaVA conversations about one picture each as a line of JSON Lines, and return their number.

    Args:
        limit: the first so many questions; 0: all.
        kinds: keep questions of these kinds (the "kinds" of the records); all if empty.
        instruct: put the benchmarks' instruction on how to answer after every question; without it, after none.
        dry_run: find the first question and write nothing.

    Raises ValueError: the file is damaged, a record is no conversation about one picture, or nothing is left.
    """
    chosen = (question for question in _questions(annotations, instruct) if not kinds or question["category"] in kinds)
    some = islice(chosen, 1 if dry_run else limit or None)
    questions = [{"question_id": number, **question} for number, question in enumerate(some)]
    if not questions:
        wanted = f" of the kinds {', '.join(kinds)}" if kinds else ""
        raise ValueError(f"{annotations} holds no questions{wanted}; give a file of questions, as shapes_questions_val.json")
    if not dry_run:
        write_jsonl(out, questions)
    return len(questions)


def _questions(annotations: str | Path, instruct: bool) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(read_json_list(annotations)):
        try:
            conversation = read_record(record, form="llava")
        except RefusedError as refused:
            raise ValueError(f"{annotations}, record {number}: {refused.reason}, {refused.detail}") from refused
        if len(conversation.images) != 1:
            raise ValueError(f"{annotations}, record {number} is about {len(conversation.images)} pictures; a question is about one")
        turns, kinds = conversation.turns, record.get("kinds") or []
        for place, (asked, answer) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
            text = asked.replace(IMAGE_TAG, "").replace(SHORT, "").strip()
            yield {
                "image": conversation.keys[0],
                "text": f"{text}\n{SHORT}" if instruct else text,
                "category": kinds[place] if place < len(kinds) else "",
                "answer": answer,
                **({"split": record["split"]} if "split" in record else {}),
            }


LETTER = "Answer with the option's letter from the given choices directly."
"""What stands below a question with lettered options in LLaVA's mix, and what LLaVA puts below those of ScienceQA and MMBench."""
YES_OR_NO = "Please answer yes or no."  # how every question of MME ends
LETTERS = "ABCDE"
POPE_KINDS = ("adversarial", "popular", "random")
MME_TASKS = ("existence", "count", "position", "color")
SEMANTIC = {"colour": "attr", "shape": "obj", "place": "rel", "count": "global", "yesno": "obj", "size": "attr"}
ANSWER_TYPES = {"yesno": "yes/no", "count": "number"}
Files = dict[str, tuple[Callable[[Path, Any], None], Any]]  # Path below the folder of benchmarks -> its writer, its content


@dataclass(frozen=True)
class Picture:
    """A scene of a benchmark, the name of its file, and what chooses its questions."""

    name: str
    scene: Scene
    rng: Random

    def pairs(self) -> list[tuple[str, str]]:
        """(colour, shape) of what is there."""
        return list(dict.fromkeys((thing.colour, thing.shape) for thing in self.scene.things))

    def absent(self) -> list[tuple[str, str]]:
        """(colour, shape) of all that is not."""
        present = self.pairs()
        return [pair for pair in product(self.scene.config.colour_names, self.scene.config.shape_names) if pair not in present]


def export_benchmarks(
    out: str | Path,
    *,
    config: ShapesConfig,
    split: str = "val",
    num_scenes: int = 100,
    questions: int = 5,
    seed: int = 0,
    names: Sequence[str] = (),
    dry_run: bool = False,
) -> dict[str, int]:
    """Write the benchmarks `names` (all of `EXPORTS` if empty) below the folder `out` and return the number of questions of each.

    The first `num_scenes` scenes of the split are asked about; GQA and VQAv2 have at most `questions` per picture, chosen by `seed`.
    With `dry_run` the arguments are checked and nothing is written. ValueError for an unknown name or split, or not one question.
    """
    chosen = tuple(names) or tuple(EXPORTS)
    unknown = [name for name in chosen if name not in EXPORTS]
    if unknown or min(num_scenes, questions) < 1:
        what = f"benchmark '{unknown[0]}'" if unknown else f"{num_scenes} scenes and {questions} questions each"
        raise ValueError(f"cannot export {what}; known benchmarks: {', '.join(EXPORTS)}, at least 1 scene and 1 question")
    keys = scene_keys(config, split, limit=num_scenes)
    if dry_run:
        return dict.fromkeys(chosen, 0)
    counts = {}
    for name in chosen:
        pictures = [Picture(key.replace("/", "_"), find_scene(config, key), Random(draw(2**63, seed, name, key))) for key in keys]
        counts[name], files = EXPORTS[name](pictures, questions)
        for file, (write, content) in files.items():
            write(Path(out) / file, content)
    return counts


def _save(path: Path, picture: Picture) -> None:
    with atomic_write(path, "wb") as file:
        Image.fromarray(np.ascontiguousarray(picture.scene.pixels().transpose(1, 2, 0))).save(file, format="PNG")


def training_conversations(config: ShapesConfig, *, num_scenes: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """LLaVA conversations about training scenes in the forms that these benchmarks ask in: a word, a letter, yes or no to a number.

    The keys of the images are those of the world, so that stores made from `shapes:train` have them.
    """
    records = []
    for key in scene_keys(config, "train", limit=num_scenes):
        rng = Random(draw(2**63, seed, "forms", key))
        picture = Picture(key, find_scene(config, key), rng)
        asked = scene_questions(picture.scene, rng)
        turns = [(f"{question.text}\n{SHORT}", question.answer) for question in asked[:2]]
        for question in asked[2:]:
            if (lettered := with_options(question, picture)) is not None:
                turns.append((f"{lettered[0]}\n{LETTER}", LETTERS[lettered[1]]))
                break
        text, answer = rng.choice(_count_claims(picture))
        turns.append((f"{text}\n{SHORT}", answer))
        rng.shuffle(turns)
        flat = [text for turn in turns for text in turn]
        flat[0] = f"{IMAGE_TAG}\n{flat[0]}"
        records.append({"id": f"forms/{key}", "image": key, "conversations": make_turns(flat)})
    return records


def with_options(question: SceneQuestion, picture: Picture) -> tuple[str, int, list[str]] | None:
    """A question as a choice of lettered options, the place of the right one, and the options; None for yes-or-no questions."""
    config = picture.scene.config
    all_options = {
        "colour": config.colour_names,
        "shape": config.shape_names,
        "place": config.place_names,
        "size": config.size_names,
        "count": map(str, range(config.max_objects + 1)),
    }.get(question.kind)
    if all_options is None:
        return None
    others = [option for option in all_options if option != question.answer]
    wrong = picture.rng.sample(others, min(len(others), len(LETTERS) - 2))
    return _lettered(question.text, question.answer, wrong, picture.rng)


def _pope(pictures: Sequence[Picture], _: int) -> tuple[int, Files]:
    """Per picture and kind of question one about something that is there and one about something that is not."""
    seen = Counter(pair for picture in pictures for pair in picture.pairs())
    asked: list[dict[str, Any]] = []
    files: Files = {f"pope/val2014/{picture.name}": (_save, picture) for picture in pictures}
    files["pope/llava_pope_test.jsonl"] = write_jsonl, asked
    for kind in POPE_KINDS:
        mine: list[dict[str, Any]] = []
        files[f"pope/coco/coco_pope_{kind}.json"] = write_jsonl, mine
        for picture in pictures:
            absent = picture.absent()
            colours, shapes = ({pair[axis] for pair in picture.pairs()} for axis in (0, 1))
            near = [pair for pair in absent if pair[0] in colours or pair[1] in shapes]
            pools = {"random": absent, "popular": sorted(absent, key=lambda pair: -seen[pair])[:3], "adversarial": near or absent}
            for pair, label in ((picture.rng.choice(picture.pairs()), "yes"), (picture.rng.choice(pools[kind]), "no")):
                text = f"Is there {with_article(f'{pair[0]} {pair[1]}')}?"
                mine.append({"question_id": len(mine) + 1, "image": picture.name, "text": text, "label": label})
                asked.append({"question_id": len(asked), "image": picture.name, "text": f"{text}\n{SHORT}", "category": kind})
    return len(asked), files


def _mme(pictures: Sequence[Picture], _: int) -> tuple[int, Files]:
    """Per picture and task one question to answer with yes and one with no; four of MME's fourteen tasks."""
    asked: list[dict[str, Any]] = []
    files: Files = {"MME/llava_mme.jsonl": (write_jsonl, asked)}
    for task, picture in product(MME_TASKS, pictures):
        claims, name = _claims(task, picture), f"{task}/{picture.name}"
        file = f"MME/MME_Benchmark_release_version/{name}"
        files[file] = _save, picture
        lines = [f"{text} {YES_OR_NO}\t{answer.capitalize()}" for text, answer in claims]
        files[str(Path(file).with_suffix(".txt"))] = write_list, lines
        asked += [{"question_id": name, "image": name, "text": f"{text}\n{SHORT}", "category": task} for text, _ in claims]
    return len(asked), files


def _gqa(pictures: Sequence[Picture], questions: int) -> tuple[int, Files]:
    """The world's questions with GQA's types: "verify" for yes or no, "query" for the rest."""
    asked: list[dict[str, Any]] = []
    gold: dict[str, Any] = {}
    for picture, question in _world_questions(pictures, questions):
        number = str(len(asked))
        asked.append({"question_id": number, "image": picture.name, "text": f"{question.text}\n{SHORT}"})
        types = {"structural": "verify" if question.kind == "yesno" else "query", "semantic": SEMANTIC[question.kind]}
        step = {"argument": question.kind, "dependencies": []}
        gold[number] = {
            "question": question.text, "answer": question.answer, "imageId": Path(picture.name).stem, "isBalanced": True,
            "types": {**types, "detailed": question.kind}, "semantic": [{"operation": name, **step} for name in ("select", "query")],
            "groups": {"global": question.kind, "local": question.kind}, "entailed": [], "equivalent": [number],
        }  # fmt: skip
    files: Files = {f"gqa/data/images/{picture.name}": (_save, picture) for picture in pictures}
    files["gqa/llava_gqa_testdev_balanced.jsonl"] = write_jsonl, asked
    files["gqa/data/testdev_balanced_questions.json"] = write_json, gold
    return len(asked), files


def _vqav2(pictures: Sequence[Picture], questions: int) -> tuple[int, Files]:
    """The world's questions as the official val split, with ten equal answers each; its pictures must have names of COCO."""
    asked: list[dict[str, Any]] = []
    gold: list[dict[str, Any]] = []
    places = {picture.name: place for place, picture in enumerate(pictures)}
    # PNG under names of JPEG: readers take both
    files: Files = {f"vqav2/val2014/COCO_val2014_{place:012d}.jpg": (_save, picture) for place, picture in enumerate(pictures)}
    for picture, question in _world_questions(pictures, questions):
        number = {"question_id": len(asked), "image_id": places[picture.name]}
        asked.append({**number, "question": question.text})
        answers = [{"answer": question.answer, "answer_confidence": "yes", "answer_id": person} for person in range(1, 11)]
        gold.append({
            **number, "question_type": " ".join(question.text.lower().split()[:2]), "multiple_choice_answer": question.answer,
            "answer_type": ANSWER_TYPES.get(question.kind, "other"), "answers": answers,
        })  # fmt: skip
    files["vqav2/v2_OpenEnded_mscoco_val2014_questions.json"] = write_json, {"questions": asked, "data_subtype": "val2014"}
    files["vqav2/v2_mscoco_val2014_annotations.json"] = write_json, {"annotations": gold, "data_subtype": "val2014"}
    return len(asked), files


def _scienceqa(pictures: Sequence[Picture], _: int) -> tuple[int, Files]:
    """Two questions with lettered options about each picture, and one without picture about the words of the world."""
    problems: dict[str, Any] = {}
    asked: list[dict[str, Any]] = []
    files: Files = {"scienceqa/problems.json": (write_json, problems), "scienceqa/llava_test_CQM-A.json": (write_json, asked)}
    for picture in pictures:
        about = scene_questions(picture.scene, picture.rng)
        lettered = [made for question in about if (made := with_options(question, picture)) is not None][:2]
        for made, shown in [*((made, True) for made in lettered), (_word_question(picture), False)]:
            (text, right, options), number = made, str(len(asked) + 1)
            problems[number] = {
                "question": text.partition("\n")[0], "choices": options, "answer": right, "hint": "", "image": "image.png" if shown else "",
                "task": "closed choice", "grade": "grade1", "subject": "natural science", "topic": "shapes", "split": "test",
                "lecture": "", "solution": "",
            }  # fmt: skip
            turns = make_turns([f"{IMAGE_TAG}\n{text}" if shown else text, LETTERS[right]])
            asked.append({"id": number, "conversations": turns, **({"image": f"{number}/image.png"} if shown else {})})
            if shown:
                files[f"scienceqa/images/test/{number}/image.png"] = _save, picture
    files["scienceqa/pid_splits.json"] = write_json, {"train": [], "val": [], "test": list(problems)}
    return len(asked), files


EXPORTS: dict[str, Callable[[Sequence[Picture], int], tuple[int, Files]]] = {
    "pope": _pope, "sqa": _scienceqa, "mme": _mme, "gqa": _gqa, "vqav2": _vqav2,
}  # fmt: skip
"""Benchmark -> (pictures, questions per picture) -> number of its questions, its files."""


def _world_questions(pictures: Sequence[Picture], count: int) -> Iterator[tuple[Picture, SceneQuestion]]:
    for picture in pictures:
        for question in scene_questions(picture.scene, picture.rng)[:count]:
            yield picture, question


def _word_question(picture: Picture) -> tuple[str, int, list[str]]:
    """Which of these words is a colour, or a shape; as `with_options` has it."""
    config = picture.scene.config
    words = {"color": config.colour_names, "shape": config.shape_names}
    kind, other = picture.rng.choice([("color", "shape"), ("shape", "color")])
    answer, wrong = picture.rng.choice(words[kind]), words[other]
    return _lettered(f"Which of these is a {kind}?", answer, picture.rng.sample(wrong, min(2, len(wrong))), picture.rng)


def _lettered(text: str, answer: str, wrong: Sequence[str], rng: Random) -> tuple[str, int, list[str]]:
    options = [answer, *wrong]
    rng.shuffle(options)
    return "\n".join([text, *map("{}. {}".format, LETTERS, options)]), options.index(answer), options


def _claims(task: str, picture: Picture) -> list[tuple[str, str]]:
    """A claim that is true and one that is false, as questions with their answers."""
    config, rng = picture.scene.config, picture.rng
    thing = rng.choice(picture.scene.things)
    if task == "count":
        return _count_claims(picture)
    if task == "position":
        taken = {other.place for other in picture.scene.things}
        free = [place for place in config.place_names if place not in taken]
        if free:
            return [(f"Is there an object at the {thing.place}?", "yes"), (f"Is there an object at the {rng.choice(free)}?", "no")]
    if task == "color":
        other = rng.choice([name for name in config.colour_names if name != thing.colour])
        return [(f"Is the object at the {thing.place} {colour}?", answer) for colour, answer in ((thing.colour, "yes"), (other, "no"))]
    pairs = ((rng.choice(picture.pairs()), "yes"), (rng.choice(picture.absent()), "no"))
    return [(f"Is there {with_article(f'{colour} {shape}')}?", answer) for (colour, shape), answer in pairs]


def _count_claims(picture: Picture) -> list[tuple[str, str]]:
    number, most = len(picture.scene.things), max(2, picture.scene.config.max_objects)
    wrong = picture.rng.choice([other for other in range(1, most + 1) if other != number])
    return [(f"Is the number of objects {count}?", answer) for count, answer in ((number, "yes"), (wrong, "no"))]
