"""Reads CSV as table programs write it. Knows no file, no page and no names of columns."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}  # of cells; where the decimal mark is a comma, table programs write semicolons


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` has `(number, cells)` of each row below the first line, which is number 1. For one with too many, a clause says so."""

    names: list[str]  # in the first line
    rows: Iterator[tuple[int, list[str] | str]]


def read_table(content: str) -> Table:
    """Commas, semicolons or tabs divide the cells: whatever divides the first line into most. Under a single name a whole row is one text.

    Blank lines, and the empty cells that table programs add at the end of a row, are left out.
    """
    csv.field_size_limit(max(len(content), csv.field_size_limit()))  # of the whole process: it is only raised

    def lines(separator: str) -> Iterator[list[str]]:
        return filter(None, csv.reader(io.StringIO(content, newline=""), delimiter=separator))

    separator = max(SEPARATORS, key=lambda each: len(next(lines(each), [])))
    found = lines(separator)
    names = _trimmed(next(found, []))
    return Table(names, ((number, _cells(row, len(names), separator)) for number, row in enumerate(found, 2)))


def _cells(row: list[str], width: int, separator: str) -> list[str] | str:
    cells = _trimmed(row)
    if width == 1:
        return [separator.join(cells)]
    if len(cells) > width:
        advice = f"put a text that has a {SEPARATORS[separator]} in quotation marks"
        return f"it has {len(cells)} cells, the first line has {width}; {advice}"
    return row[:width]


def _trimmed(row: Sequence[str]) -> list[str]:
    return list(row[: max((number for number, cell in enumerate(row, 1) if cell.strip()), default=0)])
