"""Captions and questions of the shapes world and of folders: true answers, splits, what is left out, the same for the same seed."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from unicode.annotations.captioned import SHORT, find_groups, get_folder_anno, get_shapes_anno, subject_questions
from unicode.annotations.instructions import concat_llava_anno
from unicode.annotations.records import read_record
from unicode.images.dataset import DataConfig, build_dataset
from unicode.images.shapes import ShapesConfig, find_scene
from unicode.images.shapes_text import scene_questions

STAMPS = {
    "animals/birds/owl": "An owl.\nde.utf8=Eine Eule.\n",
    "animals/birds/cartoon/duck": "A rubber  duck.\n",
    "animals/fish/carp": "\ufeffA carp.",
    "food/01_sweet_fruit/apple": "A red apple.\n",
    "food/nuts/pecan": "A pecan.\n",
    "space/moon": "The moon.\n",
}


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def pairs(record: dict[str, Any]) -> list[tuple[str, str]]:
    turns = [turn["value"] for turn in record["conversations"]]
    return list(zip(turns[::2], turns[1::2], strict=True))


def tag_free(question: str) -> str:
    return question.replace("<image>\n", "").replace(f"\n{SHORT}", "")


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """Pictures like Tux Paint's: two folders deep or one, with a text each, one without and one with an empty first line."""
    root = tmp_path / "stamps"
    for name in (*STAMPS, "animals/birds/owl_mirror", "food/nuts/empty", "food/nuts/binary", "food/nuts/tag"):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (20, 30)).save(path)
        path.with_suffix(".txt").write_text(STAMPS.get(name, " \nde.utf8=nichts\n"), encoding="utf-8")
    (root / "animals/birds/owl_mirror.txt").unlink()
    (root / "food/nuts/binary.txt").write_bytes(b"\xff\xfe\x00")
    (root / "food/nuts/tag.txt").write_text("<vistok>1-2</vistok>")
    return root


def test_shapes_are_described_as_the_world_knows_them(tmp_path: Path) -> None:
    world, config = ["colours=8", "sizes=2"], ShapesConfig(colours=8, sizes=2)
    get_shapes_anno(tmp_path, seed=4, world=world, limit=30, questions=3)
    for split in ("train", "val"):
        captions, questions = read(tmp_path, f"shapes_captions_{split}"), read(tmp_path, f"shapes_questions_{split}")
        keys = [f"{split}/{index:07d}.png" for index in range(30)]
        assert sorted(record["image"] for record in captions) == sorted(record["image"] for record in questions) == keys
        assert [record["image"] for record in captions] != keys
        for record in captions:
            assert all(thing.colour in read_record(record).caption.lower() for thing in find_scene(config, record["image"]).things)
        for record in questions:
            kinds = {}
            for trial in range(100):  # all that can be asked
                for question in scene_questions(find_scene(config, record["image"]), Random(trial)):
                    kinds.setdefault(question.kind, set()).add(question.answer)
            asked = pairs(record)
            assert len(asked) == len(record["kinds"]) == 3
            assert asked[0][0].endswith(SHORT)
            for (question, answer), kind in zip(asked, record["kinds"], strict=True):
                assert answer in kinds[kind] and "<" not in tag_free(question)
    for name in ("captions", "questions"):
        files = [read(tmp_path, f"shapes_{name}_{split}") for split in ("val_held", "val")]
        held, plain = ({record["image"]: pairs(record) for record in file} for file in files)
        assert held.keys() == plain.keys() and not {held[key][0] for key in held} & {plain[key][0] for key in plain}
    kinds = {kind for record in read(tmp_path, "shapes_questions_train") for kind in record["kinds"]}
    assert kinds == {"colour", "shape", "place", "count", "yesno", "size"}


def test_the_image_tag_stands_before_or_after(tmp_path: Path) -> None:
    get_shapes_anno(tmp_path, limit=60)
    asked = [pairs(record)[0][0] for record in read(tmp_path, "shapes_captions_train")]
    assert 15 < sum(question.startswith("<image>\n") for question in asked) < 45
    assert all(question.count("<image>") == 1 for question in asked)


def test_a_folder_of_captioned_pictures(stamps: Path, tmp_path: Path) -> None:
    report = get_folder_anno(stamps, tmp_path / "out", val_share=0)
    captions = {record["image"]: read_record(record).caption for record in read(tmp_path / "out", "stamps_captions_train")}
    assert captions == {f"{name}.png": " ".join(text.split("\n")[0].lstrip("\ufeff").split()) for name, text in STAMPS.items()}
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == {
        "no caption": 2, "not Unicode text": 1, "reserved tag in text": 1,
    }  # fmt: skip
    questions = {record["image"]: dict(pairs(record)) for record in read(tmp_path / "out", "stamps_questions_train")}
    assert set(questions) == set(captions)
    apple = {tag_free(question): answer for question, answer in questions["food/01_sweet_fruit/apple.png"].items()}
    (group,) = (question for question in apple if question.startswith("Within food, which group fits best: "))
    assert apple[group] == "sweet fruit" and "nuts" in group
    assert apple["Does the picture belong to the subject food?"] == "yes"
    assert sorted(apple.values())[0] == "food" and list(apple.values()).count("no") == 1
    assert len(questions["space/moon.png"]) == 3
    assert read(tmp_path / "out", "stamps_captions_val") == []


def test_choices_hold_the_answer_once_in_any_place() -> None:
    groups = find_groups([f"{name}/a.png" for name in "abcdefg"])
    places = set()
    for trial in range(40):
        questions = subject_questions("c/a.png", groups, Random(trial))
        (choice,) = (question for question in questions if question.kind == "subject")
        options = choice.text.split(": ")[1].rstrip("?").replace(" or ", ", ").split(", ")
        assert len(options) == len(set(options)) == 4 and choice.answer == "c"
        places.add(options.index("c"))
    assert places == {0, 1, 2, 3}
    assert subject_questions("a.png", find_groups(["a.png", "b.png"]), Random(0)) == []


def test_val_is_what_the_tokenizer_never_saw(tmp_path: Path) -> None:
    for number in range(60):
        path = tmp_path / "photos" / f"{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        path.with_suffix(".txt").write_text(f"number {number}")
    get_folder_anno(tmp_path / "photos", tmp_path / "out", val_share=0.25)
    for split in ("train", "val"):
        config = DataConfig(name="folder", root=str(tmp_path / "photos"), holdout=0.25, split=split)
        expected = build_dataset(config, image_size=8, train=False).keys
        assert sorted(record["image"] for record in read(tmp_path / "out", f"photos_captions_{split}")) == sorted(expected)
        assert 5 < len(read(tmp_path / "out", "photos_questions_val")) < 25


def test_a_flat_folder_is_asked_which_caption_fits(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    texts = {"a": "A thing.", "b": "A thing.", "c": "Another thing.", "d": ""}
    for name, text in texts.items():
        Image.new("RGB", (8, 8)).save(tmp_path / f"photos/{name}.png")
        (tmp_path / f"photos/{name}.txt").write_text(text)
    report = get_folder_anno(tmp_path / "photos", tmp_path / "out", val_share=0)
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == {"no caption": 1}
    for record in read(tmp_path / "out", "photos_questions_train"):
        own = texts[record["image"][0]]
        other = "Another thing." if own == "A thing." else "A thing."
        asked = {tag_free(question): answer for question, answer in pairs(record)}
        assert asked.pop(f'Does "{own}" describe the picture?') == "yes" and asked.pop(f'Does "{other}" describe the picture?') == "no"
        ((choice, answer),) = asked.items()
        assert choice in {f'Which caption fits the picture: "{x}" or "{y}"?' for x, y in ((own, other), (other, own))} and answer == own
    assert len(read(tmp_path / "out", "photos_questions_train")) == 3
    (tmp_path / "photos/c.txt").unlink()
    get_folder_anno(tmp_path / "photos", tmp_path / "out", val_share=0)
    assert read(tmp_path / "out", "photos_questions_train") == []  # all captions are the same


def test_the_seed_fixes_everything(tmp_path: Path) -> None:
    contents = []
    for trial, seed in enumerate((0, 0, 1)):
        get_shapes_anno(tmp_path / str(trial), seed=seed, limit=20)
        files = [path for path in (tmp_path / str(trial)).iterdir() if ".report" not in path.name]
        contents.append({path.name: path.read_bytes() for path in files})
    assert len(contents[0]) == 6 and contents[0] == contents[1]
    assert all(contents[0][name] != contents[2][name] for name in contents[0])


def test_nonsense_is_refused(stamps: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name their folder"):
        get_shapes_anno(tmp_path / "all.json")
    for path in stamps.rglob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match=r"none is left to write \(no caption: 10\)"):
        get_folder_anno(stamps, tmp_path / "out")
    with pytest.raises(ValueError, match="no key of the shapes world"):
        find_scene(ShapesConfig(), "photos/a.png")


def test_other_functions_take_the_files(tmp_path: Path) -> None:
    get_shapes_anno(tmp_path, limit=10)
    report = concat_llava_anno(tmp_path, tmp_path / "out", annos=["shapes_captions_train.json", "shapes_questions_train.json"])
    assert report.read == 20 and not report.dropped
