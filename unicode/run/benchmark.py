"""LLaVA's twelve benchmarks: ask a model, score the answers or write the submission file; resumable."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from unicode.common.distributed import is_main, on_main, open_job
from unicode.common.files import atomic_write, lock_folder, read_json, write_json
from unicode.common.logging import printable
from unicode.ids.store import Store
from unicode.images.listing import spread
from unicode.metrics.benchmarks import BENCHMARKS
from unicode.metrics.benchmarks.base import Answers, Benchmark, Options, Question, read_answers
from unicode.metrics.benchmarks.graded import URL_VARIABLE, Grader, Llavabench
from unicode.run.command import add_model_options, command, log, new_parser, one_line, open_named_engine

if TYPE_CHECKING:
    from unicode.images.lookup import ImageLookup

ALL = "all"
SCORES, TABLE = "scores.json", "table.md"
RECORDED = ("round_id", "options", "option_char")  # fields of a question that LLaVA repeats in its answer
WITH_SPLITS = ("vqav2", "vizwiz")
QUOTED = (
    "Models marked (quoted) stand as others quote them; look the numbers up in their papers before you rely on them. A published number is "
    "comparable when all questions are answered and the protocol in scores.json is the same."
)


class PlacedStore(Store):
    """A store whose keys may begin higher up than the names of a benchmark's images do.

    `path`: the store. `prefixes`: what may stand before a name, "" first.
    """

    def __init__(self, path: str | Path, prefixes: Sequence[str]) -> None:
        super().__init__(path)
        self.prefixes = tuple(prefixes)

    def get(self, key: str, *, view: int = 0) -> Any:
        """Return the ids of `Store.get` under the first prefix that has some."""
        found = (super(PlacedStore, self).get(prefix + key, view=view) for prefix in self.prefixes)
        return next((ids for ids in found if ids is not None), None)


class Runner:
    """Runs benchmarks with the same arguments; every rank of a job makes one. `args`: those of `unicode.run.benchmark`, checked."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    @cached_property
    def opened(self) -> tuple[Any, Any]:
        """The model that is asked and the engine of --engine, opened when first asked for."""
        return open_named_engine(self.args)

    @property
    def model(self) -> Any:
        return self.opened[0]

    def run_all(self) -> list[str]:
        """Run every benchmark whose files are there, and return what went wrong with those that failed.

        Raises FileNotFoundError: none is there.
        """
        failed, absent = [], []
        for benchmark in BENCHMARKS.values():
            try:
                lacking = self._lacks(benchmark)
                if lacking:
                    absent.append(benchmark.name)
                    log.info("%s left out: %s", benchmark.title, lacking)
                else:
                    self.run(benchmark)
            except (ValueError, OSError) as error:
                log.warning("%s failed: %s", benchmark.title, one_line(error))
                failed.append(f"{benchmark.name}: {one_line(error)}")
        if len(absent) == len(BENCHMARKS):
            where = self.args.answers or self.args.data
            raise FileNotFoundError(f"no benchmark in {where}; EVALUATION.md lists the downloads and their places")
        return failed

    def run(self, benchmark: Benchmark) -> None:
        """Ask, score and write one benchmark; called by every rank, the main one scores.

        Raises FileNotFoundError: a file of the benchmark, or images, are not there; the message names the download. Raises ValueError: a
        damaged file, answers of another model or question file, or another process fills the same folder.
        """
        folder = self.args.out / self._run_name(benchmark, blank=self.args.blank_images)
        scoring = self.args.answers is not None
        questions = [] if scoring else self._read_questions(benchmark)
        path = self._find_answers(benchmark) if scoring else folder / "answers.jsonl"
        if self.args.dry_run:
            self._check_reading(questions)
            log.info("%s: what is needed is there", benchmark.title)
            return
        with ExitStack() as stack:
            on_main(lambda: stack.enter_context(lock_folder(folder, "answering")))
            answered = {} if scoring else self._ask(benchmark, questions, path)
            on_main(lambda: self._score(benchmark, path, folder, answered))

    def _options(self, benchmark: Benchmark) -> Options:
        split = self.args.split if benchmark.name in WITH_SPLITS else ""
        circular = self.args.circular and benchmark.name.startswith("mmbench")
        return Options(split=split, circular=circular, grader_workers=self.args.grader_workers)

    def _run_name(self, benchmark: Benchmark, *, blank: str = "") -> str:
        options = self._options(benchmark)
        parts = filter(None, (benchmark.name, options.split, options.circular and "circular"))
        return (f"blank_{blank}/" if blank else "") + "-".join(map(str, parts))

    def _find_answers(self, benchmark: Benchmark) -> Path:
        given: Path = self.args.answers
        if not given.is_dir():
            return given
        places = [given / f"{benchmark.name}.jsonl", given / self._run_name(benchmark) / "answers.jsonl"]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"neither {places[0]} nor {places[1]} is there")
        return found

    def _lacks(self, benchmark: Benchmark) -> str:
        if self.args.answers is None:
            return next(iter(benchmark.missing_files(self.args.data, self._options(benchmark), purpose="ask")), "")
        try:
            self._find_answers(benchmark)
        except FileNotFoundError as error:
            return str(error)
        return ""

    def _read_questions(self, benchmark: Benchmark) -> list[Question]:
        """Read all questions. FileNotFoundError when images are in no store and not in the image folder; it counts and names them."""
        options = self._options(benchmark)
        questions = benchmark.read_questions(self.args.data, options)
        if self.args.blank_images or self.args.skip_missing_images:
            return questions
        stores, images = self._stores(benchmark), self._images(benchmark)
        chosen = spread(questions, self.args.limit or len(questions))
        names = dict.fromkeys(question.image for question in chosen if question.image and not question.image_data)
        missing = [name for name in names if name not in images and all(store.get(name) is None for store in stores)]
        if missing:
            folder = benchmark.image_folder(options)
            where = f"{self.args.data / folder}" + (f" or the stores {', '.join(self.args.store)}" if stores else "")
            files = (file for file in benchmark.needed_files(options) if folder in file.paths)
            remedy = next((file.source for file in files), "download the images")
            raise FileNotFoundError(
                f"{benchmark.name}: {len(missing)} of {len(names)} images are not in {where}, the first is '{missing[0]}': {remedy}; "
                "with --skip-missing-images the questions about them stay unanswered"
            )
        return questions

    def _stores(self, benchmark: Benchmark) -> list[PlacedStore]:
        """The stores of ids, whose keys start at the image folder, the data folder, or the folder above that."""
        folder = benchmark.image_folder(self._options(benchmark))
        return [PlacedStore(path, ("", f"{folder}/", f"{self.args.data.name}/{folder}/")) for path in self.args.store]

    def _images(self, benchmark: Benchmark) -> ImageLookup:
        from unicode.images.lookup import ImageLookup

        root = self.args.data / benchmark.image_folder(self._options(benchmark))
        return ImageLookup([root] if root.is_dir() else [])

    def _check_reading(self, questions: Sequence[Question]) -> None:
        if any(question.image for question in questions) and not self.args.store and self.args.blank_images != "none":
            self.model.picture(Image.new("RGB", (8, 8)))

    def _ask(self, benchmark: Benchmark, questions: Sequence[Question], path: Path) -> dict[str, Any]:
        """Have the questions answered that have no answer in `path` yet; every rank answers its share.

        Returns what is known of the answers for `scores.json`, the main rank's copy counts: what they depend on, seconds, num_asked,
        num_cut (answers that reached the limit of tokens), errors (question_id -> why there is no answer). Raises ValueError: `path` holds
        answers of another model, other settings or other questions. Raises OSError: the disk is full; what is written stays.
        """
        from unicode.generate.answers import AnswerConfig, answer_questions
        from unicode.generate.jobs import ERROR, ResultFile, answer_line, key_of
        from unicode.generate.questions import AskedQuestion, ImageReader
        from unicode.serve.engines import answer_with

        self._check_reading(questions)
        places = set(spread(range(len(questions)), self.args.limit or len(questions)))
        log.info("%s: %d questions, the answers go to %s", benchmark.title, len(places), path)
        config = AnswerConfig(batch_size=self.args.batch_size, max_new_tokens=self.args.max_new_tokens or benchmark.max_new_tokens)
        tokenizer = (self.model.card.image_tokenizer or {}).get("fingerprint", "")
        if not tokenizer and self.model.tokenizer_path:
            tokenizer = self.model.images.fingerprint
        made_by = {
            "model_fingerprint": self.model.fingerprint,
            "tokenizer_fingerprint": tokenizer,
            "template": self.model.card.template,
            "max_new_tokens": config.max_new_tokens,
            "blank_images": self.args.blank_images,
        }
        engine = self.opened[1]
        made_by |= {"engine": " ".join(engine.kinds)} if engine is not None else {}
        ask = partial(answer_with, engine, config) if engine is not None else None
        stores = self._stores(benchmark)
        keys = [key_of(_head(question)) for question in questions]
        with ResultFile(path, keys, made_by=made_by) as file:
            file.missing = [place for place in file.missing if place in places]  # answers beyond a limit stay where they are
            num_asked, share = len(file.missing), [questions[place] for place in file.share()]
            asked = [AskedQuestion(question.text, tuple(_images(question, stores)), id=question.key) for question in share]
            with ImageReader(self.model, stores=stores, pictures=self._images(benchmark), blank=self.args.blank_images) as images:
                start = time.perf_counter()
                for number, answer in answer_questions(self.model, asked, config=config, images=images, ask=ask, progress=True):
                    question, before, start = share[number], start, time.perf_counter()
                    metadata = {"num_tokens": answer.num_tokens, "finished": answer.finished, "seconds": round(start - before, 6)}
                    name = Path(self.args.model).name
                    file.put(answer_line(file, _head(question), answer.text, model_id=name, metadata=metadata, error=answer.error))
            summary = file.finish()
            wanted = {keys[place] for place in places}
            records = [record["metadata"] for key, record in file.records().items() if key in wanted]
        return {
            **made_by,
            "seconds": round(sum(metadata.get("seconds", 0.0) for metadata in records), 3),
            "num_asked": num_asked,
            "num_cut": sum(not metadata.get("finished", True) and ERROR not in metadata for metadata in records),
            "errors": {key[0]: why for key, why in summary.errors.items() if key in wanted},
        }

    def _score(self, benchmark: Benchmark, path: Path, folder: Path, answered: dict[str, Any]) -> None:
        """Score the answers of a file and write the results; OSError where the grader did not answer to the end."""
        records, notes = read_answers(path, benchmark.key_of)
        answers = {key: record for key, record in records.items() if not (record.get("metadata") or {}).get("error")}
        options = self._options(benchmark)
        grader = self._open_grader(benchmark, answers, folder / "judge.jsonl")
        if grader is not None:
            options = replace(options, grader_name=grader.model, grade=None if self.args.grader_estimate else grader)
        score = benchmark.score(self.args.data, answers, options)
        trial = f"only {self.args.limit} questions were asked (--limit): a try, no score to quote"
        score.notes += [*notes, trial] if self.args.limit else notes
        settings = path.with_name(f"{path.name}.run.json")
        answered = answered or (read_json(settings) if settings.is_file() else {})
        models = sorted({str(record.get("model_id", "")) for record in answers.values()})
        about = {"benchmark": score.name, "title": benchmark.title}
        found = {re.sub("^num_", "n_", name): value for name, value in score.to_dict().items() if name != "name"}
        report = {**about, **found, "model": ", ".join(models), "answers": str(path), **answered}
        score.write_files(folder)
        write_json(folder / SCORES, report)
        for line in describe(report, folder):
            log.info("%s", line)
        if options.grade is not None and score.values.get("judged", 0) < score.values.get("requests", 0):
            raise OSError(f"{benchmark.title} is not graded to the end: {score.notes[-1]}")

    def _open_grader(self, benchmark: Benchmark, answers: Answers, replies: Path) -> Grader | None:
        """The grader where the benchmark needs one and the user names one; ValueError where a model is named and no endpoint."""
        if not isinstance(benchmark, Llavabench) or not (self.args.grader or os.environ.get(URL_VARIABLE)):
            return None
        grader = Grader.from_environment(replies, model=self.args.grader)
        if grader is None:
            raise ValueError(f"--grader {self.args.grader} names no endpoint: set {URL_VARIABLE} to its address, up to /v1")
        if not benchmark.missing_files(self.args.data, self._options(benchmark), purpose="score"):
            prompts = benchmark.grading_prompts(self.args.data, answers)
            log.info("%s", grader.describe_cost(prompt for _, prompt in prompts.values()))
        return grader


def _images(question: Question, stores: Sequence[Store]) -> Iterator[Any]:
    """The image of a question as the model's reader takes it: the encoded one of the question file, unless a store has its ids."""
    if question.image_data and all(store.get(question.image) is None for store in stores):
        yield question.image_data
    elif question.image:
        yield question.image


def _head(question: Question) -> dict[str, Any]:
    recorded = {name: question.fields[name] for name in RECORDED if name in question.fields}
    return {"question_id": question.id, "prompt": question.prompt, **recorded}


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
    rows = [(name, path) for name in BENCHMARKS for path in sorted([*out.glob(f"{name}/{SCORES}"), *out.glob(f"{name}-*/{SCORES}")])]
    if not rows:
        return ""
    models = list(dict.fromkeys(model for name, _ in rows for model in BENCHMARKS[name].published))
    head = ["benchmark", "ours", "blank images", "unit", "answered", "not understood", "seconds", *models]
    lines = [head, ["---", *["---:"] * 2, "---", *["---:"] * (len(head) - 4)]]
    for name, path in rows:
        run, report, published = path.parent.name, read_json(path), BENCHMARKS[name].published
        blind = next((read_json(other)["headline"] for other in sorted(out.glob(f"blank_*/{run}/{SCORES}"))), None)
        special = "" if run == name else f" ({run.partition('-')[2]})"
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


def check_arguments(args: argparse.Namespace) -> None:
    """ValueError for arguments that do not go together, FileNotFoundError for folders that are not there."""
    if not args.model and args.answers is None:
        raise ValueError("nothing to score: give --model DIR to ask it, or --answers FILE with answers that are there")
    if args.model and args.answers is not None:
        raise ValueError("--answers scores answers that are there, without a model: leave out --model or --answers")
    if min(args.batch_size, args.grader_workers) < 1 or min(args.limit, args.max_new_tokens) < 0:
        numbers = f"--batch-size {args.batch_size}, --grader-workers {args.grader_workers}, --limit {args.limit}"
        raise ValueError(f"{numbers}, --max-new-tokens {args.max_new_tokens}: the first two are at least 1, the others not negative")
    if not args.data.is_dir():
        raise FileNotFoundError(f"no folder {args.data}; --data is the folder of the benchmarks, see EVALUATION.md for its content")
    if args.answers is not None and not args.answers.exists():
        raise FileNotFoundError(f"no file of answers {args.answers}; --answers is a file, or with all a folder of NAME.jsonl")


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("benchmark", __doc__, dry_run="check files, questions, images and model; ask nothing")
    parser.add_argument("name", choices=(*BENCHMARKS, ALL), metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all: those that are there")
    add_model_options(parser, "folder of a trained model; not needed with --answers", required=False, merged=True, engine=True)
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
    parser.add_argument("--skip-missing-images", action="store_true", help="leave questions unanswered whose images are not there")
    grader_help = "llavabench: the grader behind OPENAI_BASE_URL, with OPENAI_API_KEY (default: JUDGE_MODEL of the environment)"
    parser.add_argument("--grader", "--judge", default="", metavar="MODEL", help=grader_help)
    parser.add_argument("--grader-estimate", "--judge-estimate", action="store_true", help="print what the grader would cost and stop")
    workers_help = "requests to the grader at a time (default: %(default)s)"
    parser.add_argument("--grader-workers", "--judge-workers", type=int, default=4, help=workers_help)
    args = parser.parse_args(argv)
    check_arguments(args)
    if args.model and not args.dry_run:
        open_job(args.device)
    runner = Runner(args)
    failed = runner.run_all() if args.name == ALL else []
    if args.name != ALL:
        runner.run(BENCHMARKS[args.name])
    if is_main() and not args.dry_run:
        print(printable(write_table(args.out)))
    if failed:
        raise ValueError(f"{len(failed)} of the benchmarks failed: {'; '.join(failed)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
