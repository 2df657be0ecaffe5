"""The LLaVA baseline in training: config -> tower and pictures before the data are read, then the projector around the language model."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from unicode.common.log import get_logger
from unicode.common.ranks import all_reduce_sum_
from unicode.llm.dataset import ConversationDataset
from unicode.llm.pixels import CHECKED, Pictures, PixelReader
from unicode.llm.projector import build_projector, load_projector_
from unicode.llm.splice import LlavaModel
from unicode.llm.vision import Tower, VisionSettings, build_tower

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
        self.reader.pictures.check(key for index in chosen for key in data[int(index)].images)

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
        ValueError: the folder holds something else.
    """
    if not settings.enabled:
        return None
    tower = build_tower(settings)
    pictures = Pictures(settings.images, transform=tower.transform, side=tower.image_size, world=settings.world)
    return Vision(settings, tower, PixelReader(pictures, tower.num_features))
