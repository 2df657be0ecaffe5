"""data/emoji: names become concepts, splits keep combinations apart, words come in forms of training and in held-out ones."""

import json
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "data" / "emoji"))
catalogue, phrases = import_module("catalogue"), import_module("phrases")
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def run(*words: object) -> int:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("emoji_command", ROOT / "data" / "emoji" / "__main__.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(word) for word in words])


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower().replace("-", " ")))


@pytest.fixture(scope="module")
def emoji():
    return catalogue.read_catalogue().emoji


@pytest.fixture(scope="module")
def folder(tmp_path_factory, emoji):
    """What the command writes for a twentieth of the emoji and for all that are not of training."""
    folder = tmp_path_factory.mktemp("emoji")
    with pytest.MonkeyPatch.context() as patch:
        some = tuple(one for place, one in enumerate(emoji) if one.split != "train" or place % 20 == 0)
        patch.setattr(catalogue, "read_catalogue", lambda seed: catalogue.Catalogue(some, 19, 65, 14))
        assert run("--out", folder, "--size", 16, "--captions", 3) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "concept", "tone"),
    [
        (":woman_firefighter_medium-dark_skin_tone:", "woman firefighter", "medium-dark"),
        (":man_dark_skin_tone_beard:", "man with beard", "dark"),
        (":kiss_woman_man_dark_skin_tone_light_skin_tone:", "kiss of woman and man", "dark and light"),
        (":five_o\N{RIGHT SINGLE QUOTATION MARK}clock:", "five o'clock", ""),
        (":person_bald:", "bald person", ""),
    ],
)
def test_names(name, concept, tone):
    assert catalogue.split_name(name) == (concept, tone)


def test_all_emoji_are_found(emoji):
    found = catalogue.read_catalogue()
    assert len(emoji) == len({one.key for one in emoji}) == len({one.name for one in emoji}) >= 3900
    assert found.no_picture > 0 and found.no_name > 0 and found.no_group < 20
    assert len({one.group for one in emoji} - {""}) == 9
    firefighter = next(one for one in emoji if one.code == "1f469-1f3fe-200d-1f692")
    assert (firefighter.gender, firefighter.role) == ("woman", "firefighter")
    assert {one.tone for one in emoji if one.concept == "firefighter"} == {*catalogue.TONES, "yellow"}


def test_splits_are_disjoint_and_of_known_parts(emoji):
    sizes = Counter(one.split for one in emoji)
    assert sizes["train"] > 3400 and min(sizes[name] for name in ("choose", "unseen", "new")) > 90
    train = [one for one in emoji if one.split == "train"]
    assert len({one.key for one in emoji}) == len(emoji)
    pairs, genders = {(one.concept, one.tone) for one in train}, {(one.role, one.gender) for one in train if one.role}
    concepts, roles, tones = ({getattr(one, name) for one in train} for name in ("concept", "role", "tone"))
    for one in emoji:
        if one.split in ("choose", "unseen"):
            assert (one.concept, one.tone) not in pairs
            assert one.concept in concepts or (one.role in roles and (one.role, one.gender) not in genders), one
            assert one.tone in tones
        if one.split == "new":
            assert one.concept not in concepts and (not one.role or one.role not in roles)
    held = {split: {(one.concept, one.tone) for one in emoji if one.split == split} for split in ("choose", "unseen")}
    assert not held["choose"] & held["unseen"]
    seen_words = set().union(*(words(one.name) for one in train))
    assert not set().union(*(words(one.name) for one in emoji if one.split in held)) - seen_words


def test_a_seed_moves_the_splits_and_other_emoji_do_not(emoji):
    other = catalogue.read_catalogue(seed=1).emoji
    assert {one.code for one in other if one.split == "new"} != {one.code for one in emoji if one.split == "new"}
    half = [one for one in emoji if one.role or not one.code.startswith("1f6")]
    moved = {one.code for one, other in zip(catalogue.assign_splits(half), half, strict=True) if one.split != other.split}
    assert len(moved) < 10  # those that share a picture with one of training


def test_no_unseen_picture_is_one_of_training(emoji):
    files = catalogue.picture_files()
    alike = next(one for one in emoji if one.name == "woman with blond hair: medium-light skin tone")
    assert alike.split == "train"  # its picture is that of the woman in this tone
    pixels = {one.code: Image.open(files[one.code]).convert("RGBA").tobytes() for one in emoji}
    train = {pixels[one.code] for one in emoji if one.split == "train"}
    assert not [one.name for one in emoji if one.split != "train" and pixels[one.code] in train]


def test_held_out_forms_are_new_orders_of_known_words():
    for table in phrases.form_tables():
        assert not set(table["held"]) & set(table["seen"])
    known = set().union(*(words(text) for table in phrases.form_tables() for text in table["seen"]))
    assert not set().union(*(words(text) for table in phrases.form_tables() for text in table["held"])) - known
    assert sum(len(set(table["seen"])) for table in phrases.form_tables()) > 70


def test_captions_name_the_emoji_in_many_forms(emoji):
    one = next(one for one in emoji if one.code == "1f469-1f3fe-200d-1f692")
    made = {form: [phrases.caption(one, Random(seed), form=form) for seed in range(200)] for form in ("seen", "held")}
    assert len({caption.text for caption in made["seen"]}) > 150
    assert not {caption.template for caption in made["seen"]} & {caption.template for caption in made["held"]}
    for caption in made["seen"] + made["held"]:
        assert words(caption.text) >= {"firefighter", "medium", "dark"} and words(caption.text) & {"woman", "female"}
    assert {"colour", "color"} <= set().union(*(words(caption.text) for caption in made["seen"]))


def test_files(folder, emoji):
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for name, content in records.items():
        assert all((folder / "images" / record["image"]).is_file() for record in content), name
        assert len({record["id"] for record in content}) == len(content), name
    for name in ("captions_train", "questions_train", "descriptions_train"):
        assert {record["image"].split("/")[0] for record in records[f"emoji_{name}"]} == {"train"}
    for split in ("choose", "unseen", "new"):
        expected = {one.key for one in emoji if one.split == split}
        for form in ("name", "seen", "held"):
            found = records[f"emoji_captions_{split}_{form}"]
            assert {record["image"] for record in found} == expected and {record["form"] for record in found} == {form}
    assert all(record["attributes"]["concept"] for record in records["emoji_gallery"])
    with Image.open(folder / "images" / records["emoji_gallery"][0]["image"]) as square:
        assert square.size == (16, 16) and square.mode == "RGB" and square.getpixel((0, 0)) == (255, 255, 255)
    assert "CC-BY 4.0" in (folder / "ATTRIBUTION.txt").read_text()


def test_questions_are_balanced_and_by_group(folder):
    lines = [json.loads(line) for line in (folder / "questions_unseen.jsonl").read_text().splitlines()]
    answers = Counter(line["answer"] for line in lines if line["category"] == "yesno")
    assert answers["yes"] == answers["no"] > 100
    assert {line["category"] for line in lines} == {"what", "tone", "gender", "group", "yesno"}
    assert {(line["split"], line["form"]) for line in lines} == {("unseen", "seen"), ("unseen", "held")}
    assert len({line["question_id"] for line in lines}) == len(lines)


def test_text_is_of_training_pictures(folder, emoji):
    text = (folder / "base_text.txt").read_text().lower()
    new = {one.concept for one in emoji if one.split == "new" and len(one.concept) > 8}
    assert not [concept for concept in new if re.search(rf"\b{re.escape(concept.lower())}\b", text)]


def test_a_second_run_keeps_the_pictures_and_a_split_moves_them(folder, emoji, monkeypatch):
    pictures = import_module("pictures")
    one = next(one for one in emoji if one.split == "new")
    time = (folder / "images" / one.key).stat().st_mtime_ns
    render = pictures.from_files(catalogue.picture_files())
    assert pictures.write_squares([one], render, folder / "images", size=16) == [one]
    assert (folder / "images" / one.key).stat().st_mtime_ns == time
    moved = catalogue.replace(one, split="train")
    pictures.write_squares([moved], render, folder / "images", size=16)
    assert (folder / "images" / moved.key).is_file() and not (folder / "images" / one.key).is_file()
    pictures.write_squares([one], render, folder / "images", size=16)


@pytest.mark.skipif(not NOTO.is_file(), reason="fonts-noto-color-emoji is not installed")
def test_a_colour_font_is_a_second_style(emoji, tmp_path):
    pictures = import_module("pictures")
    font = pictures.ColourFont(NOTO)
    one = catalogue.replace(next(one for one in emoji if one.code == "1f469-1f3fe-200d-1f692"), style=font.style)
    assert pictures.write_squares([one], font.render, tmp_path, size=32) == [one]
    assert one.key.split("/")[1] == "noto-color-emoji" and one.name.endswith(", Noto Color Emoji style")
    assert phrases.caption(one, Random(0)).text.lower().rstrip(".!").endswith("noto color emoji style")
    assert font.render(catalogue.replace(one, text="\U0010fffd")) is None


def test_a_user_is_told(tmp_path, capsys, monkeypatch):
    for arguments, message in (
        (["--size", 2], "16 pixels"),
        (["--language", "xx"], "there in es, ja"),
        (["--font", tmp_path / "none.ttf"], "fonts-noto-color-emoji"),
    ):
        assert run("--out", tmp_path / "out", *arguments) == 2
        assert message in capsys.readouterr().err
    plain = sorted(Path("/usr/share/fonts").rglob("*Mono*.ttf"))
    if plain:
        assert run("--out", tmp_path / "out", "--font", plain[0]) == 2
        assert "font without colour" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "emoji", None)
    assert run("--out", tmp_path / "out") == 2
    assert "pip install 'unicode-mllm[emoji]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_typed_prompts_name_pictures(emoji):
    lines = [line.split("\t") for line in (ROOT / "tests" / "data" / "typed_prompts.txt").read_text().splitlines()]
    assert len(lines) == 40
    assert len({name for _, name in lines} & {one.code for one in emoji}) == 30
