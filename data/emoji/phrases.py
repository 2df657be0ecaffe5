"""An emoji -> captions and questions in many forms, as people type them; some forms are held out of training."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from random import Random

from catalogue import NO_TONE, TONES, TWEMOJI, Emoji

from unicode.images.shapes_text import vary, with_article

NAME, SEEN, HELD = FORMS = "name", "seen", "held"  # of captions: the name itself; other words around it, of training or held out

# {n}: the concept, {a}: the concept with its article, {t}: the skin tone, {at}: the skin tone with its article
TONED = {
    SEEN: (
        "{n}: {t} skin tone", "{a} with {t} skin", "{a} with {at} skin tone", "{t} skin tone {n}", "{n}, {t} skin", "{n} ({t} skin tone)",
        "{at} skinned {n}", "{at}-skinned {n}", "{n} {t} skin tone", "{a} of {t} skin colour", "{a} of {t} skin color", "{t} skin, {n}",
        "{n} {t}", "{n} with {t} skin tone", "the {n} with the {t} skin", "{n}, skin tone {t}",
    ),
    HELD: ("{n} of {t} skin tone", "the {n}: {t} skin", "{a}, {t} skin colour", "{n} with the skin tone {t}"),
}  # fmt: skip
PLAIN = {
    SEEN: ("{n}", "{n}", "{n}", "{a}", "{a}", "the {n}", "one {n}", "{n} emoji", "the emoji of {a}", "emoji: {n}"),
    HELD: ("emoji of the {n}", "the emoji {n}", "one {n} emoji"),
}
WRAPS = {
    SEEN: (
        "{c}", "{c}", "{c}", "{c}", "{c}", "draw {c}", "draw me {c}", "please draw {c}", "{c}, please", "{c} please", "can you draw {c}?",
        "i want {c}", "show me {c}", "a picture of {c}", "make {c}", "i would like {c}", "please make me {c}",
    ),
    HELD: ("please show me {c}", "can you make {c}, please?", "i would like you to draw {c}", "i want a picture of {c}"),
}  # fmt: skip
GENDERED = {SEEN: {"woman": ("female {role}", "{role} woman"), "man": ("male {role}", "{role} man")}, HELD: ("{role}, {gender}",)}
HELD_NOUN_SHARE = 0.3  # of the held-out captions of a role that are held out by the order of its noun too

QUESTIONS = {
    "what": {
        SEEN: ("What is it?", "What is this?", "What does the picture show?", "Which emoji is this?", "What do you see?", "What's this?",
               "What is in the picture?", "Name this emoji.", "What is shown?"),
        HELD: ("What emoji is it?", "What do you see in this picture?", "What's in the picture?"),
    },
    "tone": {
        SEEN: ("Which skin tone is it?", "What skin tone does the person have?", "What is the skin colour?", "What color is the skin?",
               "Which skin color does it have?", "What colour is the skin?", "What's the skin tone?", "Skin tone?"),
        HELD: ("Which skin tone does it have?", "What is the skin tone?", "What skin colour is it?"),
    },
    "gender": {
        SEEN: ("Is it a man, a woman or a person?", "What gender does the person have?", "What is the gender?", "Which gender is it?",
               "What's the gender?", "Man, woman or person?", "Does it show a woman, a man or a person?"),
        HELD: ("Which gender does the person have?", "Is it a woman, a man or a person?"),
    },
    "group": {
        SEEN: ("Which group does it belong to?", "What group is it in?", "Which category does it belong to?", "What is the category?",
               "What kind of emoji is it?", "Which group of emoji is this in?", "What category is it in?"),
        HELD: ("Which group is it in?", "What group does it belong to?"),
    },
    "style": {
        SEEN: ("Which style is it?", "What is the style?", "In which style is it drawn?"),
        HELD: ("What style is it in?",),
    },
}  # fmt: skip
CLAIMS = {
    "what": {
        SEEN: ("Is it {a}?", "Is this {a}?", "Does the picture show {a}?", "Do you see {a}?", "Is this the emoji: {n}?", "Is {a} shown?"),
        HELD: ("Does it show {a}?", "Is {a} in the picture?"),
    },
    "tone": {
        SEEN: ("Is the skin {t}?", "Is the skin tone {t}?", "Does it have {t} skin?", "Does the person have {at} skin tone?"),
        HELD: ("Does the person have {t} skin?", "Is the skin colour {t}?"),
    },
}


@dataclass(frozen=True)
class Caption:
    """A caption, and whether its form occurs in training."""

    text: str
    form: str  # one of FORMS
    template: str  # the words around the names


@dataclass(frozen=True)
class Question:
    """A question with its only right answer."""

    text: str
    answer: str
    kind: str  # what, tone, gender, group, style or yesno
    form: str  # SEEN or HELD
    template: str


def article(noun: str) -> str:
    """Return a noun with "a" or "an" before it, where it takes one."""
    head = noun.split(" with ")[0].split(" in ")[0].split(" of ")[0].split()[-1]
    many = noun.split()[0] in ("people", "men", "women") or re.search(r"[^su]s$", head) is not None
    name = noun[0].isupper() and not noun.split()[0].isupper()
    if noun.startswith("flag of "):
        return f"the {noun}"
    return noun if many or name else with_article(noun)


def typed(text: str, rng: Random) -> str:
    """Return a text as people type it."""
    return vary(text.replace("medium-", "medium ") if rng.random() < 0.25 else text, rng)


def caption(one: Emoji, rng: Random, *, form: str = SEEN) -> Caption:
    """Return a caption that names the concept and the skin tone; a held-out form differs in the words around one of them."""
    if form == NAME:
        return Caption(one.name, form, NAME)
    part = rng.choice(["core", "wrap"]) if form == HELD else ""
    order = "{n}"
    other = GENDERED[SEEN].get(one.gender, ()) if is_job(one) else ()
    if other and part == "core" and rng.random() < HELD_NOUN_SHARE:
        order, part = rng.choice(GENDERED[HELD]), "noun"
    elif other and rng.random() < 0.4:
        order = rng.choice(other)
    noun = order.format(n=one.concept, role=one.role, gender=one.gender)
    table = TONED if one.tone not in ("", NO_TONE) else PLAIN
    core = rng.choice(table[HELD if part == "core" else SEEN])
    wrap = rng.choice(WRAPS[HELD if part == "wrap" else SEEN])
    text = wrap.format(c=fill(core, noun, one.tone))
    if one.style != TWEMOJI:
        text = f"{text.rstrip('?')}, {one.style} style"
    return Caption(typed(text, rng), form, wrap.format(c=core).replace("{n}", order).replace("{a}", f"a {order}"))


def is_job(one: Emoji) -> bool:
    """Whether the concept is a gender and what a person is or does, so that "female firefighter" means the same."""
    return one.concept == f"{one.gender} {one.role}" and one.role.split()[0] not in ("in", "with", "wearing")


def fill(template: str, noun: str, tone: str = "") -> str:
    """Put the names into a template."""
    return template.format(n=noun, a=article(noun), t=tone, at=with_article(tone or "none"))


class Asker:
    """Makes questions about emoji; wrong claims are about what looks alike: another tone, gender or member of the group.

    `emoji`: those whose concepts may be named in a wrong claim: those of training, so that no claim names a new concept.
    """

    def __init__(self, emoji: Iterable[Emoji]) -> None:
        self.of_group: dict[str, list[str]] = defaultdict(list)
        self.of_role: dict[str, list[str]] = defaultdict(list)
        for one in emoji:
            for table, name in ((self.of_group, one.group), (self.of_role, one.role)):
                if name and one.concept not in table[name]:
                    table[name].append(one.concept)

    def ask(self, one: Emoji, rng: Random, *, form: str = SEEN, styles: Sequence[str] = ()) -> list[Question]:
        """Return one question of each kind that applies, and two to answer with yes or no, one each; in random order."""
        answers = {"what": one.concept, "tone": one.tone, "gender": one.gender, "group": one.group}
        answers["style"] = one.style if len(styles) > 1 else ""
        asked = []
        for kind, answer in answers.items():
            if answer:
                template = rng.choice(QUESTIONS[kind][form])
                asked.append(Question(typed(template, rng), answer, kind, form, template))
        about = "tone" if one.tone and rng.random() < 0.5 else "what"
        wrong = self._wrong(one, about, rng)
        if wrong:
            for value, answer in ((one.tone if about == "tone" else one.concept, "yes"), (wrong, "no")):
                template = rng.choice(CLAIMS[about][form])
                words = fill(template, one.concept, value) if about == "tone" else fill(template, value)
                asked.append(Question(typed(words, rng), answer, "yesno", form, template))
        return rng.sample(asked, len(asked))

    def _wrong(self, one: Emoji, about: str, rng: Random) -> str:
        """A skin tone or a concept that the emoji is not."""
        if about == "tone":
            tones = map(" and ".join, permutations(TONES, 2)) if " and " in one.tone else (*TONES, NO_TONE)
            return rng.choice([tone for tone in tones if tone != one.tone])
        near = [concept for concept in self.of_role[one.role] if concept != one.concept] if one.role else []
        far = [concept for concept in self.of_group[one.group] if concept != one.concept]
        pool = near if near and rng.random() < 0.5 else far
        return rng.choice(pool) if pool else ""


def text_lines(one: Emoji, asker: Asker, rng: Random, *, lines: int, styles: Sequence[str] = ()) -> list[str]:
    """Return lines for pre-training a language model: descriptions of the same picture in several forms, then questions about it."""
    made = []
    for _ in range(lines):
        described = [caption(one, rng).text for _ in range(rng.randint(1, 3))]
        asked = asker.ask(one, rng, styles=styles)[: rng.randint(0, 4)]
        made.append(" ".join([*map(sentence, described), *(f"Question: {each.text} Answer: {sentence(each.answer)}" for each in asked)]))
    return made


def sentence(text: str) -> str:
    """Return a text with a full stop where it ends with a word."""
    return text if text[-1] in ".?!" else f"{text}."


def form_tables() -> list[dict[str, tuple[str, ...]]]:
    """Return all tables of forms, seen and held out, for counting and tests."""
    return [TONED, PLAIN, WRAPS, *QUESTIONS.values(), *CLAIMS.values()]
