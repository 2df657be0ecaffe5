"""The shuffle on disk: all records once, in an order of seed and content, and nothing left behind when the disk is full."""

import json
import random
import resource
from itertools import pairwise
from pathlib import Path

import pytest

from unicode.annotations.build import open_spool
from unicode.common.json_lists import dump_line

RECORDS = [{"id": str(number), "text": "é" * (number % 7)} for number in range(500)]


def shuffled(path: Path, records: list[dict[str, str]], *, seed: int = 0) -> bytes:
    with open_spool(path.parent, seed=seed) as spool:
        for record in records:
            spool.add(record)
        assert len(spool) == len(records)
        assert spool.write({path: (0,)}) == {path: len(records)}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return path.read_bytes()


def test_all_records_once_in_another_order(tmp_path: Path) -> None:
    content = json.loads(shuffled(tmp_path / "a.json", RECORDS))
    assert content != RECORDS
    assert sorted(content, key=lambda record: int(record["id"])) == RECORDS
    moved = sum(abs(place - int(record["id"])) for place, record in enumerate(content)) / len(content)
    assert 130 < moved < 205  # a uniform shuffle moves a record by a third of the length


def test_order_is_that_of_seed_and_content(tmp_path: Path) -> None:
    content = shuffled(tmp_path / "a.json", RECORDS)
    turned = random.Random(1).sample(RECORDS, len(RECORDS))
    assert shuffled(tmp_path / "a.json", turned) == content
    assert shuffled(tmp_path / "a.json", RECORDS, seed=1) != content
    fewer = json.loads(shuffled(tmp_path / "a.json", RECORDS[:300]))
    assert fewer == [record for record in json.loads(content) if int(record["id"]) < 300]


def test_groups_go_to_their_files(tmp_path: Path) -> None:
    both, odd, even = (tmp_path / f"{name}.json" for name in ("both", "odd", "even"))
    with open_spool(tmp_path, seed=0) as spool:
        for number, record in enumerate(RECORDS):
            spool.add(record, group=number % 2)
        assert spool.write({both: (0, 1), odd: (1,), even: (0,)}) == {both: 500, odd: 250, even: 250}
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in (both, odd, even)]
    assert contents[1] == [record for record in contents[0] if int(record["id"]) % 2]
    assert contents[2] == [record for record in contents[0] if int(record["id"]) % 2 == 0]


def test_copies_do_not_stand_side_by_side(tmp_path: Path) -> None:
    with open_spool(tmp_path, seed=0) as spool:
        for record in RECORDS:
            for copy in range(2):
                spool.add(record, copy=copy)
        spool.write({tmp_path / "a.json": (0,)})
    names = [record["id"] for record in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))]
    assert sum(one == other for one, other in pairwise(names)) < 10


def test_empty(tmp_path: Path) -> None:
    assert shuffled(tmp_path / "a.json", []) == b"[]\n"


def fill_and_write(folder: Path, records: list[dict[str, str]], *paths: Path) -> None:
    with open_spool(folder, seed=0) as spool:
        for record in records:
            spool.add(record)
        spool.write(dict.fromkeys(paths, (0,)))


@pytest.mark.parametrize("room", [-2_000_000, 100])  # for the temporary file, for the separators of the output
def test_full_disk_leaves_what_was_there(tmp_path: Path, room: int) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text("before")
    records = [{"id": str(number), "text": "y" * 1000} for number in range(2500)]
    limit = sum(len(dump_line(record)) for record in records) + room
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # writing on gives an OSError, as a full disk does
    try:
        with pytest.raises(OSError, match=r"no room|could not write") as caught:
            fill_and_write(tmp_path, records, path, other)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename in (str(tmp_path), str(path), str(other))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "before"
