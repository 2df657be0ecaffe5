"""Ids of images by key from one store or several, checked before they go into a record."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from unicode.annotations.conversation import BAD_IDS, NO_IDS, RefusedError
from unicode.annotations.prompts import draw
from unicode.ids import manifest
from unicode.ids.layout import Layout
from unicode.ids.store import Store

VIEWS = ("first", "drawn")


class ImageIds:
    """The images of several stores as one; all of them of one tokenizer and in one order.

    Args:
        stores: at least one.
        view: which crop or flip of an image to take where a store has several: "first", or "drawn" by `seed` and key.
        seed: for `view`.

    Raises:
        ValueError: stores of two tokenizers or two orders, no store, or an unknown view.
    """

    def __init__(self, stores: Sequence[Store], *, view: str = "first", seed: int = 0) -> None:
        if not stores:
            raise ValueError("no store of ids given; make one with python -m unicode.run.encode_images and name it with --ids")
        if view not in VIEWS:
            raise ValueError(f"view is '{view}'; known: {', '.join(VIEWS)}")
        self.stores, self.view, self.seed = list(stores), view, seed
        for store in stores[1:]:
            stores[0].layout.check_same(store.layout)
        made_by = {store.origin.tokenizer: store.path for store in stores}
        if len(made_by) > 1:
            named = ", ".join(f"{path} by {fingerprint or 'an unknown one'}" for fingerprint, path in made_by.items())
            raise ValueError(f"the stores were made by different tokenizers: {named}; their ids do not mix")
        self.tokenizer = stores[0].origin.tokenizer
        self.fields = {"layout": self.layout.describe(), **({"tokenizer": self.tokenizer} if self.tokenizer else {})}
        """What a record with such ids says about them."""

    @property
    def layout(self) -> Layout:
        """Grid and order of the ids."""
        return self.stores[0].layout

    def keys(self) -> Iterator[tuple[str, str]]:
        """(path of the store, key) of every image that has ids, each key once."""
        for number, store in enumerate(self.stores):
            for key in store:
                if not any(key in earlier for earlier in self.stores[:number]):
                    yield str(store.path), key

    def get(self, key: str) -> np.ndarray:
        """Vocabulary ids of one image: int64 (N,) in id order.

        Raises:
            RefusedError: no store has the image, it could not be read, or its ids are not such as the layout and vocabulary allow.
            ValueError: two stores have an image of this key and it is not the same one.
        """
        found: np.ndarray | None = None
        for store in self.stores:
            ids = self._read(store, key)
            if ids is not None and found is not None and not np.array_equal(ids, found):
                raise ValueError(f"two stores have an image '{key}' and their ids differ; name with --ids only stores of one image root")
            found = ids if found is None else found
        if found is None:
            raise RefusedError(NO_IDS, self._why_missing(key))
        return found

    def _read(self, store: Store, key: str) -> np.ndarray | None:
        num_views = len(store.origin.views)
        if self.view == "first" or num_views == 1:
            ids = store.get(key)
        else:
            ids = store.ids(key, view=draw(num_views, self.seed, "view", key)) if key in store else None
        if ids is not None and (ids.min() < 0 or ids.max() >= store.origin.vocab_size):
            found = f"'{key}' has ids {ids.min()} to {ids.max()} in {store.path}"
            raise RefusedError(BAD_IDS, f"{found}, the vocabulary has {store.origin.vocab_size}")
        return ids

    def _why_missing(self, key: str) -> str:
        for store in self.stores:
            if key in store.skipped:
                return f"'{key}' could not be encoded: {store.skipped[key]}"
        example = self.stores[0].index[0]
        return f"'{key}' is in no store; keys there look like '{example}' (--anno FILE@FOLDER puts a folder before the paths)"


def open_image_ids(paths: Sequence[str | Path], *, view: str = "first", seed: int = 0) -> ImageIds:
    """Open stores; a folder that is no store stands for all the stores in it or in its folder `ids`, as a tokenizer's does.

    Raises:
        FileNotFoundError: a folder is neither a store nor holds one, or a shard is missing.
        ValueError: as `ImageIds`, or a damaged store.
    """
    folders: list[Path] = []
    for path in map(Path, paths):
        patterns = (manifest.FILE, f"*/{manifest.FILE}", f"ids/*/{manifest.FILE}")
        inside = next(filter(None, (sorted(path.glob(pattern)) for pattern in patterns)), [])
        if not inside:
            make = "python -m unicode.run.encode_images or scripts/vae_eval/generate_img_token_ids.sh make one"
            raise FileNotFoundError(f"no store of ids in {path}; {make}, --ids names it or the folder of its tokenizer")
        folders += [found.parent for found in inside]
    return ImageIds([Store(folder) for folder in folders], view=view, seed=seed)
