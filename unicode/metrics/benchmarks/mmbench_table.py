"""MMBench's table on disk: tab-separated rows in, the submission server's workbook out."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

Row = Mapping[str, str]
LETTERS = "ABCD"
REQUIRED = ("index", "question", "A", "B", "image")
MAY_BE_EMPTY = ("hint", *LETTERS, "answer")
NOT_UPLOADED = frozenset({"hint", "category", "source", "image", "comment", "l2-category"})
PREDICTION_COLUMN = 6
"""Where LLaVA puts the prediction among the columns that are left: after index, question and A to D."""
NO_VALUE = frozenset({"", "#n/a", "#n/a n/a", "n/a", "na", "<na>", "#na", "null", "nan", "-nan", "none"})
"""Cells, in lower case, that stand for nothing: what LLaVA's reader takes for empty."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows by column; cells of `MAY_BE_EMPTY` that stand for nothing are "".

    Raises:
        ValueError: a column is not there, a row is cut off, an index is no number or is there twice; the message names it.
    """
    csv.field_size_limit(sys.maxsize)  # a picture is one cell
    rows: dict[str, dict[str, str]] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        columns = list(reader.fieldnames or ())
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}, it has {columns[:15]}; is it a tab-separated table of MMBench?")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, row {number} (index {row['index']}) has not {len(columns)} cells; was the table downloaded whole?"
                )
            if not row["index"].isdigit() or row["index"] in rows:
                raise ValueError(f"{path}, row {number} has the index {row['index']!r}; expected a number that no other row has")
            empty = {name: "" for name in MAY_BE_EMPTY if row.get(name, "").strip().lower() in NO_VALUE}
            rows[row["index"]] = row | empty
    if not rows:
        raise ValueError(f"{path} has no rows; was the table downloaded whole?")
    return list(rows.values())


def row_options(row: Row) -> list[str]:
    """Return the options of a row: A, B, ... up to the first empty one."""
    options = [row.get(letter, "") for letter in LETTERS]
    return options[: options.index("")] if "" in options else options


def write_workbook(rows: Sequence[Row], predictions: Mapping[str, str]) -> bytes:
    """Return the xlsx file for the server: the table without pictures and categories, with `prediction` as its seventh column.

    Args:
        predictions: the raw answer by index; a row without one gets an empty cell.
    """
    columns = [name for name in rows[0] if name not in NOT_UPLOADED]
    columns.insert(PREDICTION_COLUMN, "prediction")
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(columns)
    for row in rows:
        texts = {**row, "prediction": predictions.get(row["index"], "")}
        cells = []
        for name in columns:
            cell = WriteOnlyCell(sheet, None)
            if name == "index":
                cell.value = int(texts[name])
            elif texts[name]:
                cell.value = ILLEGAL_CHARACTERS_RE.sub("", texts[name])
                cell.data_type = "s"  # an answer that begins with "=" is no formula
            cells.append(cell)
        sheet.append(cells)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()
