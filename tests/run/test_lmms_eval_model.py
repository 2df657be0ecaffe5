"""Our models inside lmms-eval: with a stand-in for its base class, whose form lmms-eval 0.7 has."""

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


@pytest.mark.parametrize(("arguments", "message"), [({}, "pretrained=DIR"), ({"pretrained": "d", "conv": "x"}, "conv")])
def test_arguments(module: Any, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.UnicodeModel(**arguments)


def test_without_lmms_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    found = reload(import_module(MODULE))
    with pytest.raises(ImportError, match="lmms-eval is not installed"):
        found.UnicodeModel(pretrained="d")
