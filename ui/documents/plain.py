"""Reads files of plain text, and tables of texts: .txt, .md, .csv, .jsonl. Knows no HTTP."""

import csv
import io
import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ui.documents.worker import MAX_CHARACTERS, Unreadable

COLUMNS = ("text", "content", "essay", "answer", "body")  # those a text is looked for in, the first one first
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}  # of cells; where the decimal mark is a comma, table programs write semicolons
MAX_ROWS = 200
EMPTY = "its text is empty"
NO_OBJECT = "the line is no JSON object with a field text"


@dataclass(frozen=True, slots=True)
class Part:
    """One text of a file, or the `problem` of the row that has none."""

    name: str
    text: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """The texts of a file, and a note on what was left out of it or assumed."""

    parts: tuple[Part, ...]
    note: str = ""


def decode(data: bytes) -> tuple[str, str]:
    """UTF-8, UTF-16 with its mark, or Windows-1252, which the note then says. Raises `Unreadable` for what is no text."""
    try:
        if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            return data.decode("utf-16"), ""
        return _checked(data.removeprefix(BOM_UTF8).decode()), ""
    except UnicodeDecodeError:
        pass
    try:
        return _checked(data.decode("cp1252")), "The file is not UTF-8; it was read as Windows-1252."
    except UnicodeDecodeError:
        raise Unreadable("This file is not in an encoding that can be told. Save it as UTF-8 and upload it again.") from None


def _checked(text: str) -> str:
    if any(ord(letter) < 32 and letter not in "\t\n\r\f\v\x1a" for letter in text):
        raise Unreadable("This is no text file: it has bytes that no text has. Save the text as .txt in UTF-8.")
    return text


def csv_parts(name: str, content: str, note: str) -> Reading:
    csv.field_size_limit(max(len(content), csv.field_size_limit()))  # of the whole process: it is only raised
    try:
        separator = max(SEPARATORS, key=lambda each: len(next(_rows(content, each), [])))
        rows = _rows(content, separator)
        names = [cell.strip().lower() for cell in _trimmed(next(rows, []))]
        column = _column(names)
        if names[column] not in COLUMNS:
            note = f"{note} The first line, “{names[column][:60]}”, was read as the name of the column.".strip()
        parts = (_row_part(f"{name}, row {number}", row, names, column, separator) for number, row in enumerate(rows, 2))
        return _reading(parts, "row", note)
    except csv.Error as error:
        raise Unreadable(f"This is no valid CSV file: {error}. Save it again as CSV in UTF-8.") from None


def _rows(content: str, separator: str) -> Iterator[list[str]]:
    """The cells of each line that is not blank."""
    return filter(None, csv.reader(io.StringIO(content, newline=""), delimiter=separator))


def _trimmed(row: list[str]) -> list[str]:
    """Without the empty cells at its end, which table programs add."""
    width = max((number for number, cell in enumerate(row, 1) if cell.strip()), default=0)
    return row[:width]


def _column(names: Sequence[str]) -> int:
    """The index of the column that has the texts."""
    by_name = {name: index for index, name in enumerate(names) if name}
    found = next((by_name[name] for name in COLUMNS if name in by_name), None)
    if found is None and len(by_name) == 1:
        found = next(iter(by_name.values()))
    if found is None:
        shown = ", ".join(list(by_name)[:8]) or "none"
        raise Unreadable(f"No column is named text (its columns: {shown[:200]}). Name the column with the texts text.")
    return found


def _row_part(place: str, row: list[str], names: Sequence[str], column: int, separator: str) -> Part:
    """A row of a table with one column is its text, whatever it has of separators; elsewhere too many cells are a problem."""
    cells = _trimmed(row)
    if len(names) == 1:
        return _part(place, separator.join(cells), EMPTY)
    if len(cells) > len(names):
        counts = f"This row has {len(cells)} cells, the first line has {len(names)}."
        return Part(place, problem=f"{counts} Put a text that has a {SEPARATORS[separator]} in quotation marks.")
    return _part(place, cells[column] if column < len(cells) else "", EMPTY)


def jsonl_parts(name: str, content: str, note: str) -> Reading:
    return _reading((_part(f"{name}, line {number}", value, NO_OBJECT) for number, value in _json_lines(content)), "line", note)


def _json_lines(content: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield number, next((value[key] for key in COLUMNS if key in value), None) if isinstance(value, dict) else value


def _reading(found: Iterable[Part], place: str, note: str) -> Reading:
    parts: list[Part] = []
    for part in found:
        if len(parts) == MAX_ROWS:
            note = f"{note} Only the first {MAX_ROWS} {place}s were read. Split the file to score the rest.".strip()
            break
        parts.append(part)
    if not parts:
        raise Unreadable(f"This file has no {place} with a text.")
    return Reading(tuple(parts), note)


def _part(name: str, value: object, lacking: str) -> Part:
    """`lacking` says, as a clause, what is wrong where there is no text."""
    if not isinstance(value, str) or not value.strip():
        return Part(name, problem=f"There is no text here: {lacking}.")
    if len(value) > MAX_CHARACTERS:
        return Part(name, problem=f"This text has more than {MAX_CHARACTERS:,} characters. Upload it as a file of its own.")
    return Part(name, value)
