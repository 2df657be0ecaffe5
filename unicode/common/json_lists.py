"""JSON lists of any size, element by element: read in bounded memory, written atomically."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from unicode.common.files import atomic_write

CHUNK_CHARS = 1 << 20
MAX_RECORD_CHARS = 1 << 26  # A record that does not end within this many characters (64 Mi) is a damaged file, not a record
_SPACES = re.compile(r"[ \t\n\r]*")
_AFTER_ELEMENT = frozenset(" \t\n\r,]")
dump_line = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
"""JSON text of an element on one line, readable (not escaped) beyond ASCII. ValueError for NaN and infinity."""


def read_json_list(path: str | Path, *, chunk_chars: int = CHUNK_CHARS, max_record_chars: int = MAX_RECORD_CHARS) -> Iterator[Any]:
    """Yield the elements of a file that holds one JSON list; memory is bounded by the largest element, not by the file.

    Records that come before a damaged one are yielded before the error is raised. Raises FileNotFoundError: there is no such file. Raises
    ValueError: the file is not a JSON list, is cut off or damaged; the message names file, record (from 0) and line.
    """
    with open(path, encoding="utf-8-sig") as file:
        yield from (element for element, _ in _ListReader(file, str(path), chunk_chars, max_record_chars).elements())


def locate_json_list(path: str | Path, *, chunk_chars: int = CHUNK_CHARS) -> Iterator[tuple[int, int]]:
    """Yield for each element of a JSON list where in the file it begins and ends, in bytes; errors as `read_json_list`."""
    with open(path, "rb") as binary:
        begin = len(codecs.BOM_UTF8) if binary.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
    # one character per byte: the marks of JSON are ASCII, and no byte of a longer UTF-8 character looks like one of them
    with open(path, encoding="latin-1", newline="") as file:
        file.seek(begin)
        for _, (start, end) in _ListReader(file, str(path), chunk_chars, MAX_RECORD_CHARS).elements():
            yield begin + start, begin + end


class JsonListWriter:
    """Writes the elements of one JSON list, an element a line, to an open text file. Made by `open_json_list`."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.count, self.finished = file, 0, False

    def write_line(self, line: str) -> None:
        """Append one element that is already JSON on a single line, as `dump_line` makes it."""
        self.file.write((",\n" if self.count else "[\n") + line)
        self.count += 1

    def finish(self) -> None:
        """Close the list and flush. Called on each of several files before the first takes its name, it lets a full disk leave none."""
        if not self.finished:
            self.finished = True
            self.file.write("\n]\n" if self.count else "[]\n")
            self.file.flush()


@contextmanager
def open_json_list(path: str | Path) -> Iterator[JsonListWriter]:
    """Write a JSON list element by element; the file takes its name when the block ends without an error."""
    with atomic_write(path) as file:
        writer = JsonListWriter(file)
        yield writer
        writer.finish()


def write_json_list(path: str | Path, elements: Iterable[Any]) -> int:
    """Write an iterable as one JSON list, atomically, and return the number of elements."""
    with open_json_list(path) as writer:
        for element in elements:
            writer.write_line(dump_line(element))
    return writer.count


class _ListReader:
    """One pass over the text of a JSON list: `text[at:]` is what was read and not yet parsed."""

    def __init__(self, file: IO[str], name: str, chunk_chars: int, max_record_chars: int) -> None:
        self.file, self.name, self.chunk_chars, self.max_record_chars = file, name, chunk_chars, max_record_chars
        self.text, self.at, self.ended = "", 0, False
        self.index, self.dropped, self.dropped_lines = 0, 0, 0  # finished elements; characters and lines before `text`
        self.decoder = json.JSONDecoder(parse_constant=lambda constant: self._fail(f"{constant} is not JSON"))

    def elements(self) -> Iterator[tuple[Any, tuple[int, int]]]:
        """Yield each element and where it begins and ends, in characters."""
        found = self._next_char()
        if found != "[":
            self._read(20)
            what = "is empty" if not found else f"begins with {self.text[self.at : self.at + 20]!r}"
            raise ValueError(f"{self.name} {what}; expected a JSON list of records: [{{...}}, {{...}}]")
        self.at += 1
        separator = self._next_char()
        while separator != "]":
            self._next_char()
            start = self.dropped + self.at
            element = self._element()
            yield element, (start, self.dropped + self.at)
            self.index += 1
            separator = self._next_char()
            if separator not in (",", "]"):
                found = f"found {separator!r}" if separator else "the file is cut off"
                self._fail(f"expected ',' or ']' after record {self.index - 1}, {found}")
            self.at += separator == ","
        self.at += 1
        if self._next_char():
            self._fail("something follows the end of the list")

    def _element(self) -> Any:
        """Parse the element at the current place, reading on while it may be incomplete."""
        while True:
            too_long = len(self.text) - self.at > self.max_record_chars
            try:
                element, end = self.decoder.raw_decode(self.text, self.at)
                # "1" before "." may be half a number: an element is complete if what follows may follow an element
                if self.ended or too_long or self.text[end : end + 1] in _AFTER_ELEMENT:
                    self.at = end
                    return element
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or _SPACES.fullmatch(self.text, error.pos)
                if self.ended:
                    self._fail("the file is cut off" if cut else error.msg, at=error.pos)
                if too_long:
                    self._fail(f"it does not end within {self.max_record_chars} characters; is the file damaged?" if cut else error.msg)
            except RecursionError:
                self._fail("it is nested too deeply")
            except ValueError as error:  # a number of thousands of digits
                if self.name in str(error):
                    raise
                self._fail(str(error).partition(";")[0])
            self._read(max(self.chunk_chars, len(self.text) - self.at))  # doubling: a long record is parsed in linear time

    def _next_char(self) -> str:
        """Skip white space and return the character there without taking it; '' at the end of the file."""
        while True:
            match = _SPACES.match(self.text, self.at)
            assert match
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read(self.chunk_chars)

    def _read(self, num_chars: int) -> None:
        try:
            more = self.file.read(num_chars)
        except UnicodeDecodeError as error:
            self._fail(f"the file is not UTF-8 text ({error.reason})")
        self.dropped += self.at
        self.dropped_lines += self.text.count("\n", 0, self.at)
        self.text, self.at, self.ended = self.text[self.at :] + more, 0, not more

    def _fail(self, what: str, *, at: int | None = None) -> NoReturn:
        line = 1 + self.dropped_lines + self.text.count("\n", 0, self.at if at is None else at)
        raise ValueError(f"{self.name}, record {self.index}, line {line}: {what}") from None
