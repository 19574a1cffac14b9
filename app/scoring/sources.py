"""Texts from files to be calibrated on: JSON lines, CSV, plain text or a folder of it, each also as .gz. Knows no model.

A line may have `text`, or both `human` and `machine` (the form of pairs), of which the side asked for is taken.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.errors import SetupError
from app.scoring.normalize import normal

KINDS = (".jsonl", ".csv", ".txt")


@dataclass(frozen=True, slots=True)
class Text:
    """Texts of one `group` share a source and stay on one side of every split."""

    content: str
    machine: bool
    group: str
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of a line's fields. `group` and `domain`: those of these names where a line has them, else each line is its own group."""

    text: str = "text"
    group: str | None = None
    domain: str | None = None


def read(paths: Iterable[Path], machine: bool, fields: Fields) -> Iterator[Text]:
    """Raises `SetupError` naming file and line."""
    for path in paths:
        files = [path] if not path.is_dir() else [file for file in sorted(path.iterdir()) if kind(file) == ".txt"]
        if not files:
            raise SetupError(f"{path}: the folder has no .txt or .txt.gz")
        for file in files:
            yield from _file(file, machine, fields)


def kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _file(path: Path, machine: bool, fields: Fields) -> Iterator[Text]:
    if kind(path) not in KINDS:
        raise SetupError(f"{path}: give .jsonl, .csv or .txt, as they are or as .gz, or a folder of .txt")
    content = _content(path)
    if kind(path) == ".txt":
        yield Text(content, machine, path.name)
        return
    csv.field_size_limit(max(len(content), 1))
    lines = _json(content, path) if kind(path) == ".jsonl" else enumerate(csv.DictReader(io.StringIO(content)), 2)
    for number, line in lines:
        yield _text(line, machine, fields, f"{path.name}:{number}")


def _content(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise SetupError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{path} is not UTF-8: byte {error.start}") from error


def _json(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise SetupError(f"{path}, line {number}: no JSON: {error.msg}") from error
        if not isinstance(found, dict):
            raise SetupError(f"{path}, line {number}: give an object with a text")
        yield number, found


def _text(line: dict[str, Any], machine: bool, fields: Fields, where: str) -> Text:
    side = "machine" if machine else "human"
    name = side if fields.text not in line and {"human", "machine"} <= line.keys() else fields.text
    content = line.get(name)
    if not isinstance(content, str):
        raise SetupError(f"{where}: no field {name!r} with a text; --text names another")
    return Text(content, machine, _field(line, fields.group, "group", where, where), _field(line, fields.domain, "domain", "", where))


def _field(line: dict[str, Any], asked: str | None, usual: str, default: str, where: str) -> str:
    found = line.get(asked or usual)
    if found is None and asked:
        raise SetupError(f"{where}: no field {asked!r}, which --{usual} names")
    return default if found is None else str(found)


def prepared(texts: Iterable[Text], collapse: bool, cut_words: int = 0) -> list[Text]:
    """As they will be scored: normal (as served texts are), white space collapsed if asked, the first words cut. Each text once; none that
    is blank, and none that is given as both a human's and a machine's.
    """
    kept: dict[str, Text] = {}
    both: set[str] = set()
    for text in texts:
        content = cut(normal(text.content, collapse).content, cut_words)
        if kept.setdefault(content, replace(text, content=content)).machine != text.machine:
            both.add(content)
    return [text for content, text in kept.items() if content.strip() and content not in both]


def cut(text: str, words: int) -> str:
    """Without its first `words` words."""
    return re.sub(rf"\A\s*(?:\S+(?:\s+|\Z)){{0,{words}}}", "", text) if words else text
