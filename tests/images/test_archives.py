"""Tar shards and LMDB: random access, kept indexes, damaged archives."""

import os
import pickle
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import lmdb
import pytest

from unicode.images.archives import Lmdb, TarShards, find_shards
from unicode.images.listing import UnreadableImageError


def make_shard(path: Path, members: dict[str, bytes], mode: Any = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))


def test_shards(tmp_path: Path) -> None:
    make_shard(tmp_path / "t-000.tar", {"a.jpg": b"A" * 700, "a.txt": b"caption", "b.png": b"B"})
    make_shard(tmp_path / "t-001.tar", {"x" * 150 + "/a.jpg": b"C", "a.jpg": b"D"})
    shards = TarShards("t-{000..001}.tar", str(tmp_path))
    assert list(shards.keys) == ["t-000.tar/a.jpg", "t-000.tar/b.png", f"t-001.tar/{'x' * 150}/a.jpg", "t-001.tar/a.jpg"]
    assert [shards.read(index)[:1] for index in (3, 0, 2, 1)] == [b"D", b"A", b"C", b"B"]
    assert pickle.loads(pickle.dumps(shards)).read(0) == b"A" * 700
    assert list(TarShards(str(tmp_path / "*.tar")).keys) == list(shards.keys)
    (tmp_path / "more").mkdir()
    make_shard(tmp_path / "more/t-000.tar", {"a.jpg": b"E"})
    for root in ("", str(tmp_path / "more")):  # keys never start with "../"
        everywhere = TarShards(f"{tmp_path}/**/t-000.tar", root)
        assert list(everywhere.keys) == ["more/t-000.tar/a.jpg", "t-000.tar/a.jpg", "t-000.tar/b.png"]


def test_the_index_is_kept_and_renewed(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    make_shard(path, {"a.jpg": b"A"})
    TarShards("t.tar", str(tmp_path))
    index = tmp_path / "t.tar.index.json"
    kept = index.read_bytes()
    TarShards("t.tar", str(tmp_path))
    assert index.read_bytes() == kept
    make_shard(path, {"b.jpg": b"BB", "c.jpg": b"C"})
    os.utime(path, ns=(1, 1))
    assert list(TarShards("t.tar", str(tmp_path)).keys) == ["t.tar/b.jpg", "t.tar/c.jpg"]
    index.write_text("rubbish")
    assert TarShards("t.tar", str(tmp_path)).read(0) == b"BB"


def test_shard_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tar shard matches"):
        find_shards("*.tar", str(tmp_path))
    make_shard(tmp_path / "t-0.tar", {"a.txt": b"A"})
    with pytest.raises(FileNotFoundError, match=r"2 of 3 shards .*t-1\.tar"):
        TarShards("t-{0..2}.tar", str(tmp_path))
    with pytest.raises(ValueError, match="no images in"):
        TarShards("t-0.tar", str(tmp_path))
    make_shard(tmp_path / "z.tar", {"a.jpg": b"A"}, "w:gz")
    with pytest.raises(ValueError, match="not an uncompressed tar"):
        TarShards("z.tar", str(tmp_path))


def test_a_shard_cut_after_indexing(tmp_path: Path) -> None:
    make_shard(tmp_path / "t.tar", {"a.jpg": b"A" * 2000})
    shards = TarShards("t.tar", str(tmp_path))
    os.truncate(tmp_path / "t.tar", 1000)
    with pytest.raises(UnreadableImageError, match="truncated shard"):
        shards.read(0)


def make_lmdb(path: Path, records: dict[bytes, bytes]) -> None:
    environment = lmdb.open(str(path), map_size=1 << 20)
    with environment.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key, value)
    environment.close()


def test_lmdb(tmp_path: Path) -> None:
    path = tmp_path / "church_val_lmdb"
    make_lmdb(path, {b"0a1b": b"first", b"\xff\x00": b"second"})
    source = Lmdb(path)
    assert list(source.keys) == ["church_val_lmdb/0a1b", "church_val_lmdb/hex.ff00"]
    assert [source.read(1), source.read(0)] == [b"second", b"first"]
    assert (tmp_path / "church_val_lmdb.keys.txt").read_text().splitlines() == ["0a1b", "hex.ff00"]
    again = pickle.loads(pickle.dumps(Lmdb(path)))
    assert again.read(0) == b"first"


def test_lmdb_keys_are_renewed_when_the_number_changes(tmp_path: Path) -> None:
    path = tmp_path / "x_lmdb"
    make_lmdb(path, {b"a": b"1"})
    (tmp_path / "x_lmdb.keys.txt").write_text("other\nkeys\n")
    assert list(Lmdb(path).keys) == ["x_lmdb/a"]
    (tmp_path / "x_lmdb.keys.txt").write_text("gone\n")
    with pytest.raises(UnreadableImageError, match="missing record"):
        Lmdb(path).read(0)


def test_without_lmdb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_lmdb(tmp_path / "set", {b"a": b"x"})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=r"pip install 'unicode-mllm\[lsun\]'"):
        Lmdb(tmp_path / "set")


def test_lmdb_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Lmdb(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"data\.mdb"):
        Lmdb(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"rubbish" * 2000)
    with pytest.raises(ValueError, match="not an LMDB"):
        Lmdb(tmp_path)
    make_lmdb(tmp_path / "empty", {})
    with pytest.raises(ValueError, match="holds no image"):
        Lmdb(tmp_path / "empty")
