"""The data config: nonsense is refused, the YAML loader can read it."""

import pytest

from unicode.common.config import load_config
from unicode.images.config import NAMES, DataConfig
from unicode.images.sources import SOURCES


def test_every_name_has_a_source() -> None:
    assert set(NAMES) == {"shapes", *SOURCES}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["name=imagnet"], "did you mean 'imagenet'"), (["crop=middle"], "data.crop"), (["resize=nearest"], "data.resize"),
        (["holdout=1.5"], "holdout"), (["limit=-1"], "limit"), (["shapes.colours=99"], "shapes.colours"),
        (["rot=x"], "did you mean 'root'"), (["shapes.colors=3"], "colours"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(DataConfig, None, settings)


def test_overrides_reach_the_world() -> None:
    config = load_config(DataConfig, None, ["shapes.colours=8", "split=val"])
    assert (config.shapes.colours, config.split, config.name) == (8, "val", "shapes")
