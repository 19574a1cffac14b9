"""Reads files of plain text, and tables of texts: .txt, .md, .csv, .jsonl. Knows no HTTP."""

import csv
import io
import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ui.documents.worker import MAX_CHARACTERS, Unreadable

COLUMNS = ("text", "content", "essay", "answer", "body")  # those a text is looked for in, the first one first
MAX_ROWS = 200


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
    reader = csv.DictReader(io.StringIO(content, newline=""))
    try:
        column = _column(reader.fieldnames or [])
        return _reading(name, "row", ((number, row.get(column)) for number, row in enumerate(reader, 2)), note)
    except csv.Error as error:
        raise Unreadable(f"This is no valid CSV file: {error}. Save it again as CSV in UTF-8.") from None


def _column(names: Iterable[str]) -> str:
    by_name = {name.strip().lower(): name for name in names if name}
    found = next((by_name[name] for name in COLUMNS if name in by_name), None)
    if found is None and len(by_name) == 1:
        found = next(iter(by_name.values()))
    if found is None:
        shown = ", ".join(list(by_name)[:8]) or "none"
        raise Unreadable(f"No column is named text (its columns: {shown[:200]}). Name the column with the texts text.")
    return found


def jsonl_parts(name: str, content: str, note: str) -> Reading:
    return _reading(name, "line", _json_lines(content), note)


def _json_lines(content: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield number, next((value[key] for key in COLUMNS if key in value), None) if isinstance(value, dict) else value


def _reading(name: str, place: str, rows: Iterable[tuple[int, object]], note: str) -> Reading:
    parts: list[Part] = []
    for number, value in rows:
        if len(parts) == MAX_ROWS:
            note = f"{note} Only the first {MAX_ROWS} {place}s were read. Split the file to score the rest.".strip()
            break
        parts.append(_part(f"{name}, {place} {number}", value, place))
    if not parts:
        raise Unreadable(f"This file has no {place} with a text.")
    return Reading(tuple(parts), note)


def _part(name: str, value: object, place: str) -> Part:
    if not isinstance(value, str) or not value.strip():
        lacking = "its text is empty" if place == "row" else "the line is no JSON object with a field text"
        return Part(name, problem=f"There is no text here: {lacking}.")
    if len(value) > MAX_CHARACTERS:
        return Part(name, problem=f"This text has more than {MAX_CHARACTERS:,} characters. Upload it as a file of its own.")
    return Part(name, value)
