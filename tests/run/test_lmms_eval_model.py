"""Our models inside lmms-eval: with a stand-in for its base class, whose form lmms-eval 0.7 has."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import types
from dataclasses import dataclass
from importlib import import_module, reload
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
MODULE = "unicode.run.lmms_eval_model"


class Base:
    """What lmms-eval's class `lmms` does for a model."""

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module as it is where lmms-eval is installed."""
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Base  # type: ignore[attr-defined]
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = Manifest  # type: ignore[attr-defined]
    yield reload(import_module(MODULE))
    monkeypatch.undo()
    reload(import_module(MODULE))


@dataclass
class Request:
    """As lmms-eval's Instance."""

    args: tuple[Any, ...]


def request(number: int, text: str, **settings: Any) -> Request:
    return Request((text, settings, lambda document: document["images"], number, "task", "test"))


DOCUMENTS = [{"images": [Image.new("RGB", (20, 20), (60 * n, 0, 0))] if n < 3 else []} for n in range(4)]


class FakeModel:
    """Answers with what it was asked, longest questions first."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def answer(self, _: Any, questions: Any, *, config: Any, progress: bool) -> Any:
        listed = [questions[place] for place in range(len(questions))]
        self.batches.append((config.max_new_tokens, len(listed)))
        for place in sorted(range(len(listed)), key=lambda place: -len(listed[place].text)):
            text = f"{listed[place].text}|{len(listed[place].images)}|{config.temperature}\n\nmore"
            yield place, SimpleNamespace(text=text)


@pytest.fixture
def model(module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = FakeModel()
    monkeypatch.setattr("unicode.llm.load.open_model", lambda path, **_: path)
    monkeypatch.setattr("unicode.generate.answers.answer_questions", fake.answer)
    made = module.UnicodeModel(pretrained="outputs/unicode", batch_size="3", device="cpu", max_batch_size=None)
    made.task_dict = {"task": {"test": DOCUMENTS}}
    made.fake = fake
    return made


def test_manifest_names_the_class(module: Any) -> None:
    found = module.manifest()
    assert found.model_id == "unicode"
    path, _, name = str(found.simple_class_path).rpartition(".")
    assert issubclass(getattr(import_module(path), name), Base)
    assert getattr(import_module(path), name).is_simple


def test_entry_point() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"unicode": f"{MODULE}:manifest"}
    assert any(requirement.startswith("lmms-eval") for requirement in project["optional-dependencies"]["lmms-eval"])


def test_answers_in_the_order_of_the_requests(model: Any) -> None:
    requests = [
        request(0, "<image>\nshort", max_new_tokens=8, until=["\n\n"]),
        request(1, "a longer question", max_new_tokens=16, until="\n\n"),
        request(2, "the longest question of all", max_new_tokens=8, until=["\n\n"]),
        request(3, "words only", max_new_tokens=8, temperature=0.5, do_sample=True, top_p=0.9, until=["\n\n"]),
    ]
    assert model.generate_until(requests) == [
        "short|1|0.0", "a longer question|1|0.0", "the longest question of all|1|0.0", "words only|0|0.5",
    ]  # fmt: skip
    assert sorted(model.fake.batches) == [(8, 1), (8, 2), (16, 1)]


def test_defaults_and_repeated_requests(model: Any) -> None:
    """Of several ranks, those with fewer questions are given one again."""
    one = request(0, "what?")
    assert model.generate_until([one, one]) == ["what?|1|0.0\n\nmore"] * 2
    assert model.fake.batches == [(128, 2)]
    assert model.generate_until([]) == []


def test_what_is_not_supported(model: Any) -> None:
    with pytest.raises(ValueError, match="loglikelihood"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="several rounds"):
        model.generate_until_multi_round([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pretrained=DIR"),
        ({"pretrained": "d", "conv": "x"}, "conv"),
        ({"pretrained": "d", "batch_size": "auto"}, "give one, such as 16"),
    ],
)
def test_arguments(module: Any, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.UnicodeModel(**arguments)


def test_without_lmms_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    found = reload(import_module(MODULE))
    with pytest.raises(ImportError, match="lmms-eval is not installed"):
        found.UnicodeModel(pretrained="d")


def test_a_local_task_inside_lmms_eval_scores_as_our_own_runner(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The command of EVALUATION.md; half of the expected answers are ours, so that the score is neither 0 nor 1."""
    pytest.importorskip("lmms_eval")
    from unicode.run.answer import main

    run, tasks = request.getfixturevalue("tuned").run, tmp_path / "tasks"
    shutil.copytree(ROOT / "docs" / "lmms_eval", tasks)
    task = (tasks / "questions.yaml").read_text().replace("images: shapes", "images: photos")
    (tasks / "questions.yaml").write_text(task)
    (tmp_path / "photos").mkdir()
    path = tmp_path / "outputs" / "shapes" / "questions_val.jsonl"
    path.parent.mkdir(parents=True)
    asked = [{"question_id": n, "image": f"{n % 4}.png", "text": f"{'how many ' * (n % 3)}{n} ?"} for n in range(20)]
    for number in range(4):
        Image.new("RGB", (20, 20), (60 * number, 255 - 60 * number, 0)).save(tmp_path / "photos" / f"{number}.png")
    path.write_text("\n".join(map(json.dumps, asked)))
    ours = ["--model", str(run), "--questions", str(path), "--images", str(tmp_path / "photos"), "--max-new-tokens", "16"]
    assert main([*ours, "--answers", str(tmp_path / "ours.jsonl"), "--device", "cpu"]) == 0
    texts = [json.loads(line)["text"] for line in (tmp_path / "ours.jsonl").read_text().splitlines()]
    lines = [line | {"answer": text if n % 2 else "none"} for n, (line, text) in enumerate(zip(asked, texts, strict=True))]
    path.write_text("\n".join(map(json.dumps, lines)))
    command = f"-m lmms_eval --model unicode --model_args pretrained={run} --batch_size 4 --device cpu --tasks questions"
    options = ["--include_path", str(tasks), "--output_path", str(tmp_path / "scores"), "--log_samples"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *command.split(), *options], cwd=tmp_path, env=environment, check=True)
    (scores,) = (tmp_path / "scores").rglob("*_results.json")
    (samples,) = (tmp_path / "scores").rglob("*_samples_questions.jsonl")
    logged = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    assert [line["filtered_resps"] for line in logged] == texts
    assert json.loads(scores.read_text())["results"]["questions"]["exact_match,none"] == 0.5
