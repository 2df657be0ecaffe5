"""Our own engine: requests of many threads, gathered into batches for the model on this machine."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Condition, Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unicode.generate.engine import CachedDecoder, decode_answers
from unicode.generate.images import DrawRequest, ImageSampler
from unicode.generate.sampling import Sampling
from unicode.llm.load import LanguageModel, Prompt
from unicode.serve.engines import Emit, Tell, WriteOptions, Written, room_for


@dataclass(eq=False)
class _Job:
    key: Any  # Jobs of one key can be worked on together
    content: Any
    seed: int
    emit: Emit | None = None
    tell: Tell | None = None
    result: Future[Any] = field(default_factory=Future)


class LocalEngine:
    """The model in this process: guidance, images by cells, and all else that `unicode.generate` has.

    A thread works on what waits: the first request, and with it up to `batch_size` others of the same settings. Errors as `Engine`.
    """

    def __init__(self, model: LanguageModel, *, batch_size: int = 32) -> None:
        self.model, self.batch_size = model, batch_size
        self.kinds, self.context, self.width = ["local"], model.context, 1
        self._decoder = CachedDecoder(model.causal)
        self._waiting: deque[_Job] = deque()
        self._changed = Condition()
        self._sampler = lru_cache(8)(lambda sampling: ImageSampler(model, sampling=sampling, decoder=self._decoder))
        Thread(target=self._work, daemon=True).start()

    def write(self, prompt: Prompt, options: WriteOptions, emit: Emit | None = None) -> Written:
        """See `Engine`; `emit` is not called between the ids of a picture."""
        limit = room_for(prompt, options.max_tokens, self.context)
        return self._put(_Job((self._write, replace(options, max_tokens=limit, seed=0)), prompt, options.seed, emit))  # type: ignore[no-any-return]

    def draw(self, request: DrawRequest, sampling: Sampling, tell: Tell | None = None) -> np.ndarray:
        """See `Engine`; where `tell` returns False for 0 ids, the drawing does not begin: TimeoutError."""
        drawing = self._put(_Job((self._draw, (sampling, len(request.given))), request, request.seed, tell=tell))
        if drawing.error:
            raise ValueError(drawing.error)
        return drawing.ids  # type: ignore[no-any-return]

    def _put(self, job: _Job) -> Any:
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.result.result()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                key = self._waiting[0].key
                batch = [job for job in self._waiting if job.key == key][: self.batch_size]
                self._waiting = deque(job for job in self._waiting if job not in batch)
            self._finish(batch, *key)

    def _finish(self, batch: Sequence[_Job], work: Callable[[Sequence[_Job], Any], Sequence[Any]], options: Any) -> None:
        try:
            if going := [job for job in batch if (job.emit is None or job.emit([])) and (job.tell is None or job.tell(0))]:
                for job, result in zip(going, work(going, options), strict=True):
                    job.result.set_result(result)
            for job in {*batch} - {*going}:
                job.result.set_exception(TimeoutError("nobody waits for this request any more"))
        except Exception as error:  # it belongs to those who wait; the thread goes on
            for job in batch:
                if len(batch) == 1:
                    job.result.set_exception(error)
                else:  # one alone may fit into the memory
                    self._finish([job], work, options)

    @torch.no_grad()
    def _write(self, jobs: Sequence[_Job], options: WriteOptions) -> list[Written]:
        model, room = self.model, options.max_tokens
        features = self._decoder.start(**model.inputs([job.content for job in jobs]), max_new=room)
        head = self._sampler(options.pictures).head if options.max_pictures else None
        written: list[list[int]] = [[] for _ in jobs]
        going = [True] * len(jobs)

        def has_stopped(tokens: Tensor) -> Tensor:
            for row, (job, token) in enumerate(zip(jobs, tokens[:, -1].tolist(), strict=True)):
                going[row] = going[row] and token not in model.end_ids
                if going[row] and job.emit is not None:
                    written[row].append(token)
                    going[row] = job.emit(written[row])
            return ~torch.tensor(going, device=tokens.device)

        decoded = decode_answers(
            self._decoder, features, limits=[room] * len(jobs), end_ids=model.end_ids, seeds=[job.seed for job in jobs],
            words=options.words, images=options.pictures, head=head, max_images=options.max_pictures, has_stopped=has_stopped,
        )  # fmt: skip
        return [Written(ids, ended) for ids, ended in zip(decoded.ids, decoded.ended, strict=True)]

    def _draw(self, jobs: Sequence[_Job], about: tuple[Sampling, int]) -> Sequence[Any]:
        told = [job.tell for job in jobs if job.tell is not None]
        return self._sampler(about[0]).draw([job.content for job in jobs], lambda count: [tell(count) for tell in told])
