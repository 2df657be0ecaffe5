"""The data config: nonsense is refused, the YAML loader can read it."""

import re
from pathlib import Path

import pytest
import yaml

from unicode.common.config import load_config
from unicode.images.dataset import NAMES, SOURCES, DataConfig

GUIDE = Path(__file__).parents[2] / "DATA_VAE.md"


def test_the_guide_shows_settings_that_exist(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    shown = [text for block in blocks for text in re.split(r"^data:", block, flags=re.MULTILINE)[1:]]
    names = set()
    for text in shown:
        path = tmp_path / "data.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(f"data:{text}")["data"]))
        names.add(load_config(DataConfig, path).name)
    assert names == set(NAMES)


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
