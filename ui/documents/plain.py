"""Reads files of plain text, and tables of texts: .txt, .md, .csv, .jsonl. Knows no HTTP."""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from app import plaintext
from app.csvtable import Repeated, Unclosed, column_of, read_table
from ui.documents.worker import MAX_CHARACTERS, Unreadable

COLUMNS = ("text", "content", "essay", "answer", "body")  # those a text is looked for in, the first one first
MAX_ROWS = 200
TO_THE_JOBS = {  # where all of a file's texts are scored
    "row": "To score them all, choose the file on the Jobs tab.",
    "line": "To score them all, save them as .csv and choose that on the Jobs tab.",
}
EMPTY = "its text is empty"
NO_TEXT = "This is no text file: it has bytes that no text has. Save the text as .txt in UTF-8."
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
    """In the encodings of `app.plaintext`; a note says where it is one that was guessed. Raises `Unreadable`."""
    try:
        text, encoding = plaintext.recognize(data)
    except plaintext.UnknownEncoding:
        raise Unreadable("This file is not in an encoding that can be told. Save it as UTF-8 and upload it again.") from None
    except plaintext.NotText:
        raise Unreadable(NO_TEXT) from None
    if plaintext.has_controls(text):
        raise Unreadable(NO_TEXT)
    return text, "The file is not UTF-8; it was read as Windows-1252." if encoding == plaintext.LEGACY else ""


def csv_parts(name: str, content: str, note: str) -> Reading:
    try:
        table = read_table(content)
        column = column_of(table.names, COLUMNS)
        if column is None:
            shown = ", ".join(filter(str.strip, table.names[:8])) or "none"
            raise Unreadable(f"No column is named text (its columns: {shown[:200]}). Name the column with the texts text.")
        if column.note:
            note = f"{note} {column.note[0].upper()}{column.note[1:]}.".strip()
        return _reading((_row_part(f"{name}, line {number}", cells, column.index) for number, cells in table.rows), "row", note)
    except (Unclosed, Repeated) as error:
        raise Unreadable(f"{str(error)[0].upper()}{str(error)[1:]}.") from None
    except csv.Error as error:
        raise Unreadable(f"This is no valid CSV file: {error}. Save it again as CSV in UTF-8.") from None


def _row_part(place: str, cells: list[str] | str, column: int) -> Part:
    if isinstance(cells, str):
        return Part(place, problem=f"This row cannot be read: {cells}.")
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


def _reading(found: Iterable[Part], place: Literal["row", "line"], note: str) -> Reading:
    waiting = iter(found)
    parts = list(islice(waiting, MAX_ROWS))
    if left := sum(1 for _ in waiting):
        note = f"{note} Only the first {MAX_ROWS:,} of {MAX_ROWS + left:,} {place}s were read. {TO_THE_JOBS[place]}".strip()
    if not parts:
        raise Unreadable(f"This file has no {place} with a text. {note}".strip())
    return Reading(tuple(parts), note)


def _part(name: str, value: object, lacking: str) -> Part:
    """`lacking` says, as a clause, what is wrong where there is no text."""
    if not isinstance(value, str) or not value.strip():
        return Part(name, problem=f"There is no text here: {lacking}.")
    if len(value) > MAX_CHARACTERS:
        return Part(name, problem=f"This text has more than {MAX_CHARACTERS:,} characters. Upload it as a file of its own.")
    return Part(name, value)
