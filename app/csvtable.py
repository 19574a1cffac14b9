"""Reads CSV as table programs write it: the first line has the names of the columns, also of a single one. Knows no file and no page."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}  # of cells; where the decimal mark is a comma, table programs write semicolons
DECLARED = re.compile(r'"?sep=([^"\r\n])"?(?=[\r\n]|\Z)', re.IGNORECASE)  # a first line that tells Excel the separator

SHOWN_CHARS = 60  # of a name


class Unclosed(csv.Error):
    """A quotation mark opens a cell and none closes it. The words are a clause with the number of the line."""


class Repeated(csv.Error):
    """Several columns have the name that is looked for. The words are a clause with the name."""


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` has `(line, cells)` of each row below the names. For one with too many cells, a clause says so. Lines are numbered as in the
    file, from 1; a row has the number of the line that it begins in. Reading on raises `Unclosed`.
    """

    names: list[str]
    line: int  # that the names are in
    rows: Iterator[tuple[int, list[str] | str]]


@dataclass(frozen=True, slots=True)
class Column:
    index: int
    note: str = ""  # a clause that says so where its name is none of those that were looked for


def read_table(content: str) -> Table:
    """Commas, semicolons or tabs divide the cells: whatever divides the first line into most, or what `sep=;` above it says. Under a single
    name a whole row is one text. Blank lines, and the empty cells that table programs add at the end of a row, are left out. Raises
    `Unclosed`.
    """
    csv.field_size_limit(max(len(content), csv.field_size_limit()))  # of the whole process: it is only raised
    declared = DECLARED.match(content)
    separator = declared[1] if declared else max(SEPARATORS, key=lambda each: _width(content, each))
    found = _rows(content, separator)
    if declared:
        next(found)
    line, head = next(found, (1, []))
    names = _trimmed(head)
    return Table(names, line, ((number, _cells(row, len(names), separator)) for number, row in found))


def column_of(names: Sequence[str], wanted: Sequence[str]) -> Column | None:
    """The first of the `wanted` names that there is, whatever its capitals and the white space around it; else the only column that has a
    name. Raises `Repeated`.
    """
    for want in wanted:
        alike = [index for index, name in enumerate(names) if _plain(name) == _plain(want)]
        if alike:
            found = [index for index in alike if names[index] == want] or alike
            if len(found) > 1:
                raise _repeated(names[found[0]].strip(), len(found))
            return Column(found[0])
    named = [index for index, name in enumerate(names) if name.strip()]
    if len(named) != 1:
        return None
    name = names[named[0]].strip()
    shown = name if len(name) <= SHOWN_CHARS else f"{name[:SHOWN_CHARS]}…"
    advice = f"if it is a text, put a line with the word {wanted[0]} above it"
    return Column(named[0], f"the first line, “{shown}”, was read as the name of the column; {advice}")


def check_single(names: Sequence[str], name: str) -> None:
    """Raises `Repeated` for a name that several columns have."""
    if names.count(name) > 1:
        raise _repeated(name, names.count(name))


def _repeated(name: str, count: int) -> Repeated:
    return Repeated(f"{count} columns are named {name}; give all but one of them other names")


def _plain(name: str) -> str:
    return name.strip().casefold()


def _width(content: str, separator: str) -> int:
    """How many cells the first line that is not blank has."""
    return len(next(filter(None, csv.reader(io.StringIO(content, newline=""), delimiter=separator)), []))


def _rows(content: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not blank, with the number of the line that it begins in. Raises `Unclosed`."""
    ended = False

    def lines() -> Iterator[str]:
        nonlocal ended
        yield from io.StringIO(content, newline="")
        ended = True

    reader, begins = csv.reader(lines(), delimiter=separator), 1
    for row in reader:
        if ended:  # the reader wanted one more line for this row
            raise Unclosed(f"line {begins:,}: a quotation mark opens a cell and none closes it")
        if row:
            yield begins, row
        begins = reader.line_num + 1


def _cells(row: list[str], width: int, separator: str) -> list[str] | str:
    cells = _trimmed(row)
    if width == 1:
        return [separator.join(cells)]
    if len(cells) > width:
        advice = f"put a text that has a {SEPARATORS.get(separator, separator)} in quotation marks"
        return f"it has {len(cells)} cells, the first line has {width}; {advice}"
    return row[:width]


def _trimmed(row: Sequence[str]) -> list[str]:
    return list(row[: max((number for number, cell in enumerate(row, 1) if cell.strip()), default=0)])
