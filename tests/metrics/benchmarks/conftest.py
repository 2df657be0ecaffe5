"""A folder of data in which a test puts what it needs, and short ways to make answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unicode.metrics.benchmarks.base import Benchmark, Options, Score


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write a file below the data folder: a string as it is, a list as JSON lines if the name ends so, anything else as JSON."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str):
            lines = isinstance(content, list) and name.endswith(".jsonl")
            content = "".join(json.dumps(record) + "\n" for record in content) if lines else json.dumps(content)
        path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.fixture
def score(tmp_path: Path) -> Callable[..., Score]:
    """Score records {question_id, text, prompt} against the data folder."""

    def run(benchmark: Benchmark, records: list[dict[str, Any]], **options: Any) -> Score:
        answers = {benchmark.key_of(record): {"prompt": "", **record} for record in records}
        return benchmark.score(tmp_path, answers, Options(**options))

    return run
