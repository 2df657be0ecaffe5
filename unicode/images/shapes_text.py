"""Scenes of the shapes world -> captions, questions with one right answer, both in many forms, and lines of text for pre-training."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from unicode.images.shapes import COLOURS, PLACES, SHAPES, Scene, ShapesConfig, Thing, draw_scene

KINDS = ("colour", "shape", "place", "count", "yesno", "size")
WIDE = {"colours": len(COLOURS), "shapes": len(SHAPES), "places": 3, "min_objects": 2, "max_objects": 3, "jitter": 0}
WIDE_SHARE, HELD_SHARE, FACT_SHARE = 0.6, 0.25, 0.05  # of the lines of text
SENTENCES = 0.4  # share of the captions of training that are plain sentences
SPELLINGS = (("colour", "color"), ("grey", "gray"))
ENDS = {"": 0.72, ".": 0.25, "!": 0.03}


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene that has one right answer."""

    text: str
    answer: str  # one to three words in lower case, or a digit
    kind: str  # one of KINDS; "size" only in worlds of several sizes


def scene_caption(scene: Scene, rng: Random | None = None) -> str:
    """Return a sentence or two that determine colour, shape, place (and size, if there are several) of every thing.

    Without `rng` the first template and reading order; with it a random template and a random order of the things.
    """
    ordered = list(scene.things)
    if not ordered:
        return "There is nothing."
    template = CAPTIONS[0]
    if rng is not None:
        rng.shuffle(ordered)
        template = rng.choice(CAPTIONS)
    sized = scene.config.sizes > 1
    nouns = [f"{thing.size} {thing.colour} {thing.shape}" if sized else f"{thing.colour} {thing.shape}" for thing in ordered]
    return template([(with_article(noun), f"the {thing.place}") for noun, thing in zip(nouns, ordered, strict=True)])


def with_article(noun: str) -> str:
    """Return a noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _phrases(pairs: list[tuple[str, str]], between: str) -> str:
    return _list([f"{noun} {between} {place}" for noun, place in pairs])


CAPTIONS: tuple[Callable[[list[tuple[str, str]]], str], ...] = (
    lambda pairs: _sentence(_phrases(pairs, "at")),
    lambda pairs: _sentence(f"there is {_phrases(pairs, 'at')}"),
    lambda pairs: _sentence(f"the picture shows {_phrases(pairs, 'at')}"),
    lambda pairs: " ".join(_sentence(f"{noun} is at {place}") for noun, place in pairs),
    lambda pairs: _sentence(_list([f"at {place} is {noun}" for noun, place in pairs])),
    lambda pairs: _sentence(f"this is {_phrases(pairs, 'in')}"),
    lambda pairs: " ".join(_sentence(f"at {place} there is {noun}") for noun, place in pairs),
)


def scene_questions(scene: Scene, rng: Random) -> list[SceneQuestion]:
    """Return questions about a scene in random order, the kinds taking turns, none twice; each has exactly one answer.

    Things are named by their place or, where that is unambiguous, by what they look like. For each thing there is a question
    to answer with yes and one to answer with no, if the world allows it.
    """
    make = _QuestionMaker(scene.things, scene.config, rng)
    makers = [make.colour, make.shape, make.place, make.count, make.yesno]
    if scene.config.sizes > 1:
        makers.append(make.size)
    rows = []
    for maker in rng.sample(makers, len(makers)):
        unique = list(dict.fromkeys(maker()))
        rows.append(rng.sample(unique, len(unique)))
    longest = max(len(row) for row in rows)
    return [row[turn] for turn in range(longest) for row in rows if turn < len(row)]


@dataclass(frozen=True)
class _QuestionMaker:
    """Makes questions of each kind about some things."""

    things: tuple[Thing, ...]
    config: ShapesConfig
    rng: Random

    def colour(self) -> list[SceneQuestion]:
        forms = ("What color is the object at the {place}?", "What is the color of the object at the {place}?")
        return self._about("colour", forms, "What color is the {shape}?", ("shape",))

    def shape(self) -> list[SceneQuestion]:
        forms = ("What shape is the object at the {place}?", "What shape is at the {place}?")
        return self._about("shape", forms, "What shape is the {colour} object?", ("colour",))

    def size(self) -> list[SceneQuestion]:
        return self._about("size", ("What size is the object at the {place}?",), "What size is the {colour} {shape}?", ("colour", "shape"))

    def _about(self, kind: str, forms: Sequence[str], by_looks: str, looks: Sequence[str]) -> list[SceneQuestion]:
        """Ask for one property of each thing: by its place, in one of `forms`, and where no other thing has its `looks` by these."""
        found = []
        for thing in self.things:
            words = thing._asdict()
            form = self.rng.choice(forms) if len(forms) > 1 else forms[0]
            found.append(SceneQuestion(form.format(**words), words[kind], kind))
            if self._only(**{name: words[name] for name in looks}):
                found.append(SceneQuestion(by_looks.format(**words), words[kind], kind))
        return found

    def place(self) -> list[SceneQuestion]:
        found = []
        for thing in self.things:
            nouns = {
                f"{thing.colour} {thing.shape}": self._only(colour=thing.colour, shape=thing.shape),
                f"{thing.colour} object": self._only(colour=thing.colour),
                thing.shape: self._only(shape=thing.shape),
            }
            found += [SceneQuestion(f"Where is the {noun}?", thing.place, "place") for noun, alone in nouns.items() if alone]
        return found

    def count(self) -> list[SceneQuestion]:
        colour, shape = self.rng.choice(self.config.colour_names), self.rng.choice(self.config.shape_names)
        if self.things and self.rng.random() < 0.7:  # mostly of what is there, or nearly every answer would be 0
            colour, shape = self.rng.choice(self.things).colour, self.rng.choice(self.things).shape
        every = self.rng.choice(["How many objects are there?", "How many objects does the picture show?"])
        return [
            SceneQuestion(every, str(len(self.things)), "count"),
            SceneQuestion(f"How many {shape}{'es' if shape.endswith('s') else 's'} are there?", str(self._number(shape=shape)), "count"),
            SceneQuestion(f"How many {colour} objects are there?", str(self._number(colour=colour)), "count"),
        ]

    def yesno(self) -> list[SceneQuestion]:
        found = []
        for thing in self.things:
            found.append(SceneQuestion(self._claim(thing.colour, thing.shape, thing.place, form=self.rng.randrange(4)), "yes", "yesno"))
            found += self._false_claim(thing)
        return found

    def _claim(self, colour: str, shape: str, place: str, *, form: int) -> str:
        return (
            f"Is there {with_article(f'{colour} {shape}')}?",
            f"Is the object at the {place} {colour}?",
            f"Is the object at the {place} {with_article(shape)}?",
            f"Is there an object at the {place}?",
        )[form]

    def _false_claim(self, thing: Thing) -> list[SceneQuestion]:
        """A question that is false in one property only, as one false in all would be too easy; none if there is none."""
        form = self.rng.randrange(4)
        colour, shape, place = thing.colour, thing.shape, thing.place
        if form == 1 or (form == 0 and self.rng.random() < 0.5):
            colour = self.rng.choice([name for name in self.config.colour_names if name != colour])
        elif form == 3:
            free = [name for name in self.config.place_names if not self._number(place=name)]
            if not free:
                return []
            place = self.rng.choice(free)
        else:
            shape = self.rng.choice([name for name in self.config.shape_names if name != shape])
        if form == 0 and self._number(colour=colour, shape=shape):
            return []
        return [SceneQuestion(self._claim(colour, shape, place, form=form), "no", "yesno")]

    def _number(self, **properties: str) -> int:
        return sum(all(getattr(thing, name) == value for name, value in properties.items()) for thing in self.things)

    def _only(self, **properties: str) -> bool:
        return self._number(**properties) == 1


class Forms(NamedTuple):
    """Templates that occur in training, and held-out ones: other orders of words that training has too."""

    seen: tuple[str, ...]
    held: tuple[str, ...]


# {n}: the object, {a}: the object with its article, {p}: its place
THINGS = Forms(
    ("{a} at the {p}", "{a} in the {p}", "the {n} at the {p}", "{n} at the {p}", "{n} {p}", "{n}, {p}", "at the {p} {a}", "{p}: {n}"),
    ("{n} at {p}", "in the {p} {a}", "{a}, {p}", "the {p}: {a}"),
)
REQUESTS = Forms(
    (
        *["{c}"] * 4, "draw {c}", "draw me {c}", "please draw {c}", "{c} please", "{c}, please", "can you draw {c}?", "there is {c}",
        "i want {c}", "i would like {c}", "show me {c}", "a picture of {c}", "the picture shows {c}", "put {c}", "make {c}",
    ),
    ("please show me {c}", "i want a picture of {c}", "can you make {c}, please?", "i would like a picture of {c}"),
)  # fmt: skip
AND = (" and ", ", ", " and ")

# plain question -> its forms; {x}: what is asked about
QUESTIONS = {
    r"What (?P<k>color|shape|size) is the (?P<x>.+)\?": Forms(
        ("What {k} is the {x}?", "What is the {k} of the {x}?", "Which {k} does the {x} have?", "What's the {k} of the {x}?",
         "{k} of the {x}?", "Which {k} is it: the {x}?", "Tell me the {k} of the {x}."),
        ("Which {k} is the {x}?", "What {k} does the {x} have?", "Tell me which {k} the {x} is."),
    ),
    r"Where is the (?P<x>.+)\?": Forms(
        ("Where is the {x}?", "Where do you see the {x}?", "Where's the {x}?", "In which place is the {x}?", "Tell me where the {x} is."),
        ("In which place do you see the {x}?", "The {x} is where?"),
    ),
    r"How many (?P<x>.+?) (?:are there|does the picture show)\?": Forms(
        ("How many {x} are there?", "How many {x} does the picture show?", "How many {x} do you see?", "How many {x} are in the picture?",
         "What is the number of {x}?", "Count the {x}."),
        ("What is the number of {x} in the picture?", "How many {x} are there in the picture?"),
    ),
    rf"Is the object at the (?P<p>{'|'.join(sorted({*PLACES[2], *PLACES[3]}, key=len, reverse=True))}) (?P<x>.+)\?": Forms(
        ("Is the object at the {p} {x}?", "Is the thing at the {p} {x}?", "Is it {x} at the {p}?", "Is what is at the {p} {x}?"),
        ("At the {p}, is it {x}?", "Is it {x}, the object at the {p}?"),
    ),
    r"Is there (?P<x>.+)\?": Forms(
        ("Is there {x}?", "Do you see {x}?", "Does the picture show {x}?", "Is {x} in the picture?", "Can you see {x}?"),
        ("Is there {x} in the picture?", "Do you see {x} in the picture?"),
    ),
}  # fmt: skip


def typed_caption(scene: Scene, rng: Random, *, held: bool = False) -> str:
    """Return a caption that determines the scene, as people type it. `held`: the words around the objects, or the request, are held out."""
    if not scene.things or (not held and rng.random() < SENTENCES):
        return scene_caption(scene, rng)
    sized = scene.config.sizes > 1
    part = rng.choice([THINGS, REQUESTS]) if held else None
    thing, request = (rng.choice(forms.held if forms is part else forms.seen) for forms in (THINGS, REQUESTS))
    phrases = []
    for one in rng.sample(scene.things, len(scene.things)):
        noun = f"{one.size} {one.colour} {one.shape}" if sized else f"{one.colour} {one.shape}"
        phrases.append(thing.format(n=noun, a=with_article(noun), p=one.place))
    return vary(request.format(c=rng.choice(AND).join(phrases)), rng)


def typed_question(question: SceneQuestion, rng: Random, *, held: bool = False) -> SceneQuestion:
    """Return a question of `scene_questions` in another form, with the same answer."""
    plain = question.text.replace("What is the color of the", "What color is the")
    plain = plain.replace("What shape is at the", "What shape is the object at the")
    for pattern, forms in QUESTIONS.items():
        match = re.fullmatch(pattern, plain)
        if match:
            text = rng.choice(forms.held if held else forms.seen).format(**match.groupdict())
            return SceneQuestion(vary(text[0].upper() + text[1:], rng), question.answer, question.kind)
    raise AssertionError(f"'{question.text}' has no other forms")


def vary(text: str, rng: Random) -> str:
    """Return a text in another case, with other punctuation at its end, or in the other spelling, as people type."""
    for pair in SPELLINGS:
        word = rng.choice(pair)
        for other in pair:
            text = re.sub(rf"\b{other}", word, text)
    bare = text.rstrip(".?!")
    end = text[len(bare) :]
    if end and rng.random() < 0.3:
        end = ""
    elif not end:
        end = rng.choices(list(ENDS), list(ENDS.values()))[0]
    drawn = rng.random()
    if drawn < 0.3:
        bare = bare[0].upper() + bare[1:]
    elif drawn < 0.7:
        bare = bare.lower()
    elif drawn < 0.73:
        bare = bare.upper()
    return bare + end


def fact(config: ShapesConfig, rng: Random) -> str:
    """Return a sentence that is true in the whole world, for pre-training a language model on its words."""
    colour, shape, place = rng.choice(config.colour_names), rng.choice(config.shape_names), rng.choice(config.place_names)
    noun = f"{colour} {shape}"
    return rng.choice([
        f"{colour.capitalize()} is a color.",
        f"{with_article(shape).capitalize()} is a shape.",
        f"The {place} is a place.",
        f"{with_article(noun).capitalize()} is {colour}.",
        f"{with_article(noun).capitalize()} is {with_article(shape)}.",
        f"The color of {with_article(noun)} is {colour}.",
        f"The shape of {with_article(noun)} is {with_article(shape)}.",
    ])  # fmt: skip


def world_text(*, seed: int) -> Iterator[str]:
    """Yield lines of text about the world for pre-training a small language model, without end.

    Most lines describe the same scene several times in other words and orders, then ask about it. To continue such a line a model has to
    look up an earlier description of a place or thing, as questions about images require later. Six lines in ten are about a larger
    world (all colours, shapes and places), which cannot be memorized. Words combine freely, as in the text of any language model:
    held-out combinations occur here, but in no picture of the split "train".
    """
    world, rng = ShapesConfig(seed=seed), Random(seed)
    wide = replace(world, **WIDE, image_size=48)
    while True:
        if rng.random() < FACT_SHARE:
            yield fact(world, rng)
            continue
        split = "val" if rng.random() < HELD_SHARE else "train"
        scene = draw_scene(wide if rng.random() < WIDE_SHARE else world, split, 2**20 + rng.getrandbits(40))
        words = [typed_caption(scene, rng) for _ in range(rng.randint(1, 5))]
        asked = [typed_question(question, rng) for question in scene_questions(scene, rng)[: rng.randint(0, 5)]]
        words += [f"Question: {question.text} Answer: {question.answer}." for question in asked]
        yield " ".join(word if word[-1] in ".?!" else f"{word}." for word in words)
