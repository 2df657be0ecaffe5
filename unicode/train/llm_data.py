"""A language-model run's data: config -> conversations, their weights, and the images of the LLaVA baseline."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from unicode.annotations.build import split_weight
from unicode.annotations.records import TASKS
from unicode.common.logging import get_logger
from unicode.images.lookup import ImageLookup
from unicode.llm.cell_head import check_cells
from unicode.llm.collate import PixelReader
from unicode.llm.dataset import ConversationDataset
from unicode.llm.examples import ExampleBuilder
from unicode.llm.llava import LlavaModel, Tower, VisionSettings, build_projector, build_tower, load_projector_
from unicode.llm.model import context_length, table_rows
from unicode.llm.template import Template
from unicode.llm.vocabulary import Markers
from unicode.tokenizer.load import load_tokenizer
from unicode.train.config import TrainLlmConfig

CHECKED = 100  # pictures that are looked for before training starts
DEFAULT_LENGTH = 2048
KEPT = ("enabled", "kind", "path", "layer", "fit", "dtype", "projector")  # settings that inference needs
logger = get_logger(__name__)


@dataclass
class Vision:
    """The vision part of the LLaVA baseline: a frozen tower and the reader that adds pictures to batches."""

    settings: VisionSettings
    tower: Tower
    reader: PixelReader

    def check(self, data: ConversationDataset) -> None:
        """FileNotFoundError when the pictures of a data set are not in the folders of the config."""
        seeing = np.flatnonzero(data.num_images)
        chosen = seeing[spread(len(seeing), CHECKED)]
        keys = (key for index in chosen for key in data[int(index)].images)
        self.reader.pictures.check(keys, setting="vision.images")

    def wrap(self, lm: Any) -> LlavaModel:
        """Put the tower and a projector around a language model, or a PEFT model of one; freeze it where only the projector learns.

        Raises FileNotFoundError, ValueError: the projector to begin with is missing or does not fit.
        """
        if self.settings.projector_only:
            lm.requires_grad_(False)
        projector = build_projector(self.settings.projector, self.tower.width, int(lm.config.get_text_config().hidden_size))
        if self.settings.projector_path:
            load_projector_(projector, self.settings.projector_path)
            logger.info("projector from %s", self.settings.projector_path)
        return LlavaModel(lm, self.tower, projector)

    def describe(self) -> dict[str, Any]:
        """Return what unicode.json keeps of the tower and the projector, by which inference opens them again."""
        kept = {name: value for name, value in asdict(self.settings).items() if name in KEPT}
        return {**kept, "feature": self.settings.chosen_feature, "fingerprint": self.tower.fingerprint}


def open_vision(settings: VisionSettings) -> Vision | None:
    """Open the tower and the folders of the pictures; None where images are ids.

    Raises FileNotFoundError: no such tower or folder. Raises ValueError: the folder holds something else, or no folder is named.
    """
    if not settings.enabled:
        return None
    if not settings.images:
        raise ValueError("vision.images is empty; name the folders that the image paths of data.files start from, or shapes")
    tower = build_tower(settings)
    pictures = ImageLookup(settings.images, side=tower.image_size, world=settings.world)
    reader = PixelReader(pictures, transform=tower.transform, side=tower.image_size, positions=tower.num_features)
    return Vision(settings, tower, reader)


def spread(total: int, count: int) -> np.ndarray:
    """Return at most `count` indices below `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


@dataclass
class LlmData:
    """Training and held-out conversations of a run."""

    train: ConversationDataset
    val: ConversationDataset | None  # None without held-out files
    weights: np.ndarray  # (n,) how often each training conversation occurs in an epoch
    max_length: int  # Longest sequence in tokens
    image_ids: torch.Tensor | None  # (K,) vocabulary ids of the rows of the image tokenizer, where it is named
    codebooks: Sequence[torch.Tensor]  # (K, E) rows of its levels, or of one codebook for all

    @property
    def epoch_length(self) -> int:
        return max(1, round(float(self.weights.sum())))


def read_data(
    config: TrainLlmConfig, *, model_config: Any, template: Template, text_tokenizer: Any, markers: Markers, image_positions: int = 0
) -> LlmData:
    """Open the annotation files of a config; everything in them that cannot be used is found here, before a model is loaded.

    `model_config`, `text_tokenizer`: of the language model. `image_positions`: positions of one picture of the LLaVA baseline; 0 where
    images are ids. Raises FileNotFoundError: a file, store or image tokenizer is missing. Raises ValueError: a damaged file, ids
    that do not fit the model or each other, a length beyond the model's context.
    """
    data = config.data
    if not data.files:
        raise ValueError("data.files is empty; give annotation files, for example data.files=[data/shapes.json,data/captions.json*0.5]")
    rows, context = table_rows(model_config), context_length(model_config)
    if data.max_length > context:
        raise ValueError(f"data.max_length is {data.max_length}, but the model's context is {context} tokens; set at most that")
    max_length = data.max_length or min(context, DEFAULT_LENGTH)
    layout, fingerprint, image_ids, codebooks = None, "", None, []
    if path := config.model.image_tokenizer:
        tokenizer = load_tokenizer(path)
        layout, fingerprint, largest = tokenizer.layout, tokenizer.fingerprint, int(tokenizer.row_ids.max())
        image_ids, codebooks = tokenizer.row_ids.cpu(), [codebook.rows for codebook in tokenizer.codebooks]
        if largest >= rows:
            reason = f"its largest image id is {largest}, but {config.model.path} has {rows} rows in its embedding table"
            raise ValueError(f"the image tokenizer {path} does not fit the model: {reason}; train it on the table of this model")
        if config.model.output_mode == "cells":
            check_cells(layout)
            config.cells.resolved(model_config.get_text_config().hidden_size)
    files, file_weights = zip(*map(split_weight, data.files), strict=True)
    known = (template, text_tokenizer, markers, layout, max(rows, max(markers.ids()) + 1))
    builder = ExampleBuilder(*known, output_mode=config.model.output_mode)
    options: dict[str, Any] = {
        "stores": data.stores,
        "max_length": max_length,
        "input_mode": config.model.input_mode,
        "isolate_turns": data.isolate_turns,
        "image_positions": image_positions,
        "skip_bad": data.skip_bad,
    }
    train = ConversationDataset(files, builder, fingerprint=fingerprint, **options)
    val = ConversationDataset(data.val_files, train.builder, fingerprint=train.fingerprint, **options) if data.val_files else None
    for name, found in (("training", train), ("held-out", val)):
        if found is not None:
            logger.info("%s data: %s", name, found.intake.describe())
    of_tasks = np.array([data.task_weights.get(task, 1.0) for task in TASKS] + [1.0])  # the last one is of records without a task, -1
    weights = np.asarray(file_weights)[train.sources] * of_tasks[train.tasks]
    return LlmData(train, val, weights, max_length, image_ids, codebooks)
