"""A record of a question file -> its picture, for the task `questions.yaml` of lmms-eval."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from PIL import Image

from unicode.images.decode import decode_image
from unicode.images.lookup import ImageLookup

open_places = lru_cache(lambda name: ImageLookup([name]))


def doc_to_visual(record: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Image.Image]:
    """Return the picture that `record` names. `settings`: the task's `lmms_eval_specific_kwargs`, whose `images` says where it lies."""
    found = open_places(settings["images"]).read(record["image"])
    return [decode_image(found) if isinstance(found, bytes) else found]
