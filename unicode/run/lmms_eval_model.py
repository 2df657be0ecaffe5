"""Our models inside lmms-eval, for the benchmarks that it knows: `python -m lmms_eval --model unicode --model_args pretrained=DIR ...`.

lmms-eval (the extra `[lmms-eval]`) finds `manifest` through the entry point `lmms_eval.models` of this package, and through it the
class. Without lmms-eval this module can still be imported; making a model then names the package to install.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

try:
    from lmms_eval.api.model import lmms as Base
except ImportError:  # an optional extra
    Base = object

NAME = "unicode"
INSTALL = "lmms-eval is not installed; install it with python -m pip install -e '.[lmms-eval]'"


def manifest() -> Any:
    """What lmms-eval's registry of models is told about us: the name of the model and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.{UnicodeModel.__name__}")


class UnicodeModel(Base):  # type: ignore[misc, valid-type]
    """One of our models as lmms-eval asks it, with the options of `unicode.run.answer`; `pretrained` is the folder of the model.

    Answers are batched here, in whatever order lmms-eval asks; `max_new_tokens` holds where a task sets no limit. lmms-eval passes its
    options `--batch_size` and `--device` as arguments. Raises ImportError: lmms-eval is not installed. Raises ValueError: an unknown
    argument, or a model that cannot be opened.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        base: str = "",
        image_tokenizer: str = "",
        batch_size: int | str = 16,
        max_new_tokens: int | str = 128,
        device: str = "auto",
        dtype: str = "auto",
        max_batch_size: Any = None,  # lmms-eval always passes it
        **unknown: Any,
    ) -> None:
        if Base is object:
            raise ImportError(INSTALL)
        super().__init__()
        if unknown or not pretrained:
            known = "pretrained, base, image_tokenizer, max_new_tokens, dtype"
            raise ValueError(f"--model_args need pretrained=DIR and know {known}; found {', '.join(unknown) or 'no pretrained'}")
        if not str(batch_size).isdigit():
            raise ValueError(f"--batch_size {batch_size} is not a number, as --model unicode needs it; give one, such as 16")
        from accelerate import Accelerator

        from unicode.llm.load import open_model

        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self._device = self.accelerator.device if device in ("auto", "", "cuda") else torch.device(device)
        self.pretrained = pretrained
        self.batch_size = int(batch_size)
        self.max_new_tokens = int(max_new_tokens)
        self.model = open_model(pretrained, base=base, image_tokenizer=image_tokenizer, device=str(self._device), dtype=dtype)

    @property
    def device(self) -> torch.device:
        return self._device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests of `args` (question, settings, document -> images, number of the document, task, split), in their order.

        Requests of like settings are answered together; a text of the setting "until" ends an answer where it occurs in it.
        A question whose image cannot be read gets an empty answer, as lmms-eval has no word for a missing one.
        """
        from unicode.generate.answers import AnswerConfig, answer_questions

        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(_settings(request.args[1], self.max_new_tokens), []).append(place)
        answers = [""] * len(requests)
        for (max_new_tokens, temperature, top_p, until), places in groups.items():
            questions = _Questions([requests[place] for place in places], self.task_dict)
            config = AnswerConfig(self.batch_size, max_new_tokens, temperature, top_p)
            for index, answer in answer_questions(self.model, questions, config=config, progress=True):
                answers[places[index]] = cut(answer.text, until)
        for request, text in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args[:2], text)
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: conversations of several rounds."""
        raise ValueError("tasks of several rounds are not supported by --model unicode; leave them out of --tasks")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: tasks that compare the probabilities of given answers."""
        raise ValueError("tasks of the type loglikelihood are not supported by --model unicode; choose tasks that generate")


class _Questions(Sequence[Any]):
    """The questions of some requests, made when asked for: a task's pictures are not all held at once."""

    def __init__(self, requests: Sequence[Any], task_dict: Mapping[str, Any]) -> None:
        self._requests, self._tasks = requests, task_dict

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, index: Any) -> Any:
        from unicode.generate.questions import AskedQuestion

        text, _, to_images, number, task, split = self._requests[index].args
        images = to_images(self._tasks[task][split][number]) or []
        return AskedQuestion(text.replace("<image>", "").strip(), tuple(images), id=f"{task}/{number}")


def _settings(given: Mapping[str, Any], max_new_tokens: int) -> tuple[Any, ...]:
    """What decides which requests can be answered together: tokens, temperature, top-p, texts that end an answer."""
    until = given.get("until") or ()
    sampled = bool(given.get("do_sample", True)) and (given.get("temperature") or 0) > 0
    return (
        int(given.get("max_new_tokens") or max_new_tokens),
        float(given["temperature"]) if sampled else 0.0,
        float(given.get("top_p") or 1.0) if sampled else 1.0,
        (until,) if isinstance(until, str) else tuple(until),
    )


def cut(text: str, until: Iterable[str]) -> str:
    """An answer up to the first of the texts that end it."""
    for stop in filter(None, until):
        text = text.split(stop, 1)[0]
    return text.strip()
