"""One benchmark after another: ask where answers are missing, score, write; what each step needs is opened when it is needed."""

import argparse
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unicode.common.log import get_logger
from unicode.common.ranks import barrier, is_main
from unicode.common.records import read_json
from unicode.metrics.benchmarks.answers import read_answers
from unicode.metrics.benchmarks.endpoint import URL_VARIABLE, Endpoint
from unicode.metrics.benchmarks.entry import Answers, Benchmark, Options, missing_files
from unicode.metrics.benchmarks.llavabench import Llavabench
from unicode.metrics.benchmarks.table import BENCHMARKS
from unicode.run.benchmark_report import describe, run_name, write_report
from unicode.run.command import one_line

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
        from unicode.llm.load import open_model
        from unicode.run.job import open_job

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
        from unicode.run.benchmark_answers import AskSettings, ask, check_images, check_reading, read_questions

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
