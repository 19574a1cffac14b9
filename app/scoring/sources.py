"""Reads the texts to calibrate on from JSON lines, CSV, plain text files or a folder of those, each also as .gz. Knows no model.

A line has the field `text`, or the fields `human` and `machine` with a text of each class; then the requested class is read.
"""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from app.csvtable import check_single, read_table
from app.errors import SetupError
from app.plaintext import NotText, decode
from app.scoring.normalize import normalize

FILE_TYPES = (".jsonl", ".csv", ".txt")


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text whose author is known. Texts of one `group` share a source, and every split keeps them together."""

    content: str
    machine: bool  # a model wrote it
    group: str
    domain: str = ""
    generator: str = ""  # the model that wrote it


@dataclass(frozen=True, slots=True)
class FieldNames:
    """The fields of a line that hold text, group and domain.

    None: `group`, `domain` and `generator` are read if the line has them; a line without `group` is its own group.
    """

    text: str = "text"
    group: str | None = None
    domain: str | None = None
    generator: str | None = None


def read(paths: Iterable[Path], machine: bool, fields: FieldNames) -> Iterator[LabelledText]:
    """The texts of the files, all labelled `machine`. Raises `SetupError` with file and line."""
    for path in paths:
        files = [path] if not path.is_dir() else [file for file in sorted(path.iterdir()) if file_type(file) == ".txt"]
        if not files:
            raise SetupError(f"{path}: the folder has no .txt or .txt.gz file")
        for file in files:
            yield from _read_file(file, machine, fields)


def file_type(path: Path) -> str:
    """The suffix without a final .gz, in small letters."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _read_file(path: Path, machine: bool, fields: FieldNames) -> Iterator[LabelledText]:
    check_exists(path)
    if file_type(path) not in FILE_TYPES:
        raise SetupError(f"{path}: unknown type of file; give .jsonl, .csv or .txt, plain or as .gz, or a folder of .txt")
    content = read_content(path)
    if file_type(path) == ".txt":
        yield LabelledText(content, machine, path.name)
        return
    for number, line in parse_json_lines(content, path) if file_type(path) == ".jsonl" else parse_csv(content, path, fields):
        yield _labelled_text(line, machine, fields, f"{path.name}:{number}")


def check_exists(path: Path) -> None:
    if not path.exists():
        raise SetupError(f"{path} does not exist")


def is_same_file(one: Path, other: Path) -> bool:
    """Whether both names are of one file, which need not exist yet; also by a link of either kind."""
    return os.path.realpath(one) == os.path.realpath(other) or (one.exists() and other.exists() and one.samefile(other))


def read_content(path: Path) -> str:
    """In any encoding that `app.plaintext` knows."""
    try:
        data = path.read_bytes()
        return decode(gzip.decompress(data) if path.suffix.lower() == ".gz" else data)
    except (OSError, EOFError, zlib.error) as error:
        raise SetupError(f"{path} cannot be read: {error}") from error
    except NotText as error:
        raise SetupError(f"{path} cannot be read: {error}") from error


def parse_json_lines(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`(line number, object)` of every line that is not blank."""
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError as error:
            raise SetupError(f"{path}, line {number}: not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise SetupError(f"{path}, line {number}: JSON that is nested too deeply, or has a number of over 4,300 digits") from error
        if not isinstance(parsed, dict):
            raise SetupError(f"{path}, line {number}: not an object; give one with a text field")
        yield number, parsed


def parse_csv(content: str, path: Path, fields: FieldNames) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """`(line number, row)` of every row of `app.csvtable`; one with too many cells is a clause that says so."""
    try:
        table = read_table(content)
        for name in (fields.text, fields.group or "group", fields.domain or "domain", fields.generator or "generator"):
            check_single(table.names, name)
        for number, cells in table.rows:
            yield number, cells if isinstance(cells, str) else dict(zip_longest(table.names, cells))
    except csv.Error as error:
        raise SetupError(f"{path}, {error}") from error


def _labelled_text(line: dict[str, Any] | str, machine: bool, fields: FieldNames, location: str) -> LabelledText:
    """`location` (file and line) is the group of a line without one."""
    if isinstance(line, str):
        raise SetupError(f"{location}: {line}")
    side = "machine" if machine else "human"
    name = side if fields.text not in line and {"human", "machine"} <= line.keys() else fields.text
    content = line.get(name)
    if not isinstance(content, str):
        raise SetupError(f"{location}: no field {name!r} with a text; name the field with --text")
    group = _optional_field(line, fields.group, "group", location, location)
    domain = _optional_field(line, fields.domain, "domain", "", location)
    generator = _optional_field(line, fields.generator, "generator", "", location) if machine else ""
    return LabelledText(content, machine, group, domain, generator)


def _optional_field(line: dict[str, Any], requested: str | None, option: str, default: str, location: str) -> str:
    """`requested`: the name given with `--{option}`; without it, the field is called like the option and may be missing."""
    value = line.get(requested or option)
    if value is None and requested:
        raise SetupError(f"{location}: no field {requested!r}, which --{option} names")
    return default if value is None else str(value)


def prepare_texts(texts: Iterable[LabelledText], collapse: bool, cut_words: int = 0) -> list[LabelledText]:
    """Normalizes the texts as the server does, collapses white space if asked, and drops the first `cut_words` words.

    Leaves out repetitions, blank texts, and texts that are labelled both as a human's and as a machine's.
    """
    unique: dict[str, LabelledText] = {}
    ambiguous: set[str] = set()
    for text in texts:
        content = drop_first_words(normalize(text.content, collapse).content, cut_words)
        if unique.setdefault(content, replace(text, content=content)).machine != text.machine:
            ambiguous.add(content)
    return [text for content, text in unique.items() if content.strip() and content not in ambiguous]


def drop_first_words(text: str, count: int) -> str:
    return re.sub(rf"\A\s*(?:\S+(?:\s+|\Z)){{0,{count}}}", "", text) if count else text
