"""Reads the texts that someone wants scored: .txt, .md, .jsonl, .csv (each also as .gz), .parquet, and folders of those. Knows no model."""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.csvtable import column_of, read_table
from app.errors import SetupError
from app.scoring.sources import check_exists, file_type, is_same_file, parse_json_lines, read_content

WHOLE = (".txt", ".md")  # of which a file is one text
FILE_TYPES = (*WHOLE, ".jsonl", ".csv", ".parquet")
SHOWN_TYPES = 5  # of the files that are left out
SHOWN_NAMES = 200  # characters

Note = Callable[[str], object]  # is told, in a sentence without an end, what was assumed of a file


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and where it is from: a file, or a file and its line or row. `content` is None where there is no text, for the reason that
    `problem` gives.
    """

    source: str
    content: str | None
    problem: str = "this line has no text"


def read_documents(paths: Iterable[Path], field: str = "text", results: Path | None = None, note: Note = str) -> Iterator[Document]:
    """The texts of the files in their order; folders are searched through. A file of a folder that cannot be read is a document without a
    text. `results` in a folder are no texts. Raises `SetupError` for a file that cannot be read and is named in `paths`.
    """
    for path in paths:
        if path.is_dir():
            yield from _read_folder(path, field, results, note)
        else:
            yield from _read_file(path, field, note)


def left_out(paths: Iterable[Path], results: Path | None = None) -> str:
    """A clause on the files of the folders that are of no known type; empty if there is none."""
    files = [file for path in paths if path.is_dir() for file in _files_of(path, results)]
    counts = Counter(file_type(file) or "without a suffix" for file in files if file_type(file) not in FILE_TYPES)
    shown = counts.most_common(SHOWN_TYPES)
    others = counts.total() - sum(count for _, count in shown)
    names = ", ".join(f"{name} {count:,}" for name, count in [*shown, *([("others", others)] if others else [])])
    return f"{counts.total():,} file{'s' if counts.total() > 1 else ''} left out: {names}" if counts else ""


def _files_of(folder: Path, results: Path | None) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if not file.is_dir() and (results is None or not is_same_file(file, results)))


def _read_folder(path: Path, field: str, results: Path | None, note: Note) -> Iterator[Document]:
    files = [file for file in _files_of(path, results) if file_type(file) in FILE_TYPES]
    if not files:
        raise SetupError(f"{path}: the folder has no {', '.join(FILE_TYPES)} file")
    for file in files:
        try:
            yield from _read_file(file, field, note)
        except SetupError as error:
            yield Document(str(file), None, f"{error.message}; nothing of the file is scored from there on")


def _read_file(path: Path, field: str, note: Note) -> Iterator[Document]:
    kind = file_type(path)
    check_exists(path)
    if kind in WHOLE:
        yield Document(str(path), read_content(path))
    elif kind == ".jsonl":
        yield from (_document(line, field, f"{path}:{number}") for number, line in parse_json_lines(read_content(path), path))
    elif kind == ".csv":
        yield from _read_csv(path, field, note)
    elif kind == ".parquet":
        yield from _read_parquet(path, field)
    else:
        raise SetupError(f"{path}: unknown type of file; give {', '.join(FILE_TYPES)}, or a folder of those")


def _read_csv(path: Path, field: str, note: Note) -> Iterator[Document]:
    try:
        table = read_table(read_content(path))
        if not table.names:
            return
        column = column_of(table.names, (field,))
        if column is None:
            raise _no_column(path, field, table.names)
        if column.note:
            note(f"{path}: {column.note}")
        for number, cells in table.rows:
            source = f"{path}:{number}"
            if isinstance(cells, str):
                yield Document(source, None, cells)
            else:
                yield Document(source, cells[column.index] if column.index < len(cells) else None)
    except csv.Error as error:
        raise SetupError(f"{path}, {error}") from error


def _no_column(path: Path, field: str, names: Sequence[str]) -> SetupError:
    return SetupError(f"{path}: no column {field!r}; name the column with --text (it has {', '.join(names)[:SHOWN_NAMES]})")


def _read_parquet(path: Path, field: str) -> Iterator[Document]:
    from pyarrow import ArrowException, parquet  # a second of imports, for this type alone

    try:
        file = parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise _no_column(path, field, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(columns=[field]):
            for content in batch.column(0).to_pylist():
                number += 1
                yield _document({field: content}, field, f"{path}:{number}")
    except (OSError, ArrowException) as error:
        raise SetupError(f"{path} cannot be read: {error}") from error


def _document(line: dict[str, Any] | str, field: str, source: str) -> Document:
    if isinstance(line, str):
        return Document(source, None, line)
    content = line.get(field)
    return Document(source, content if isinstance(content, str) else None)
