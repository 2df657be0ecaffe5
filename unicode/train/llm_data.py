"""A language-model run's data: config -> conversations, their weights, and the images of the LLaVA baseline."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from unicode.annotations.build import split_weight
from unicode.annotations.records import TASKS
from unicode.common.distributed import all_reduce_sum_
from unicode.common.logging import get_logger
from unicode.ids.layout import Layout
from unicode.images.lookup import ImageLookup
from unicode.llm.collate import PixelReader
from unicode.llm.dataset import ConversationDataset
from unicode.llm.llava import LlavaModel, Tower, VisionSettings, build_projector, build_tower, load_projector_
from unicode.llm.model import context_length, table_rows
from unicode.llm.template import Template
from unicode.llm.vocabulary import Markers
from unicode.tokenizer.load import load_tokenizer
from unicode.train.config import TrainLlmConfig

CHECKED = 100  # pictures that are looked for before training starts
KEPT = ("enabled", "kind", "path", "layer", "fit", "dtype", "projector")  # settings that inference needs
logger = get_logger(__name__)


@dataclass
class Vision:
    """What reads pictures in a run.

    Attributes:
        settings: as the config has them.
        tower: frozen.
        reader: adds pictures to batches.
    """

    settings: VisionSettings
    tower: Tower
    reader: PixelReader

    @property
    def positions(self) -> int:
        """Positions of a picture in a sequence."""
        return self.tower.num_features

    def check(self, data: ConversationDataset) -> None:
        """FileNotFoundError when the pictures of a data set are not where the config says."""
        seeing = np.flatnonzero(data.num_images)
        chosen = seeing[np.unique(np.linspace(0, len(seeing) - 1, min(CHECKED, len(seeing))).astype(np.int64))] if len(seeing) else seeing
        keys = (key for index in chosen for key in data[int(index)].images)
        self.reader.pictures.check(keys, setting="vision.images")

    def around(self, lm: Any) -> LlavaModel:
        """Put the tower and a projector around a language model or a PEFT model of one; freeze it where only the projector learns.

        Raises:
            FileNotFoundError, ValueError: the projector to begin with is missing or does not fit.
        """
        if self.settings.projector_only:
            lm.requires_grad_(False)
        width = int(lm.config.get_text_config().hidden_size)
        projector = build_projector(self.settings.projector, self.tower.width, width)
        if self.settings.projector_path:
            load_projector_(projector, self.settings.projector_path)
            logger.info("projector from %s", self.settings.projector_path)
        return LlavaModel(lm, self.tower, projector)

    def describe(self) -> dict[str, Any]:
        """What unicode.json says about the tower and the projector, by which inference opens them again."""
        kept = {name: value for name, value in asdict(self.settings).items() if name in KEPT}
        return {**kept, "feature": self.settings.chosen_feature, "fingerprint": self.tower.fingerprint}

    def unreadable(self, device: torch.device) -> int:
        """Pictures of all ranks that could not be read; one that was met again counts again. Call on every rank."""
        return int(all_reduce_sum_(torch.tensor([self.reader.num_unreadable], device=device)))


def open_vision(settings: VisionSettings) -> Vision | None:
    """Open the tower and the places of the pictures; None where images are ids.

    Raises:
        FileNotFoundError: no such tower or place of pictures.
        ValueError: the folder holds something else, or no place of pictures is named.
    """
    if not settings.enabled:
        return None
    if not settings.images:
        raise ValueError("vision.images is empty; name the folders that the image paths of data.files start from, or shapes")
    tower = build_tower(settings)
    pictures = ImageLookup(settings.images, side=tower.image_size, world=settings.world)
    reader = PixelReader(pictures, transform=tower.transform, side=tower.image_size, positions=tower.num_features)
    return Vision(settings, tower, reader)


DEFAULT_LENGTH = 2048
log = get_logger(__name__)


@dataclass
class LlmData:
    """What a run learns from and is measured on.

    Attributes:
        train, val: conversations; `val` is None without held-out files.
        weights: (n,) how often each training conversation occurs in an epoch.
        modalities: (n,) 1 for conversations with images, 0 for text.
        max_length: longest sequence in tokens.
    """

    train: ConversationDataset
    val: ConversationDataset | None
    weights: np.ndarray
    modalities: np.ndarray
    max_length: int

    @property
    def epoch_length(self) -> int:
        """Conversations of an epoch, repetitions counted."""
        return max(1, round(float(self.weights.sum())))


def read_data(
    config: TrainLlmConfig, *, model_config: Any, template: Template, text_tokenizer: Any, markers: Markers, image_positions: int = 0
) -> LlmData:
    """Open the annotation files of a config; everything in them that cannot be used is found here, before a model is loaded.

    Args:
        config: the run's config.
        model_config: config of the language model.
        template: of the prompts.
        text_tokenizer: of the language model.
        markers: around images.
        image_positions: positions of one image whose features are put in later; 0 where images are ids.

    Raises:
        FileNotFoundError: a file, store or image tokenizer is missing.
        ValueError: a damaged file, ids that do not fit the model or each other, a length beyond the model's context.
    """
    data = config.data
    if not data.files:
        raise ValueError("data.files is empty; give annotation files, for example data.files=[data/shapes.json,data/captions.json*0.5]")
    max_length = choose_length(data.max_length, context_length(model_config))
    rows = max(table_rows(model_config), max(markers.ids()) + 1)
    layout, fingerprint = describe_tokenizer(config.model.image_tokenizer, rows=table_rows(model_config), model=config.model.path)
    files, file_weights = zip(*map(split_weight, data.files), strict=True)
    options: dict[str, Any] = {
        "stores": data.stores,
        "template": template,
        "text_tokenizer": text_tokenizer,
        "markers": markers,
        "vocab_size": rows,
        "max_length": max_length,
        "input_mode": config.model.input_mode,
        "isolate_turns": data.isolate_turns,
        "image_positions": image_positions,
        "skip_bad": data.skip_bad,
    }
    train = ConversationDataset(files, layout=layout, fingerprint=fingerprint, **options)
    val = ConversationDataset(data.val_files, layout=train.layout, fingerprint=train.fingerprint, **options) if data.val_files else None
    for name, found in (("training", train), ("held-out", val)):
        if found is not None:
            log.info("%s data: %s", name, found.intake.describe())
    weights = np.asarray(file_weights)[train.sources] * task_factors(train.tasks, data.task_weights)
    return LlmData(train, val, weights, (train.num_images > 0).astype(np.int64), max_length)


def task_factors(tasks: np.ndarray, weights: dict[str, float]) -> np.ndarray:
    """(n,) factor of each conversation for its task. ValueError for the name of a task that does not exist."""
    check_tasks("data.task_weights", weights)
    factors = np.array([weights.get(task, 1.0) for task in TASKS] + [1.0])
    return factors[np.where(tasks < 0, len(TASKS), tasks)]  # type: ignore[no-any-return]


def check_tasks(key: str, weights: dict[str, float]) -> None:
    """Raise ValueError for a task that does not exist."""
    for task in weights:
        if task not in TASKS:
            raise ValueError(f"{key} names the task '{task}'; known: {', '.join(TASKS)}")


def choose_length(wanted: int, context: int) -> int:
    """The longest sequence of a run. ValueError beyond the model's context."""
    if wanted > context:
        raise ValueError(f"data.max_length is {wanted}, but the model's context is {context} tokens; set at most that")
    return wanted or min(context, DEFAULT_LENGTH)


def describe_tokenizer(path: str, *, rows: int, model: str) -> tuple[Layout | None, str]:
    """Layout and fingerprint of an image tokenizer; None and "" without one.

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: its ids are not ids of a vocabulary of `rows` rows.
    """
    if not path:
        return None, ""
    tokenizer = load_tokenizer(path)
    largest = int(tokenizer.row_ids.max())
    if largest >= rows:
        reason = f"its largest image id is {largest}, but {model} has {rows} rows in its embedding table"
        raise ValueError(f"the image tokenizer {path} does not fit the model: {reason}; train it on the table of this model")
    return tokenizer.layout, tokenizer.fingerprint
