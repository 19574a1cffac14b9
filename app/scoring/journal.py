"""Scores many texts through the engine and records each at once, so that an interrupted run resumes where it stopped.

A journal has one JSON line per text: a digest of text, models and methods, the number of scored tokens, and the scores. Texts are not
stored.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from app.engine.engine import Engine
from app.engine.request import Columns, Failed, Score, Scored
from app.errors import InvalidRequest, SetupError
from app.schemas import Method
from app.scoring.calibration import ModelIdentity
from app.scoring.features import statistics_of
from app.scoring.fitting import BUCKET_STARTS, METHODS
from app.scoring.sample import ScoreRow
from app.scoring.methods import method_score
from app.scoring.sources import LabelledText
from app.scoring.windows import windows
from app.tokenizer import Tokenizer

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
    lengths = [
        low + int(key[:8], 16) % (high - low) for low, high in zip(BUCKET_STARTS, BUCKET_STARTS[1:], strict=False) if high <= count
    ]
    return replace(whole, shorter=tuple(_entry(columns, length) for length in lengths))


def _entry(columns: Columns, count: int) -> JournalEntry:
    first = Columns(*(getattr(columns, column.name)[:count] for column in fields(Columns)))
    return JournalEntry(count, {method: method_score(method, first) for method in METHODS}, statistics_of(first) if count else {})


class Journal:
    """The recorded scores of one pair of models with one context length; texts longer than `context` are scored in windows.

    A context manager: opening removes an incomplete last line from the file, and raises `SetupError` for a file that is not a journal.
    Entries of other models, context lengths or methods have other keys and are ignored.
    """

    def __init__(self, path: Path, models: ModelIdentity, context: int) -> None:
        self.path = path
        self.entries: dict[str, JournalEntry] = {}
        self._key_prefix = f"{models.model_dump_json()}\0{context}\0{METHODS}\0"
        self._file: TextIOWrapper

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = read_complete_lines(self.path)
        for number, line in enumerate(content.splitlines(), 1):
            key, entry = _parse_line(line, f"{self.path}, line {number}")
            self.entries[key] = entry
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def key(self, text: str) -> str:
        return hashlib.sha256((self._key_prefix + text).encode("utf-8", "surrogatepass")).hexdigest()

    def add(self, key: str, entry: JournalEntry) -> None:
        self.entries[key] = entry
        self._file.write(json.dumps({"key": key, **asdict(entry)}) + "\n")
        self._file.flush()

    def rows(self, texts: Iterable[LabelledText], shorter: bool = False) -> list[ScoreRow]:
        """The rows of those texts that have been scored, in their order. `shorter`: and of their beginnings."""
        found = ((text, self.entries.get(self.key(text.content))) for text in texts)
        parts = ((text, part) for text, entry in found if entry for part in (entry, *(entry.shorter if shorter else ())))
        return [
            ScoreRow(text.machine, text.group, text.domain, part.tokens, part.scores, part.values, text.generator) for text, part in parts
        ]

    def missing(self, texts: Iterable[LabelledText]) -> list[str]:
        """The contents that have not been scored, each once."""
        return list(dict.fromkeys(text.content for text in texts if self.key(text.content) not in self.entries))


def read_complete_lines(path: Path) -> str:
    """The lines of the file up to the last line break; removes what follows it from the file. Empty if there is no file."""
    if not path.exists():
        return ""
    data = path.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    if len(complete) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(complete))
    return complete.decode()


def _parse_line(line: str, location: str) -> tuple[str, JournalEntry]:
    try:
        line_fields: dict[str, Any] = json.loads(line)
        shorter = tuple(JournalEntry(part["tokens"], part["scores"], part["values"]) for part in line_fields["shorter"])
        return line_fields["key"], JournalEntry(line_fields["tokens"], line_fields["scores"], line_fields["values"], shorter)
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{location}: not a line of a score journal; name another --journal, or delete this file") from error


def score_texts(engine: Engine, tokenizer: Tokenizer, journal: Journal, texts: Sequence[str]) -> Iterator[None]:
    """Yields once for each text whose scores have been recorded. Raises the error of the first text that cannot be scored."""
    waiting = iter(texts)
    in_flight: dict[str, str] = {}  # job id to journal key
    observe = engine.observer is not None
    while True:
        for text in waiting:
            job = _job(text, tokenizer, engine.limits.context, observe)
            engine.submit(job)
            in_flight[job.id] = journal.key(text)
            if len(in_flight) >= MAX_IN_FLIGHT:
                break
        if not in_flight:
            return
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Scored):
                key = in_flight.pop(event.id)
                journal.add(key, entry_of(event.columns, key))
                yield


def _job(text: str, tokenizer: Tokenizer, context: int, observe: bool) -> Score:
    try:
        ids = tokenizer.encode_with_offsets(text, "text").ids
    except InvalidRequest as error:
        raise SetupError(f"a text cannot be tokenized: {error.message}") from error
    return Score(hashlib.sha256(text.encode()).hexdigest(), ids, windows(len(ids), context), observe)
