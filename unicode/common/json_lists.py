"""JSON lists of any size, record by record: read in bounded memory, written atomically."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from unicode.common.files import atomic_write

CHUNK_CHARS = 1 << 20
MAX_RECORD_CHARS = 1 << 26
"""A record that does not end within this many characters (64 Mi) is a damaged file, not a record."""
_SPACE = " \t\n\r"
_BYTE_ORDER_MARK = "\u00ef\u00bb\u00bf"  # read as Latin-1
_AFTER_ELEMENT = frozenset(_SPACE + ",]")
_TOKEN_CHARS = 32  # a fault this close to the end of what was read may be a token that was cut in two


def read_json_list(path: str | Path, *, chunk_chars: int = CHUNK_CHARS, max_record_chars: int = MAX_RECORD_CHARS) -> Iterator[Any]:
    """Yield the elements of a file that holds one JSON list; memory is bounded by the largest element, not by the file.

    Records that come before a damaged one are yielded before the error is raised.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a JSON list, is cut off or damaged; the message names file, record (from 0) and line.
    """
    with open(path, encoding="utf-8-sig") as file:
        yield from _ListReader(file, str(path), chunk_chars, max_record_chars).elements()


def locate_json_list(path: str | Path, *, chunk_chars: int = CHUNK_CHARS) -> Iterator[tuple[int, int]]:
    """Yield for each element of a JSON list where in the file it begins and ends, in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_json_list`.
    """
    # one character per byte: the marks of JSON are ASCII, and no byte of a longer UTF-8 character looks like one of them
    with open(path, encoding="latin-1", newline="") as file:
        mark = file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK
        if not mark:
            file.seek(0)
        reader, shift = _ListReader(file, str(path), chunk_chars, MAX_RECORD_CHARS), len(_BYTE_ORDER_MARK) if mark else 0
        for _ in reader.elements():
            yield reader.span[0] + shift, reader.span[1] + shift


class JsonListWriter:
    """Writes the elements of one JSON list, an element a line, to an open text file. Made by `open_json_list`."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.count = 0
        self.finished = False

    def write(self, element: Any) -> None:
        """Append one element. ValueError for what JSON cannot hold (NaN, infinity)."""
        self.write_line(dump_line(element))

    def write_line(self, line: str) -> None:
        """Append one element that is already JSON on a single line, as `dump_line` makes it."""
        self.file.write(",\n" if self.count else "[\n")
        self.file.write(line)
        self.count += 1

    def finish(self) -> None:
        """Close the list and flush. `open_json_list` does it; who writes several files does it for all of them before the
        first takes its name, so that a full disk leaves none of them."""
        if not self.finished:
            self.finished = True
            self.file.write("\n]\n" if self.count else "[]\n")
            self.file.flush()


def dump_line(element: Any) -> str:
    """Return `element` as JSON on one line, readable (not escaped) beyond ASCII. ValueError for NaN and infinity."""
    return _ENCODER.encode(element)


@contextmanager
def open_json_list(path: str | Path) -> Iterator[JsonListWriter]:
    """Write a JSON list element by element; the file takes its name when the block ends well (see `records.atomic_write`)."""
    with atomic_write(path) as file:
        writer = JsonListWriter(file)
        yield writer
        writer.finish()


def write_json_list(path: str | Path, elements: Iterable[Any]) -> int:
    """Write an iterable as one JSON list, atomically, and return the number of elements."""
    with open_json_list(path) as writer:
        for element in elements:
            writer.write(element)
    return writer.count


class _ListReader:
    """One pass over the text of a JSON list: `text[at:]` is what was read and not yet parsed."""

    def __init__(self, file: IO[str], name: str, chunk_chars: int, max_record_chars: int) -> None:
        self.file, self.name = file, name
        self.chunk_chars, self.max_record_chars = chunk_chars, max_record_chars
        self.text, self.at, self.ended = "", 0, False
        self.index, self.lines_before = 0, 1
        self.dropped, self.span = 0, (0, 0)  # characters before `text`; where the element yielded last begins and ends in the file
        self.decoder = json.JSONDecoder(parse_constant=self._refuse_constant)

    def elements(self) -> Iterator[Any]:
        found = self._next_char()
        if found != "[":
            self._read(_TOKEN_CHARS)
            start = self.text[self.at : self.at + 20]
            what = "is empty" if not found else f"begins with {start!r}"
            raise ValueError(f"{self.name} {what}; expected a JSON list of records: [{{...}}, {{...}}]")
        self.at += 1
        if self._next_char() == "]":
            self.at += 1
        else:
            yield from self._elements_of_filled_list()
        if self._next_char():
            self._fail("something follows the end of the list")

    def _elements_of_filled_list(self) -> Iterator[Any]:
        while True:
            self._next_char()
            start = self.dropped + self.at
            element = self._element()
            self.span = start, self.dropped + self.at
            yield element
            self.index += 1
            separator = self._next_char()
            if separator not in (",", "]"):
                found = f"found {separator!r}" if separator else "the file is cut off"
                self._fail(f"expected ',' or ']' after record {self.index - 1}, {found}")
            self.at += 1
            if separator == "]":
                return

    def _element(self) -> Any:
        """Parse the element at the current place, reading on while it may be incomplete."""
        while True:
            try:
                element, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or (
                    not self.text[error.pos :].strip(_SPACE) if self.ended else error.pos > len(self.text) - _TOKEN_CHARS
                )
                if self.ended or not cut:
                    self.lines_before += self.text.count("\n", self.at, error.pos)
                    self._fail("the file is cut off" if cut else error.msg)
            except RecursionError:
                self._fail("it is nested too deeply")
            else:
                # "1" followed by "." may be half a number: the element is whole when what follows may follow an element
                if self.text[end : end + 1] in _AFTER_ELEMENT or self.ended or end < len(self.text) - _TOKEN_CHARS:
                    self.lines_before += self.text.count("\n", self.at, end)
                    self.at = end
                    return element
            if len(self.text) - self.at > self.max_record_chars:
                self._fail(f"it does not end within {self.max_record_chars} characters; is the file damaged?")
            self._read(max(self.chunk_chars, len(self.text) - self.at))  # doubling: a long record is parsed in linear time

    def _next_char(self) -> str:
        """Skip white space and return the character there without taking it; '' at the end of the file."""
        while True:
            while self.at < len(self.text):
                char = self.text[self.at]
                if char not in _SPACE:
                    return char
                self.lines_before += char == "\n"
                self.at += 1
            if self.ended:
                return ""
            self._read(self.chunk_chars)

    def _read(self, num_chars: int) -> None:
        try:
            more = self.file.read(num_chars)
        except UnicodeDecodeError as error:
            self._fail(f"the file is not UTF-8 text ({error.reason})")
        self.dropped += self.at
        self.text, self.at, self.ended = self.text[self.at :] + more, 0, not more

    def _refuse_constant(self, constant: str) -> NoReturn:
        self._fail(f"{constant} is not JSON")

    def _fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.name}, record {self.index}, line {self.lines_before}: {what}") from None


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False)
