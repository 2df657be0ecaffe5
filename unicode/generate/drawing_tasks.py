"""The three things to draw: pictures of prompts, completions of pictures, pictures out of their compressed form; and the loop over them.

A task knows the ids of its items, what to ask the model for each, and what to note of each result. The loop draws batch by batch and
keeps pictures and lines; every rank of a job takes part.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unicode.annotations.prompts import DECOMPRESSION, TEMPLATES, draw, fill_template
from unicode.common.log import get_logger
from unicode.common.ranks import is_main
from unicode.generate.drawing_file import DrawingFile, Place, Record
from unicode.generate.image import CAPTION_TEMPLATE, FREE_QUESTION, NOTHING, Artist, Drawing, DrawRequest, caption_request, draw_batch
from unicode.generate.prompts import DrawPrompt
from unicode.ids.text import write_run
from unicode.images.datasets import ImageDataset, ShapesImages, Skipped
from unicode.images.transforms import to_float
from unicode.llm.language_model import LanguageModel

log = get_logger(__name__)
Compare = Callable[[Tensor, Tensor], Tensor]  # two (B, 3, H, W) uint8 -> (B,), as the PSNR


class PromptTask:
    """Pictures of prompts.

    Attributes:
        ids: of the prompts, in order.
    """

    def __init__(self, prompts: Sequence[DrawPrompt], *, seed: int, template: str = CAPTION_TEMPLATE) -> None:
        self.ids = [prompt.id for prompt in prompts]
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._seed, self._template = seed, template

    def requests(self, places: Sequence[Place]) -> list[DrawRequest | str]:
        """What to ask the model for each of some pictures, or why it cannot be asked; that names the line of the file."""
        return [self._request(place) for place in places]

    def note(self, place: Place, drawing: Drawing, pixels: np.ndarray | None, save: Callable[[np.ndarray], str]) -> Record:
        """Keys of the line of a picture: prompt, seed, and the key of what the prompt describes."""
        prompt, request = self._prompts[place.id], self._request(place)
        own = {} if isinstance(request, str) else {"seed": request.seed}
        return {"prompt": prompt.text, **own, **({"reference": prompt.reference} if prompt.reference else {})}

    def explain(self, place: Place, error: str) -> str:
        """An error of drawing with the line that it belongs to."""
        where = self._prompts[place.id].where
        return error if error.startswith(where) else f"{where}: {error}"

    def _request(self, place: Place) -> DrawRequest | str:
        try:
            return self._prompts[place.id].request(seed=self._seed, sample=place.sample, template=self._template)
        except ValueError as error:
            return str(error)


class ImageTask:
    """Pictures begun from the first rows of given ones, or written out from their compressed form.

    Attributes:
        ids: keys of the given pictures, in order.

    Args:
        model: to encode the pictures with.
        dataset: the pictures.
        rows: how many rows of coarse cells to keep; None: decompress.
        caption: words about every picture, for completion; "": those of the shapes world, else none.
        seed: as of prompts.
        compare: what tells how near original and result are, for the key "psnr".

    Raises:
        ValueError: more rows than leave something to draw.
    """

    def __init__(
        self, model: LanguageModel, dataset: ImageDataset, *, rows: int | None, caption: str = "", seed: int, compare: Compare,
        template: str = CAPTION_TEMPLATE,
    ) -> None:  # fmt: skip
        assert model.layout is not None
        if rows is not None and not 0 <= rows < model.layout.coarse_rows:
            top = model.layout.coarse_rows - 1
            raise ValueError(f"{rows} rows are to be kept; of {model.layout.describe()} 0 to {top} can be, or nothing is left to draw")
        self.ids = [dataset.key(index) for index in range(len(dataset))]
        self._places = {key: index for index, key in enumerate(self.ids)}
        self._model, self._dataset, self._caption, self._seed, self._compare = model, dataset, caption, seed, compare
        self._template, self._given = template, None if rows is None else model.layout.prefix(rows)
        self._originals: dict[str, tuple[Tensor, np.ndarray]] = {}

    def requests(self, places: Sequence[Place]) -> list[DrawRequest | str]:
        """What to ask the model for each of some pictures, or why it cannot be asked; encodes them."""
        found = {place.id: self._dataset.pixels(self._places[place.id]) for place in places}
        pixels = {key: one for key, one in found.items() if not isinstance(one, Skipped)}
        self._originals = {}
        if pixels:
            ids = self._model.image_ids(to_float(torch.stack(list(pixels.values())))).cpu().numpy()
            self._originals = {key: (one, row) for (key, one), row in zip(pixels.items(), ids, strict=True)}
        made: list[DrawRequest | str] = []
        for place in places:
            one = found[place.id]
            made.append(f"{place.id}: {one.reason}" if isinstance(one, Skipped) else self._request(place, self._originals[place.id][1]))
        return made

    def note(self, place: Place, drawing: Drawing, pixels: np.ndarray | None, save: Callable[[np.ndarray], str]) -> Record:
        """Share of ids that are the original's among those drawn, PSNR, the original's file, and how many ids were given."""
        if pixels is None:
            return {"prompt": self._prompt(place)}
        original, ids = self._originals[place.id]
        given = self._given or 0
        near = self._compare(original[None], torch.from_numpy(pixels).permute(2, 0, 1)[None])
        exact = float((drawing.ids[given:] == ids[given:]).mean()) if given < len(ids) else 1.0
        own: Record = {"prompt": self._prompt(place), "seed": self._own_seed(place), "exact": exact, "psnr": float(near)}
        return own | {"reference": save(original.permute(1, 2, 0).numpy())} | ({"given": given} if self._given is not None else {})

    def explain(self, place: Place, error: str) -> str:
        """An error of drawing with the picture that it belongs to."""
        return error if error.startswith(place.id) else f"{place.id}: {error}"

    def _request(self, place: Place, ids: np.ndarray) -> DrawRequest:
        seed = self._own_seed(place)
        if self._given is None:
            question = fill_template(TEMPLATES[DECOMPRESSION][0], ids=write_run(ids))
            return DrawRequest(question, seed=seed, compressed=True)
        words = self._prompt(place)
        question = caption_request(words, template=self._template).question if words else FREE_QUESTION
        return DrawRequest(question, seed=seed, given=ids[: self._given])

    def _own_seed(self, place: Place) -> int:
        return draw(2**31, self._seed, "picture", place.id, str(place.sample))

    def _prompt(self, place: Place) -> str:
        """The words about a picture."""
        if self._given is None or self._caption or not isinstance(self._dataset, ShapesImages):
            return self._caption
        return self._dataset.scene(self._places[place.id]).caption()


DrawingTask = PromptTask | ImageTask


def run_task(artist: Artist, task: DrawingTask, file: DrawingFile, *, batch_size: int) -> list[Record]:
    """Draw what is missing of a task; called by every rank. Returns the lines of all pictures, drawn now or before.

    Raises:
        OSError: the disk is full.
    """
    batches = list(file.batches(batch_size))
    with tqdm(total=sum(map(len, batches)), desc="drawing", unit=" pictures", disable=not is_main()) as bar:
        for batch in batches:
            places = [file.places[number] for number in batch]
            asked = dict(zip(batch, task.requests(places), strict=True))
            drawn = {number: Drawing(NOTHING, 0.0, request) for number, request in asked.items() if isinstance(request, str)}
            drawn |= dict(draw_batch(artist, {number: one for number, one in asked.items() if not isinstance(one, str)}))
            _keep(artist, task, file, {number: drawn[number] for number in batch})
            bar.update(len(batch))
    return file.finish()


def _keep(artist: Artist, task: DrawingTask, file: DrawingFile, drawn: Mapping[int, Drawing]) -> None:
    """Write the pictures and lines of one batch that are not there yet."""
    whole = [number for number, drawing in drawn.items() if not drawing.error]
    pixels = dict(zip(whole, artist.pictures(np.stack([drawn[number].ids for number in whole])), strict=True)) if whole else {}
    for number, drawing in drawn.items():
        if file.is_done(number):
            continue
        place, picture = file.places[number], pixels.get(number)

        def save(original: np.ndarray, number: int = number) -> str:
            return file.save_picture(number, original, folder="originals")

        record: dict[str, Any] = task.note(place, drawing, picture, save)
        if picture is None:
            error = task.explain(place, drawing.error)
            log.warning("not drawn: %s", error)
            file.put(number, {**record, "error": error})
        else:
            name = file.save_picture(number, picture)
            file.put(number, {**record, "file": name, "seconds": round(drawing.seconds, 4), "ids": drawing.ids.tolist()})
