"""Pictures by the names that question files and stores give them: folders of files, and the shapes world that no file holds."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from unicode.common.config import load_config
from unicode.images.shapes import Scene, ShapesConfig, find_scene

SHAPES = "shapes"


class PictureFinder:
    """Finds pictures by name in several places.

    Args:
        places: folders in which names are paths, and "shapes" or "shapes:SPLIT" for the generated world; searched in this order.
        world: settings of the world that differ from the default one, as "colours=8".

    Raises:
        FileNotFoundError: a place is neither a folder nor the world.
        ValueError: unknown settings of the world.
    """

    def __init__(self, places: Sequence[str | Path], *, world: Sequence[str] = ()) -> None:
        self.world = load_config(ShapesConfig, None, world)
        self.has_world = any(_is_world(place) for place in places)
        self.folders = [Path(place) for place in places if not _is_world(place)]
        for folder in self.folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"no folder {folder}; --images takes folders of pictures and shapes:SPLIT")

    def __call__(self, name: str) -> Image.Image | None:
        """Return the picture of this name, None where no place has it or the file is no image."""
        for folder in self.folders:
            if name and (folder / name).is_file():
                try:
                    with Image.open(folder / name) as opened:
                        return opened.convert("RGBA") if opened.has_transparency_data else opened.convert("RGB")
                except OSError:
                    return None
        scene = self._scene(name)
        return Image.fromarray(scene.pixels().transpose(1, 2, 0)) if scene else None

    def caption(self, name: str) -> str:
        """Return the caption of a scene of the world, or the text beside a file; "" where there is none."""
        scene = self._scene(name)
        if scene:
            return scene.caption()
        for folder in self.folders:
            text = (folder / name).with_suffix(".txt")
            if text.is_file():
                return (text.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[0].strip()
        return ""

    def _scene(self, name: str) -> Scene | None:
        if not self.has_world:
            return None
        try:
            return find_scene(self.world, name)
        except ValueError:
            return None


def _is_world(place: str | Path) -> bool:
    return str(place).partition(":")[0] == SHAPES
