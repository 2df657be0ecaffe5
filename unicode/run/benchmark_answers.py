"""The questions of a benchmark through a model into a file of answers: batched, dealt to the ranks, resumed question by question."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from unicode.generate.answer import AnswerConfig, answer_questions
from unicode.generate.answer import Question as Asked
from unicode.generate.answer_file import ERROR, AnswerFile, Key, key_of
from unicode.generate.question_images import ImageReader
from unicode.ids.store import Store
from unicode.llm.load import LanguageModel
from unicode.metrics.benchmarks.entry import Benchmark, Options, Question

RECORDED = ("round_id", "options", "option_char")  # fields of a question that LLaVA repeats in its answer


@dataclass(frozen=True)
class AskSettings:
    """How a benchmark is asked."""

    data: Path
    """Folder of all benchmarks."""
    options: Options = field(default_factory=Options)
    stores: tuple[str, ...] = ()
    """Stores of ids in which images are looked up, by their path below the image folder, below `data`, or below the folder of `data`."""
    batch_size: int = 16
    max_new_tokens: int = 0
    """0: what the benchmark allows."""
    blank: str = ""
    """What stands in place of every image in the blind baseline (`question_images.BLANKS`); empty: the images themselves."""
    limit: int = 0
    """Only so many questions, evenly spread; 0: all."""


class PlacedStore(Store):
    """A store whose keys may begin higher up than the names of a benchmark's images do.

    Args:
        path: the store.
        prefixes: what may stand before a name, "" first.
    """

    def __init__(self, path: str | Path, prefixes: Sequence[str]) -> None:
        super().__init__(path)
        self.prefixes = tuple(prefixes)

    def get(self, key: str) -> Any:
        """As `Store.get` of the first prefix under which there are ids."""
        return next((ids for prefix in self.prefixes if (ids := super(PlacedStore, self).get(prefix + key)) is not None), None)


def open_stores(settings: AskSettings, folder: str) -> list[PlacedStore]:
    """Open the stores for a benchmark whose images lie in `folder` below the data folder."""
    return [PlacedStore(path, ("", f"{folder}/", f"{settings.data.name}/{folder}/")) for path in settings.stores]


class _Questions(Sequence[Asked]):
    """A share of a benchmark's questions as the model is asked them, made when they are asked for."""

    def __init__(self, questions: Sequence[Question], share: Sequence[int], stores: Sequence[Store]) -> None:
        self._questions, self._share, self._stores = questions, share, stores

    def __len__(self) -> int:
        return len(self._share)

    def __getitem__(self, index: Any) -> Any:
        question = self._questions[self._share[index]]
        return Asked(question.text, tuple(self._images(question)), id=question.key)

    def _images(self, question: Question) -> Iterator[Any]:
        if question.image_data and all(store.get(question.image) is None for store in self._stores):
            yield question.image_data  # the picture stands in the table of the questions
        elif question.image:
            yield question.image


def read_questions(benchmark: Benchmark, settings: AskSettings) -> list[Question]:
    """Return the questions to ask, `settings.limit` of them evenly spread."""
    questions = benchmark.read_questions(settings.data, settings.options)
    if not 0 < settings.limit < len(questions):
        return questions
    return [questions[place * len(questions) // settings.limit] for place in range(settings.limit)]


def check_images(benchmark: Benchmark, questions: Sequence[Question], settings: AskSettings) -> None:
    """FileNotFoundError when pictures of the questions are neither in a store nor in the image folder; it counts them and names one."""
    if settings.blank:
        return
    folder = benchmark.image_folder(settings.options)
    stores = open_stores(settings, folder)
    names = dict.fromkeys(question.image for question in questions if question.image and not question.image_data)
    root = settings.data / folder
    missing = [name for name in names if not (root / name).is_file() and all(store.get(name) is None for store in stores)]
    if missing:
        where = f"{root}" + (f" or the stores {', '.join(settings.stores)}" if stores else "")
        remedy = next((file.source for file in benchmark.needed_files(settings.options) if folder in file.path), "download the pictures")
        raise FileNotFoundError(
            f"{benchmark.name}: {len(missing)} of {len(names)} pictures are not in {where}, the first is '{missing[0]}': {remedy}; "
            "with --skip-missing-images the questions about them stay unanswered"
        )


def check_reading(model: LanguageModel, questions: Sequence[Question], settings: AskSettings) -> None:
    """ValueError or FileNotFoundError, as `LanguageModel.images`, when the model cannot read pictures and will have to."""
    if any(question.image for question in questions) and not settings.stores and settings.blank != "none":
        model.picture(Image.new("RGB", (8, 8)))


def describe_run(model: LanguageModel, settings: AskSettings, max_new_tokens: int) -> dict[str, Any]:
    """What answers depend on besides the question; other answers are not mixed with these."""
    tokenizer = (model.card.image_tokenizer or {}).get("fingerprint", "")
    if not tokenizer and model.tokenizer_path:
        tokenizer = model.images.fingerprint
    return {
        "model_fingerprint": model.fingerprint,
        "tokenizer_fingerprint": tokenizer,
        "template": model.card.template,
        "max_new_tokens": max_new_tokens,
        "blank_images": settings.blank,
    }


def ask(
    benchmark: Benchmark, model: LanguageModel, questions: Sequence[Question], path: Path, *, settings: AskSettings, model_id: str
) -> dict[str, Any]:
    """Have the questions answered that have no answer in `path` yet; called by every rank of a job, each answers its share.

    Returns:
        What is known of the answers for `scores.json`, the main rank's copy counts: `describe_run`, seconds, num_asked,
        num_cut (answers that reached the limit of tokens), errors (question_id -> why there is no answer).

    Raises:
        ValueError: `path` holds answers of another model, other settings or other questions.
        OSError: the disk is full; what is written stays.
    """
    config = AnswerConfig(batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens or benchmark.max_new_tokens)
    made_by = describe_run(model, settings, config.max_new_tokens)
    folder = benchmark.image_folder(settings.options)
    stores = open_stores(settings, folder)
    every = [_key(question) for question in (benchmark.read_questions(settings.data, settings.options) if settings.limit else questions)]
    places = {_key(question): place for place, question in enumerate(questions)}
    with AnswerFile(path, every, made_by=made_by, model_id=model_id) as file:
        file.missing = [place for place in file.missing if every[place] in places]  # answers beyond a limit stay where they are
        num_asked = len(file.missing)
        share = [places[every[place]] for place in file.share()]
        with ImageReader(model, stores=stores, root=settings.data / folder, blank=settings.blank) as images:
            asked, start = _Questions(questions, share, stores), time.perf_counter()
            for place, answer in answer_questions(model, asked, config=config, images=images, progress=True):
                question, before, start = questions[share[place]], start, time.perf_counter()
                seconds = round(start - before, 6)
                metadata: dict[str, Any] = {"num_tokens": answer.num_tokens, "finished": answer.finished, "seconds": seconds}
                metadata |= {ERROR: answer.error} if answer.error else {}
                file.put(question.id, question.prompt, answer.text, metadata=metadata, **_recorded(question))
        summary = file.finish()
        records = [record["metadata"] for key, record in file.records().items() if key in places]
    return {
        **made_by,
        "seconds": round(sum(metadata.get("seconds", 0.0) for metadata in records), 3),
        "num_asked": num_asked,
        "num_cut": sum(not metadata.get("finished", True) and ERROR not in metadata for metadata in records),
        "errors": {key[0]: why for key, why in summary.errors.items() if key in places},
    }


def _recorded(question: Question) -> dict[str, Any]:
    """What LLaVA repeats of a question in its answer."""
    return {name: question.fields[name] for name in RECORDED if name in question.fields}


def _key(question: Question) -> Key:
    return key_of({"question_id": question.id, "prompt": question.prompt, **_recorded(question)})
