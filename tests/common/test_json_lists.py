"""JSON lists as streams: the same elements as json.load for any chunk size, faults named, a failed write leaves no file."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from unicode.common.json_lists import dump_line, locate_json_list, read_json_list, write_json_list


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kinds = ["text", "number", "float", "none", "bool"] + (["list", "object"] if depth < 3 else [])
    match rng.choice(kinds):
        case "text":
            return "".join(rng.choices('ab \\"/\n\t{}[],:é漢😀\u2028', k=rng.randrange(12)))
        case "number":
            return rng.randrange(-(10**12), 10**12)
        case "float":
            return rng.random() * 10 ** rng.randrange(-9, 9)
        case "bool":
            return rng.random() < 0.5
        case "list":
            return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case "object":
            return {f"k{index}\n": random_value(rng, depth + 1) for index in range(rng.randrange(4))}
    return None


@pytest.mark.parametrize("chunk_chars", [1, 2, 3, 7, 64, 1 << 20])
def test_equals_json_load(tmp_path: Path, chunk_chars: int) -> None:
    rng = random.Random(chunk_chars)
    for trial in range(30):
        elements = [random_value(rng) for _ in range(rng.randrange(12))]
        indent, ascii_only = rng.choice([None, 0, 3]), rng.random() < 0.5
        path = tmp_path / f"{trial}.json"
        text = json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
        path.write_text(rng.choice(["", "\n ", "\ufeff"]) + text + "\n" * rng.randrange(3), encoding="utf-8")
        assert list(read_json_list(path, chunk_chars=chunk_chars)) == elements


def test_write_then_read(tmp_path: Path) -> None:
    rng = random.Random(0)
    for elements in ([], [1], [random_value(rng) for _ in range(50)]):
        assert write_json_list(tmp_path / "a.json", iter(elements)) == len(elements)
        assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == elements
        assert list(read_json_list(tmp_path / "a.json")) == elements


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a JSON list"),
        ('{"a": 1}', "begins with '{\"a\": 1}'; expected a JSON list"),
        ("hello", "begins with 'hello'"),
        ("[", "record 0, line 1: the file is cut off"),
        ('[{"a": 1}, {"b"', "record 1, line 1: the file is cut off"),
        ('[1, "never closed]', "record 1, line 1: the file is cut off"),
        ("[1, 2", "record 2, line 1: expected ',' or ']' after record 1, the file is cut off"),
        ("[1 2]", "record 1, line 1: expected ',' or ']' after record 0, found '2'"),
        ("[1,\n2,\n]", "record 2, line 3: Expecting value"),
        ("[1] x", "record 1, line 1: something follows the end of the list"),
        ("[] []", "something follows"),
        ('[1,\n\n{"a": "tab\there"}]', "record 1, line 3: Invalid control character"),
        ("[1, NaN]", "record 1, line 1: NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[1, nul]", "record 1, line 1: Expecting value"),
        ("[1, " + "9" * 5000 + "]", "record 1, line 1: Exceeds the limit (4300 digits)"),
    ],
)
@pytest.mark.parametrize("chunk_chars", [1, 5, 1 << 20])
def test_faults_are_named(tmp_path: Path, text: str, message: str, chunk_chars: int) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        list(read_json_list(path, chunk_chars=chunk_chars if len(text) < 1000 else 1 << 20))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_truncated_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = json.dumps([{"id": "é", "n": [1.5e3, True]}, "x\\\u00fc", 7])
    for end in range(len(whole)):
        path = tmp_path / "cut.json"
        path.write_text(whole[:end])
        with pytest.raises(ValueError, match=r"cut\.json"):
            list(read_json_list(path, chunk_chars=4))


def test_records_before_the_fault_are_given(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text("[1, 2, x]")
    stream = read_json_list(path)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="record 2"):
        next(stream)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.json"
    path.write_bytes(b'["ok", "\xfc"]')
    with pytest.raises(ValueError, match=r"latin\.json.*not UTF-8"):
        list(read_json_list(path))


def test_endless_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text('["' + "a" * 5000 + '"]')
    assert list(read_json_list(path, chunk_chars=16)) == ["a" * 5000]
    with pytest.raises(ValueError, match=r"record 0.*does not end within 1000"):
        list(read_json_list(path, chunk_chars=16, max_record_chars=1000))


def test_memory_is_that_of_a_record_not_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    write_json_list(path, ({"id": str(number), "text": "x" * 500} for number in range(20_000)))
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_json_list(path, chunk_chars=1 << 14))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 1 << 20 < path.stat().st_size / 10


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_json_list(tmp_path / "none.json"))


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_list(path, [1])
    with pytest.raises(ValueError):
        write_json_list(path, [2, float("nan")])
    assert json.loads(path.read_text()) == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_line_is_one_line() -> None:
    assert dump_line({"a": "x\ny é"}) == '{"a": "x\\ny é"}'


@pytest.mark.parametrize("chunk_chars", [1, 7, 1 << 20])
def test_located_bytes_are_the_elements(tmp_path: Path, chunk_chars: int) -> None:
    rng = random.Random(chunk_chars)
    for trial in range(20):
        elements = [random_value(rng) for _ in range(rng.randrange(8))]
        text = json.dumps(elements, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.3)
        path = tmp_path / f"{trial}.json"
        path.write_bytes((rng.choice(["", "\r\n ", "\ufeff"]) + text.replace("\n", "\r\n")).encode())
        content = path.read_bytes()
        assert [json.loads(content[start:end]) for start, end in locate_json_list(path, chunk_chars=chunk_chars)] == elements


def test_locating_names_faults(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text('[{"a": 1},\n{"a": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"cut.json, record 1, line 2: the file is cut off"):
        list(locate_json_list(path))
