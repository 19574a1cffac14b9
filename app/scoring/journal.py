"""Scores many texts through the engine and records each at once, so that an interrupted run resumes where it stopped.

A journal has one JSON line per text: a digest of text, models and methods, the number of scored tokens, and the scores. Texts are not
stored.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

from app.engine.engine import Engine
from app.engine.events import Columns, Failed, Scored, slice_columns
from app.engine.request import Score
from app.errors import InvalidRequest, SetupError
from app.schemas import Method
from app.scoring.calibration import ModelIdentity
from app.scoring.features import OBSERVED, statistics_of
from app.scoring.fitting import METHODS
from app.scoring.methods import method_score
from app.scoring.prepare import Preparation
from app.scoring.sample import ScoreRow
from app.scoring.sources import LabelledText

SHORTER_STARTS = (64, 96, 128, 192, 256, 384, 512)  # scored tokens at which the ranges of shorter beginnings start
CHECKED = 4  # recorded texts that are scored again before others are added to them
TOLERANCE = 2e-3  # of a recorded score, relative; the same program on another processor differs by less
LINE_START = b'{"key": "'  # as `add` writes it
MAX_IN_FLIGHT = 8  # texts in the engine at once: enough to use the token budget of every step


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """The scores and statistics of a text's first `tokens` scored tokens. `shorter`: of shorter beginnings, one for each range of
    lengths below its own, so that long texts calibrate verdicts on short ones, too. The length within the range is drawn by the text's key.
    """

    tokens: int
    scores: dict[Method, float | None]
    values: dict[str, float] = field(default_factory=dict)
    shorter: tuple["JournalEntry", ...] = ()


def entry_of(columns: Columns, key: str) -> JournalEntry:
    count = len(columns.logprob)
    whole = _entry(columns, count)
    ranges = zip(SHORTER_STARTS, SHORTER_STARTS[1:], strict=False)
    lengths = [low + int(key[:8], 16) % (high - low) for low, high in ranges if high <= count]
    return replace(whole, shorter=tuple(_entry(columns, length) for length in lengths))


def _entry(columns: Columns, count: int) -> JournalEntry:
    first = slice_columns(columns, 0, count)
    return JournalEntry(count, {method: method_score(method, first) for method in METHODS}, statistics_of(first) if count else {})


class Journal:
    """The recorded scores of one pair of models, of texts that are prepared in one way.

    A context manager: opening raises `SetupError` for a file that is not a journal. The file is left as it is until the first entry is
    added, which takes the place of an incomplete last line. Entries of other models, context lengths, passages or methods have other keys
    and are ignored.
    """

    def __init__(self, path: Path, models: ModelIdentity, preparation: Preparation) -> None:
        self.path = path
        self.preparation = preparation
        self.entries: dict[str, JournalEntry] = {}
        statistics = f"{sorted(OBSERVED)}\0" if preparation.observe else ""
        self._key_prefix = f"{models.model_dump_json()}\0{preparation.context}\0{preparation.passage_tokens}\0{METHODS}\0{statistics}"
        self._file: TextIOWrapper | None = None
        self._complete = 0  # bytes of whole lines

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        complete, rest = split_lines(self.path)
        if not complete and not may_begin(rest, LINE_START):
            raise _not_a_journal(f"{self.path}, line 1")
        for number, line in enumerate(complete.splitlines(), 1):
            key, entry = _parse_line(line, f"{self.path}, line {number}")
            self.entries[key] = entry
        self._complete = len(complete)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def key(self, text: str) -> str:
        return hashlib.sha256((self._key_prefix + text).encode("utf-8", "surrogatepass")).hexdigest()

    def add(self, key: str, entry: JournalEntry) -> None:
        self.entries[key] = entry
        if self._file is None:
            self._file = open_behind(self.path, self._complete)
        self._file.write(json.dumps({"key": key, **asdict(entry)}) + "\n")
        self._file.flush()

    def rows(self, texts: Iterable[LabelledText], starts: Sequence[int] = ()) -> list[ScoreRow]:
        """The rows of those texts that have been scored, in their order. `starts`: and of their beginnings, one for each further range of
        lengths that begins at one of these numbers of tokens.
        """
        found = ((text, self.entries.get(self.key(text.content))) for text in texts)
        parts = ((text, part, part is not entry) for text, entry in found if entry for part in _one_each(entry, starts))
        return [
            ScoreRow(text.machine, text.group, text.domain, part.tokens, part.scores, part.values, text.generator, beginning)
            for text, part, beginning in parts
        ]

    def missing(self, texts: Iterable[LabelledText]) -> list[str]:
        """The contents that have not been scored, each once."""
        return list(dict.fromkeys(text.content for text in texts if self.key(text.content) not in self.entries))


def _one_each(entry: JournalEntry, starts: Sequence[int]) -> list[JournalEntry]:
    """The entry, and one of its shorter ones for each other range, which is drawn by the entry's length."""
    by_range: dict[int, list[JournalEntry]] = {}
    for part in entry.shorter if starts else ():
        by_range.setdefault(bisect_right(starts, part.tokens), []).append(part)
    by_range.pop(bisect_right(starts, entry.tokens), None)
    return [entry, *(parts[entry.tokens % len(parts)] for parts in by_range.values())]


def split_lines(path: Path) -> tuple[bytes, bytes]:
    """The whole lines of the file, and what follows its last line break: an unfinished line. Both are empty if there is no file."""
    data = path.read_bytes() if path.exists() else b""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def may_begin(rest: bytes, start: bytes) -> bool:
    """Whether an unfinished line may be one of those that begin with `start`."""
    return rest.startswith(start) or start.startswith(rest)


def open_behind(path: Path, length: int) -> TextIOWrapper:
    """Opens the file for more lines behind its first `length` bytes, and removes what follows those."""
    file = path.open("a", encoding="utf-8", newline="")
    if file.tell() > length:
        file.truncate(length)
    return file


def read_complete_lines(path: Path) -> str:
    """The lines of a file of the program's own up to the last line break; removes what follows it. Empty if there is no file."""
    complete, rest = split_lines(path)
    if rest:
        open_behind(path, len(complete)).close()
    return complete.decode()


def _not_a_journal(location: str) -> SetupError:
    return SetupError(f"{location}: not a line of a score journal; name another --journal, or delete this file")


def _parse_line(line: bytes, location: str) -> tuple[str, JournalEntry]:
    try:
        line_fields: dict[str, Any] = json.loads(line)
        shorter = tuple(JournalEntry(part["tokens"], part["scores"], part["values"]) for part in line_fields["shorter"])
        return line_fields["key"], JournalEntry(line_fields["tokens"], line_fields["scores"], line_fields["values"], shorter)
    except (ValueError, KeyError, TypeError) as error:
        raise _not_a_journal(location) from error


def score_texts(engine: Engine, journal: Journal, texts: Sequence[str]) -> Iterator[None]:
    """Yields once for each text whose scores have been recorded. Raises the error of the first text that cannot be scored."""
    for key, entry in _entries(engine, journal, texts):
        journal.add(key, entry)
        yield


def check_recorded(engine: Engine, journal: Journal, texts: Iterable[str]) -> None:
    """Scores a few recorded texts again. Raises `SetupError` where they score differently now: another version of the program made them."""
    recorded = islice((text for text in dict.fromkeys(texts) if journal.key(text) in journal.entries), CHECKED)
    for key, entry in _entries(engine, journal, recorded):
        before = journal.entries[key]
        if before.tokens != entry.tokens or not all(_alike(before.scores.get(name), score) for name, score in entry.scores.items()):
            raise SetupError(
                f"{journal.path}: these scores are of another version of Litmus or of its libraries, the same texts score differently now; "
                "name another --journal, or delete this file"
            )


def _alike(before: float | None, now: float | None) -> bool:
    return before is now if before is None or now is None else math.isclose(before, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _entries(engine: Engine, journal: Journal, texts: Iterable[str]) -> Iterator[tuple[str, JournalEntry]]:
    """The key and the scores of each text, in the order in which they are found."""
    waiting = iter(texts)
    in_flight: set[str] = set()  # ids of jobs, which are keys of the journal
    while True:
        for text in waiting:
            job = _job(text, journal)
            engine.submit(job)
            in_flight.add(job.id)
            if len(in_flight) >= MAX_IN_FLIGHT:
                break
        if not in_flight:
            return
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Scored):
                in_flight.remove(event.id)
                yield event.id, entry_of(event.columns, event.id)


def _job(text: str, journal: Journal) -> Score:
    try:
        return journal.preparation.prepare(text, journal.key(text), "text").job
    except InvalidRequest as error:
        raise SetupError(f"a text cannot be tokenized: {error.message}") from error
