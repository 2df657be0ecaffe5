"""Stores: ids by key, stopped and finished, refused where they do not belong, faults named."""

import json
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unicode.ids.layout import Layout
from unicode.ids.store import KEY_FILES, KeyIndex, Store, StoreSpec, check_keys, hash_keys, write_keys
from unicode.ids.store_writer import StoreWriter

LAYOUT = Layout("hierarchical", ((1, 2), (2, 4)))
KEYS = [f"part {number % 3}/bild-ü{number:03d}.jpg" for number in range(25)]


def spec_of(keys: list[str], **changes: object) -> StoreSpec:
    base = StoreSpec("0123456789abcdef", LAYOUT, {"image_size": 32}, "float32", ("whole",), 500, len(keys), hash_keys(keys), 10)
    return replace(base, **changes)


def ids_of(spec: StoreSpec) -> np.ndarray:
    shape = (spec.num_images, len(spec.views), LAYOUT.num_codes)
    return np.random.default_rng(0).integers(0, spec.vocab_size, shape)


def make(path: Path, keys: list[str] = KEYS, *, skip: tuple[int, ...] = (), stop_after: int | None = None, **changes: object) -> StoreSpec:
    """Fill a store, or leave it after some shards as a killed process would."""
    spec = spec_of(keys, **changes)
    ids = ids_of(spec)
    with StoreWriter(path, spec) as writer:
        writer.prepare(keys)
        for done, shard in enumerate(writer.missing()):
            if done == stop_after:
                break
            rows = spec.shard_rows(shard)
            writer.put(shard, ids[rows.start : rows.stop], [(row, keys[row], "truncated") for row in skip if row in rows])
        writer.close()
        if stop_after is None:
            writer.finish(keys)
    return spec


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("vocab_size", [500, 65535, 65536, 151_000])
def test_ids_by_key(tmp_path: Path, vocab_size: int) -> None:
    spec = make(tmp_path, vocab_size=vocab_size)
    store, ids = Store(tmp_path), ids_of(spec)
    assert store.spec == spec
    assert spec.dtype == (np.uint16 if vocab_size < 65536 else np.int32)
    assert len(store) == 25
    for row, key in enumerate(KEYS):
        assert store[key].dtype == np.int64
        np.testing.assert_array_equal(store[key], ids[row, 0])
    assert list(store) == KEYS
    assert store.get("part 0/nothing.jpg") is None
    assert "part 0/nothing.jpg" not in store
    with pytest.raises(KeyError, match=r"part 0/nothing.jpg.*relative"):
        store["part 0/nothing.jpg"]
    store.verify()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store))[KEYS[7]], ids[7, 0])


def test_views_are_an_axis(tmp_path: Path) -> None:
    spec = make(tmp_path, views=("whole", "flip", "crop"))
    for view in range(3):
        np.testing.assert_array_equal(Store(tmp_path).ids(KEYS[11], view=view), ids_of(spec)[11, view])


@pytest.mark.parametrize("vocab_size", [500, 151_000])
def test_unreadable_images_are_recorded(tmp_path: Path, vocab_size: int) -> None:
    make(tmp_path, skip=(3, 24), vocab_size=vocab_size)
    store = Store(tmp_path)
    assert len(store) == 23
    assert store.get(KEYS[3]) is None
    assert KEYS[24] not in store
    assert store.skipped == {KEYS[3]: "truncated", KEYS[24]: "truncated"}
    assert list(store) == [key for row, key in enumerate(KEYS) if row not in (3, 24)]
    with pytest.raises(KeyError, match=r"has no ids.*truncated"):
        store[KEYS[3]]
    store.verify()


def test_stopped_and_finished_is_the_uninterrupted_store(tmp_path: Path) -> None:
    make(tmp_path / "whole", skip=(12,))
    make(tmp_path / "stopped", skip=(12,), stop_after=1)
    with pytest.raises(ValueError, match="not finished"):
        Store(tmp_path / "stopped")
    (tmp_path / "stopped/shards/.00001.npy.abc").write_bytes(b"half")
    (tmp_path / "stopped/.manifest.json.abc").write_bytes(b"half")
    (tmp_path / "stopped/shards/00001.json").write_text("{}")  # killed between the two files of a shard
    done = (tmp_path / "stopped/shards/00000.npy").stat().st_mtime_ns
    make(tmp_path / "stopped", skip=(12,))
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")
    assert (tmp_path / "stopped/shards/00000.npy").stat().st_mtime_ns == done
    make(tmp_path / "stopped", skip=(12,))
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


def test_missing_truncated_and_damaged_shards(tmp_path: Path) -> None:
    make(tmp_path)
    before, shard = content(tmp_path), tmp_path / "shards/00001.npy"
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001.npy is missing; the command"):
        Store(tmp_path)
    make(tmp_path)
    assert content(tmp_path) == before
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"00001.npy has 321 bytes instead of 328"):
        Store(tmp_path)
    make(tmp_path)
    assert content(tmp_path) == before
    damaged = bytearray(shard.read_bytes())
    damaged[200] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"00001.npy is damaged"):
        Store(tmp_path).verify()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "f" * 16}, "another tokenizer: 0123456789abcdef there, ffffffffffffffff now"),
        ({"transform": {"image_size": 64}}, "another transform"),
        ({"precision": "bf16"}, "another precision"),
        ({"layout": replace(LAYOUT, order="rows")}, "another layout: .*'nested' there, .*'rows' now"),
        ({"image_list": "0" * 64}, "not the list"),
        ({"shard_size": 5}, "another shard_size: 10 there, 5 now"),
        ({"views": ("whole", "flip")}, "another views"),
    ],
)
def test_another_spec_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    make(tmp_path, stop_after=1)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)
    assert content(tmp_path) == before


def test_another_list_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match="another image_list"):
        make(tmp_path, [*KEYS[:-1], "other.jpg"])
    with pytest.raises(ValueError, match="another num_images"):
        make(tmp_path, KEYS[:-1])


def test_two_processes_do_not_fill_one_store(tmp_path: Path) -> None:
    spec = spec_of(KEYS)
    with StoreWriter(tmp_path, spec) as first:
        first.prepare(KEYS)
        with pytest.raises(ValueError, match="is in use: encoding by process"), StoreWriter(tmp_path, spec) as second:
            second.prepare(KEYS)
    make(tmp_path)


def test_reader_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    store = Store(tmp_path)
    store.check_tokenizer("0123456789abcdef", LAYOUT)
    with pytest.raises(ValueError, match="tokenizer 0123456789abcdef, not of f"):
        store.check_tokenizer("f" * 16, LAYOUT)
    with pytest.raises(ValueError, match="do not mix"):
        store.check_tokenizer("0123456789abcdef", replace(LAYOUT, order="rows"))


def test_ids_out_of_range_never_reach_the_disk(tmp_path: Path) -> None:
    spec = spec_of(KEYS)
    with StoreWriter(tmp_path, spec) as writer:
        writer.prepare(KEYS)
        writer.put(0, np.full((10, 1, LAYOUT.num_codes), 500))
        with pytest.raises(ValueError, match="outside the vocabulary of 500"):
            writer.close()
    assert not list((tmp_path / "shards").iterdir())


def test_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, stop_after=1)
    before = content(tmp_path)
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path)
    monkeypatch.undo()
    assert content(tmp_path) == before
    make(tmp_path)
    assert len(Store(tmp_path)) == 25


def test_foreign_and_damaged_manifests(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no store of ids"):
        Store(tmp_path)
    make(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    changes = [({"format": "other"}, "format is 'other'"), ({"layout": {}}, "a layout has the keys"), ({"shards": 3}, "damaged")]
    changes.append(({"tokenizer": ["0123"]}, "expected the fingerprint of a tokenizer"))
    for change, message in changes:
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ValueError, match=message):
            Store(tmp_path)
    for file in ("/etc/hostname", "../x.npy", "shards/../../x.npy", 3):  # outside of the folder, or no path
        changed = manifest | {"shards": [shard | {"file": file} for shard in manifest["shards"]]}
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="is damaged"):
            Store(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"not valid JSON.*encode the images again"):
        Store(tmp_path)


@pytest.mark.parametrize("name", KEY_FILES)
@pytest.mark.parametrize("length", [None, 0, 70])
def test_damaged_key_index(tmp_path: Path, name: str, length: int | None) -> None:
    """The message says what to do, and that helps."""
    make(tmp_path)
    before, file = content(tmp_path), tmp_path / "keys" / name
    content_before = file.read_bytes()
    file.unlink()
    if length is not None:
        file.write_bytes(content_before[:length])
    with pytest.raises(ValueError, match=r"the key index .*; delete that folder and run the command"):
        Store(tmp_path)
    shutil.rmtree(tmp_path / "keys")
    make(tmp_path)
    assert content(tmp_path) == before


def test_a_shard_that_is_no_array(tmp_path: Path) -> None:
    make(tmp_path)
    before, file = content(tmp_path), tmp_path / "shards/00001.npy"
    for damage in (bytes(file.stat().st_size), file.read_bytes().replace(b"<u2", b"<i2")):
        file.write_bytes(damage)
        store = Store(tmp_path)
        with pytest.raises(ValueError, match=r"00001.npy is damaged: .*; delete the file; the command"):
            [store[key] for key in store]
        file.unlink()
        make(tmp_path)
        assert content(tmp_path) == before


def test_a_missing_list_of_unreadable_images(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "skipped.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"skipped.jsonl is missing; the command"):
        list(Store(tmp_path))
    make(tmp_path)
    assert (tmp_path / "skipped.jsonl").is_file()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up.jpg", "a/../../b.jpg", "a\\b.jpg", "C:/x.jpg"])
def test_keys_that_leave_the_root_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="no path below the image root"):
        check_keys(["fine.jpg", key])


def test_keys_are_unique_and_some() -> None:
    with pytest.raises(ValueError, match=r"'b.jpg' stands for two images"):
        check_keys(["a.jpg", "b.jpg", "c.jpg", "b.jpg"])
    with pytest.raises(ValueError, match="no images"):
        check_keys([])


def test_keys_with_equal_hashes_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["a\nb.jpg", "日本.png", "nicht\udcffutf8.jpg", "..a", "x"]
    monkeypatch.setattr("unicode.ids.store._hash", lambda key: np.uint64(len(key) % 2))
    write_keys(tmp_path, keys)
    index = KeyIndex(tmp_path)
    assert list(index) == keys
    assert [index.find(key) for key in [*keys, "y", "yy"]] == [0, 1, 2, 3, 4, -1, -1]


def test_a_large_store_opens_at_once(tmp_path: Path) -> None:
    """200,000 images: less than a second to open and less than a millisecond for each look-up."""
    keys = [f"{number // 1000:05d}/{number:09d}.jpg" for number in range(200_000)]
    spec = spec_of(keys, shard_size=2048)
    with StoreWriter(tmp_path, spec) as writer:
        writer.prepare(keys)
        for shard in writer.missing():
            writer.put(shard, np.full(spec.shard_shape(shard), shard))
        writer.close()
        writer.finish(keys)
    start = time.perf_counter()
    store = Store(tmp_path)
    opened = time.perf_counter() - start
    rows = np.random.default_rng(0).integers(0, len(keys), 1000).tolist()
    assert all(store[keys[row]][0] == row // 2048 for row in rows)
    looked_up = time.perf_counter() - start - opened
    print(f"opened in {opened * 1000:.1f} ms, {looked_up * 1000:.1f} us per image")
    assert opened < 1
    assert looked_up < 1
    shutil.rmtree(tmp_path)
