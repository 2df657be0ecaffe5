"""LLaVA's twelve benchmarks: ask a model, score the answers or write the submission file; resumable."""

import argparse
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from unicode.common.distributed import barrier, is_main
from unicode.common.files import atomic_write, read_json, write_json
from unicode.common.logging import get_logger
from unicode.generate.answers import AnswerConfig, answer_questions
from unicode.generate.answers import Question as Asked
from unicode.generate.jobs import ERROR, AnswerFile, Key, key_of
from unicode.generate.question_images import ImageReader
from unicode.ids.store import Store
from unicode.images.lookup import ImageLookup
from unicode.llm.language_model import LanguageModel
from unicode.metrics.benchmarks.base import Answers, Benchmark, Options, Question, Score, missing_files, read_answers
from unicode.metrics.benchmarks.judged import URL_VARIABLE, Endpoint, Llavabench
from unicode.metrics.benchmarks.table import BENCHMARKS
from unicode.run.command import command, one_line

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


def open_pictures(settings: AskSettings, folder: str) -> ImageLookup:
    """Open the image folder of a benchmark; nothing is found where it does not exist."""
    root = settings.data / folder
    return ImageLookup([root] if root.is_dir() else [])


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
    stores, pictures = open_stores(settings, folder), open_pictures(settings, folder)
    names = dict.fromkeys(question.image for question in questions if question.image and not question.image_data)
    missing = [name for name in names if name not in pictures and all(store.get(name) is None for store in stores)]
    if missing:
        where = f"{settings.data / folder}" + (f" or the stores {', '.join(settings.stores)}" if stores else "")
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
        with ImageReader(model, stores=stores, pictures=open_pictures(settings, folder), blank=settings.blank) as images:
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


SCORES, TABLE = "scores.json", "table.md"
QUOTED = (
    "Models marked (quoted) stand as others quote them; look the numbers up in their papers before you rely on them. A published number is "
    "comparable when all questions are answered and the protocol in scores.json is the same."
)


def run_name(name: str, options: Options, *, blank: str = "") -> str:
    """Folder of one benchmark's results below the folder of all: its name, what is special about the run, blind baselines apart."""
    parts = [name, *([options.split] if options.split else []), *(["circular"] if options.circular else [])]
    return ("blank_" + blank + "/" if blank else "") + "-".join(parts)


def write_report(folder: Path, score: Score, answered: Mapping[str, Any]) -> dict[str, Any]:
    """Write the score's files and scores.json, and return the content of the latter.

    Args:
        answered: what is known about the answers: who gave them, with which settings, how long it took.
    """
    score.write_files(folder)
    report = {re.sub("^num_", "n_", name): value for name, value in score.to_dict().items()}
    report = {"benchmark": report.pop("name"), "title": BENCHMARKS[score.name].title, **report, **answered}
    write_json(folder / SCORES, report)
    return report


def describe(report: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines for the console: the score, what a reader must know about it, the files."""
    asked = report["n_expected"] if report["n_expected"] is not None else "an unknown number of"
    counts = f"{report['n_answered']} of {asked} questions answered, {report['n_unparsed']} answers not understood"
    lines = [f"{report['title']}: {format_score(report['headline'])} {report['unit']} ({counts})"]
    errors = report.get("errors") or {}
    if errors:
        name, reason = next(iter(errors.items()))
        lines.append(f"  {len(errors)} questions could not be asked, the first is {name}: {reason}")
    lines += [f"  {note}" for note in report["notes"]]
    return [*lines, f"  {', '.join([SCORES, *report['files']])} in {folder}"]


def format_score(value: float | None) -> str:
    """A headline for people; a dash where there is none."""
    return "-" if value is None else f"{value:.1f}"


def write_table(out: Path) -> str:
    """Write OUT/table.md over all scores below `out`, published numbers beside ours, and return its text; empty without scores."""
    rows = _find_rows(out)
    if not rows:
        return ""
    models = list(dict.fromkeys(model for name, _, _ in rows for model in BENCHMARKS[name].published))
    head = ["benchmark", "ours", "blank images", "unit", "answered", "not understood", "seconds", *models]
    lines = [head, ["---", *["---:"] * 2, "---", *["---:"] * (len(head) - 4)]]
    for name, report, blind in rows:
        published = BENCHMARKS[name].published
        special = "" if report["run"] == name else f" ({report['run'].partition('-')[2]})"
        expected = "?" if report["n_expected"] is None else report["n_expected"]
        lines.append([
            f"{report['title']}{special}", format_score(report["headline"]), format_score(blind), report["unit"],
            f"{report['n_answered']}/{expected}", str(report["n_unparsed"]), f"{report.get('seconds', 0):.0f}",
            *(format_score(published.get(model)) for model in models),
        ])  # fmt: skip
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{QUOTED}\n"
    with atomic_write(out / TABLE) as file:
        file.write(text)
    return text


def _find_rows(out: Path) -> list[tuple[str, dict[str, Any], float | None]]:
    """(benchmark, content of its scores.json with "run", headline of the blind baseline) in the order of the benchmarks."""
    rows = []
    for name in BENCHMARKS:
        for file in sorted([*out.glob(f"{name}/{SCORES}"), *out.glob(f"{name}-*/{SCORES}")]):
            run = file.parent.name
            blind = next((read_json(path)["headline"] for path in sorted(out.glob(f"blank_*/{run}/{SCORES}"))), None)
            rows.append((name, {**read_json(file), "run": run}, blind))
    return rows


log = get_logger(__name__)
WITH_SPLITS = ("vqav2", "vizwiz")


class Runner:
    """Runs benchmarks with the same arguments; every rank of a job makes one.

    Args:
        args: those of `unicode.run.benchmark`, checked.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    @cached_property
    def model(self) -> Any:
        """The model that is asked, opened when first asked for."""
        from unicode.common.distributed import open_job
        from unicode.llm.load import open_model

        names = {"base": self.args.base, "image_tokenizer": self.args.image_tokenizer}
        return open_model(self.args.model, **names, device=open_job(self.args.device), dtype=self.args.dtype, merge=True)

    def options(self, benchmark: Benchmark) -> Options:
        """What the user chose, as far as it concerns a benchmark."""
        split = self.args.split if benchmark.name in WITH_SPLITS else ""
        circular = self.args.circular and benchmark.name.startswith("mmbench")
        return Options(split=split, circular=circular, judge_workers=self.args.judge_workers)

    def find_answers(self, benchmark: Benchmark) -> Path:
        """The file of answers that --answers means; FileNotFoundError where a folder has none for this benchmark."""
        given: Path = self.args.answers
        if not given.is_dir():
            return given
        places = [given / f"{benchmark.name}.jsonl", given / run_name(benchmark.name, self.options(benchmark)) / "answers.jsonl"]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"neither {places[0]} nor {places[1]} is there")
        return found

    def run(self, benchmark: Benchmark) -> None:
        """Ask, score and write one benchmark; called by every rank, the main one scores.

        Raises:
            FileNotFoundError: a file of the benchmark, or pictures, are not there; the message says what to download.
            ValueError: a damaged file, or answers of another model or question file.
        """
        folder = self.args.out / run_name(benchmark.name, self.options(benchmark), blank=self.args.blank_images)
        scoring = self.args.answers is not None
        path = self.find_answers(benchmark) if scoring else folder / "answers.jsonl"
        answered = {} if scoring else self._ask(benchmark, path)
        if self.args.dry_run:
            log.info("%s: what is needed is there", benchmark.title)
        elif is_main():
            self._score(benchmark, path, folder, answered)
        barrier()

    def run_all(self) -> list[str]:
        """Run every benchmark whose files are there, and return what went wrong with those that failed.

        Raises:
            FileNotFoundError: none is there.
        """
        failed, absent = [], []
        for benchmark in BENCHMARKS.values():
            lacking = self._lacks(benchmark)
            if lacking:
                absent.append(benchmark.name)
                log.info("%s left out: %s", benchmark.title, lacking)
                continue
            try:
                self.run(benchmark)
            except (ValueError, OSError) as error:
                log.warning("%s failed: %s", benchmark.title, one_line(error))
                failed.append(f"{benchmark.name}: {one_line(error)}")
        if len(absent) == len(BENCHMARKS):
            where = self.args.answers or self.args.data
            raise FileNotFoundError(f"no benchmark in {where}; EVALUATION.md says what to download and where to put it")
        return failed

    def _lacks(self, benchmark: Benchmark) -> str:
        """Why a benchmark cannot be run; empty if it can."""
        if self.args.answers is None:
            return next(iter(missing_files(benchmark, self.args.data, self.options(benchmark), purpose="ask")), "")
        try:
            self.find_answers(benchmark)
        except FileNotFoundError as error:
            return str(error)
        return ""

    def _ask(self, benchmark: Benchmark, path: Path) -> dict[str, Any]:

        args = self.args
        settings = AskSettings(
            data=args.data,
            options=self.options(benchmark),
            stores=tuple(args.store),
            batch_size=args.batch_size,
            max_new_tokens=args.max_new_tokens,
            blank=args.blank_images,
            limit=args.limit,
        )
        questions = read_questions(benchmark, settings)
        if not args.skip_missing_images:
            check_images(benchmark, questions, settings)
        check_reading(self.model, questions, settings)
        if args.dry_run:
            return {}
        log.info("%s: %d questions, the answers go to %s", benchmark.title, len(questions), path)
        return ask(benchmark, self.model, questions, path, settings=settings, model_id=Path(args.model).name)

    def _score(self, benchmark: Benchmark, path: Path, folder: Path, answered: dict[str, Any]) -> None:
        found = read_answers(path, benchmark.key_of)
        answers = {key: record for key, record in found.records.items() if not (record.get("metadata") or {}).get("error")}
        score = benchmark.score(self.args.data, answers, self._with_judge(benchmark, answers, folder / "judge.jsonl"))
        score.notes += found.notes(path)
        if self.args.limit:
            score.notes.append(f"only {self.args.limit} questions were asked (--limit): a try, no score to quote")
        about = path.with_name(f"{path.name}.run.json")
        answered = answered or (read_json(about) if about.is_file() else {})
        models = sorted({str(record.get("model_id", "")) for record in answers.values()})
        report = write_report(folder, score, {"model": ", ".join(models), "answers": str(path), **answered})
        for line in describe(report, folder):
            log.info("%s", line)
        if score.values.get("judged", 0) < score.values.get("requests", 0) and self._judges(benchmark):
            raise OSError(f"{benchmark.title} is not judged to the end: {score.notes[-1]}")

    def _judges(self, benchmark: Benchmark) -> bool:
        """Whether a judge is to be asked."""
        return isinstance(benchmark, Llavabench) and not self.args.judge_estimate and bool(self.args.judge or os.environ.get(URL_VARIABLE))

    def _with_judge(self, benchmark: Benchmark, answers: Answers, replies: Path) -> Options:
        """The options, with the judge in them where there is one to be asked; says what that will cost.

        Raises:
            ValueError: a judge is named and no endpoint, or the other way round.
        """
        options = self.options(benchmark)
        if not isinstance(benchmark, Llavabench) or not (self.args.judge or os.environ.get(URL_VARIABLE)):
            return options
        judge = Endpoint.from_environment(replies, model=self.args.judge)
        if judge is None:
            raise ValueError(f"--judge {self.args.judge} names no endpoint: set {URL_VARIABLE} to its address, up to /v1")
        if not missing_files(benchmark, self.args.data, options, purpose="score"):
            prompts = benchmark.judge_prompts(self.args.data, answers)
            log.info("%s", judge.estimate(prompt for _, prompt in prompts.values()).describe())
        return replace(options, ask=None if self.args.judge_estimate else judge, judge_name=judge.model)


ALL = "all"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(prog="python -m unicode.run.benchmark", description="Ask a model the questions of a benchmark.")
    parser.add_argument("name", choices=(*BENCHMARKS, ALL), metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all: those that are there")
    parser.add_argument("--model", default="", help="folder of a trained model; not needed with --answers")
    parser.add_argument("--base", default="", help="the language model below it, if it is no longer where the training had it")
    parser.add_argument("--image-tokenizer", default="", help="the same for the image tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmarks, LLaVA's playground/data/eval (EVALUATION.md)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results: NAME/scores.json and more, table.md over all")
    parser.add_argument("--answers", type=Path, help="score this file of answers (with all: a folder of NAME.jsonl), ask nothing")
    parser.add_argument("--store", action="append", default=[], help="store of ids in which images are looked up first; may be repeated")
    parser.add_argument("--split", choices=("", "val"), default="", help="vqav2, vizwiz: val, which has answers (default: the test split)")
    parser.add_argument("--circular", action="store_true", help="mmbench: ask every question once for each rotation of its options")
    parser.add_argument("--blank-images", choices=("grey", "black", "none"), default="", help="blind baseline: what stands for every image")
    parser.add_argument("--limit", type=int, default=0, help="only so many questions, evenly spread (default: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="questions per batch (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=0, help="longest answer (default: LLaVA's, 128 or 1024 by benchmark)")
    parser.add_argument("--skip-missing-images", action="store_true", help="leave questions unanswered whose pictures are not there")
    judge_help = "llavabench: the judge behind OPENAI_BASE_URL, with OPENAI_API_KEY (default: JUDGE_MODEL of the environment)"
    parser.add_argument("--judge", default="", metavar="MODEL", help=judge_help)
    parser.add_argument("--judge-estimate", action="store_true", help="say what the judge would cost, do not ask it")
    parser.add_argument("--judge-workers", type=int, default=4, help="questions put to the judge at a time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="check files, questions, pictures and model; ask nothing")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """ValueError for arguments that do not go together, FileNotFoundError for folders that are not there."""
    if not args.model and args.answers is None:
        raise ValueError("nothing to score: give --model DIR to ask it, or --answers FILE with answers that are there")
    if args.model and args.answers is not None:
        raise ValueError("--answers scores answers that are there, without a model: leave out --model or --answers")
    if min(args.batch_size, args.judge_workers) < 1 or min(args.limit, args.max_new_tokens) < 0:
        numbers = f"--batch-size {args.batch_size}, --judge-workers {args.judge_workers}, --limit {args.limit}"
        raise ValueError(f"{numbers}, --max-new-tokens {args.max_new_tokens}: the first two are at least 1, the others not negative")
    if not args.data.is_dir():
        raise FileNotFoundError(f"no folder {args.data}; --data is the folder of the benchmarks, EVALUATION.md says what lies in it")
    if args.answers is not None and not args.answers.exists():
        raise FileNotFoundError(f"no file of answers {args.answers}; --answers is a file, or with all a folder of NAME.jsonl")


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args(argv)
    check_arguments(args)
    if args.model and not args.dry_run:
        from unicode.common.distributed import open_job

        open_job(args.device)
    runner = Runner(args)
    failed = runner.run_all() if args.name == ALL else []
    if args.name != ALL:
        runner.run(BENCHMARKS[args.name])
    if is_main() and not args.dry_run:
        print(write_table(args.out))
    if failed:
        raise ValueError(f"{len(failed)} of the benchmarks failed: {'; '.join(failed)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
