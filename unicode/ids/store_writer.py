"""StoreWriter: fills a store shard by shard; the same command resumes a stopped run."""

import io
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from unicode.common.files import atomic_write, lock_folder, read_json, write_json, write_jsonl
from unicode.ids.store import KEY_FILES, Manifest, Shard, StoreSpec, check_keys, checksum, hash_keys, write_keys

if TYPE_CHECKING:
    import torch

QUEUE = 4  # shards that may wait for the disk before encoding waits too


class StoreWriter(AbstractContextManager["StoreWriter"]):
    """Writes shards from a background thread. In a job of several ranks each has one.

    Inside a `with`: `prepare` on the main rank, then `missing` and `put` on all ranks, `close`, then `finish` on the main rank, with
    a barrier after the first and before the last step.
    """

    def __init__(self, path: str | Path, spec: StoreSpec) -> None:
        self.path = Path(path)
        self.spec = spec
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._waiting: deque[Future[None]] = deque()
        self._lock = ExitStack()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._pool.shutdown(wait=True)  # shards that were handed over are written even after an error
            if kind is None:
                self.close()
        finally:
            self._lock.close()

    def prepare(self, keys: Sequence[str]) -> None:
        """Take the folder for this run: check what is there, remove half-written files, write the manifest.

        Raises ValueError: the store there is of another tokenizer, transform or list of images, another process is filling it, or the keys
        are no relative, unique paths.
        """
        check_keys(keys)
        if hash_keys(keys) != self.spec.image_list or len(keys) != self.spec.num_images:
            raise ValueError(f"the {len(keys)} keys are not the list of {self.spec.num_images} images that the store is for")
        for folder in (self.path / "shards", self.path / "keys"):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(lock_folder(self.path, "encoding"))
        if (self.path / "manifest.json").is_file():
            Manifest.load(self.path).spec.check_same(self.spec, self.path)
        else:
            Manifest(self.spec).save(self.path)
        for pattern in ("shards/.*", "keys/.*", ".manifest.json.*", ".skipped.jsonl.*"):
            for stale in self.path.glob(pattern):
                stale.unlink()

    def missing(self) -> list[int]:
        """Shards that are not there yet or are truncated."""
        return [shard for shard in range(self.spec.num_shards) if not self._is_complete(shard)]

    def put(self, shard: int, ids: "torch.Tensor | np.ndarray", skipped: Sequence[tuple[int, str, str]] = ()) -> None:
        """Hand over one shard; it is copied from the device and written in the background.

        `ids`: (images, views, N) vocabulary ids in id order; rows of unreadable images may hold anything. `skipped`: (row in the store,
        key, reason) of the unreadable images. Raises OSError, ValueError: an earlier shard could not be written, as on a full disk, or held
        ids outside the vocabulary.
        """
        while self._waiting and (len(self._waiting) >= QUEUE or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, shard, ids, list(skipped)))

    def close(self) -> None:
        """Wait until everything handed over is written and raise the errors of `put`, if any."""
        self._pool.shutdown(wait=True)
        while self._waiting:
            self._waiting.popleft().result()

    def finish(self, keys: Sequence[str]) -> Manifest:
        """Write the key index, the list of unreadable images and the manifest of the whole store. Raises ValueError: a shard is missing."""
        missing = self.missing()
        if missing:
            raise ValueError(f"{self.path}: {len(missing)} shards are missing, the first is {missing[0]}; run the same command again")
        sides = [read_json(self._file(shard).with_suffix(".json")) for shard in range(self.spec.num_shards)]
        shards = tuple(
            Shard(f"shards/{shard:05d}.npy", len(self.spec.shard_rows(shard)), self.spec.shard_bytes(shard), side["crc32"])
            for shard, side in enumerate(sides)
        )
        skipped = [record for side in sides for record in side["skipped"]]
        if any(not (self.path / "keys" / name).is_file() for name in KEY_FILES):
            write_keys(self.path / "keys", keys)
        write_jsonl(self.path / "skipped.jsonl", skipped)
        manifest = Manifest(self.spec, complete=True, skipped=len(skipped), shards=shards)
        manifest.save(self.path)
        return manifest

    def _write(self, shard: int, ids: "torch.Tensor | np.ndarray", skipped: list[tuple[int, str, str]]) -> None:
        array = ids if isinstance(ids, np.ndarray) else ids.cpu().numpy()
        assert array.shape == self.spec.shard_shape(shard), (array.shape, self.spec.shard_shape(shard))
        kept = np.ones(len(array), dtype=bool)
        kept[[row - self.spec.shard_rows(shard).start for row, _, _ in skipped]] = False
        if kept.any() and not 0 <= array[kept].min() <= array[kept].max() < self.spec.vocab_size:
            found = f"ids {array[kept].min()} to {array[kept].max()}"
            raise ValueError(f"shard {shard}: {found} outside the vocabulary of {self.spec.vocab_size}")
        buffer = io.BytesIO()
        np.save(buffer, np.where(kept[:, None, None], array, self.spec.no_id).astype(self.spec.dtype))
        content = buffer.getvalue()
        assert len(content) == self.spec.shard_bytes(shard), (len(content), self.spec.shard_bytes(shard))
        records = [{"row": row, "key": key, "reason": reason} for row, key, reason in skipped]
        file = self._file(shard)
        write_json(file.with_suffix(".json"), {"crc32": checksum(content), "skipped": records})
        with atomic_write(file, "wb") as out:
            out.write(content)

    def _is_complete(self, shard: int) -> bool:
        file = self._file(shard)
        return file.is_file() and file.stat().st_size == self.spec.shard_bytes(shard) and file.with_suffix(".json").is_file()

    def _file(self, shard: int) -> Path:
        return self.path / "shards" / f"{shard:05d}.npy"
