"""Scores of many texts through the engine, each written down as it comes: a run that was cut off goes on where it stopped.

A journal has one JSON line a text: a digest of the text, the models and the methods, the number of scored tokens, the scores. No text is
kept.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from app.engine.engine import Engine
from app.engine.request import Failed, Score, Scored
from app.errors import InvalidRequest, SetupError
from app.schemas import Method
from app.scoring.calibration import Models
from app.scoring.fitting import METHODS
from app.scoring.sample import Row
from app.scoring.score import score_of
from app.scoring.sources import Text
from app.scoring.windows import windows
from app.tokenizer import Tokenizer

AT_ONCE = 8  # texts in the engine: enough to fill its steps


@dataclass(frozen=True, slots=True)
class Entry:
    tokens: int
    scores: dict[Method, float | None]


class Journal:
    """Of one pair of models, in a context of so many tokens (longer texts are scored in windows of it). Used as a context manager.

    A last line that was not finished is taken off. Raises `SetupError` for a file that is no journal.
    """

    def __init__(self, path: Path, models: Models, context: int) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._salt = f"{models.model_dump_json()}\0{context}\0{METHODS}\0"
        self._file: TextIOWrapper

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = mended(self.path)
        for number, line in enumerate(whole.splitlines(), 1):
            key, entry = _entry(line, f"{self.path}, line {number}")
            self.entries[key] = entry
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def key(self, text: str) -> str:
        return hashlib.sha256((self._salt + text).encode("utf-8", "surrogatepass")).hexdigest()

    def add(self, key: str, entry: Entry) -> None:
        self.entries[key] = entry
        self._file.write(json.dumps({"key": key, "tokens": entry.tokens, "scores": entry.scores}) + "\n")
        self._file.flush()

    def rows(self, texts: Iterable[Text]) -> list[Row]:
        """Of the texts that were scored."""
        found = ((text, self.entries.get(self.key(text.content))) for text in texts)
        return [Row(text.machine, text.group, text.domain, entry.tokens, entry.scores) for text, entry in found if entry]

    def missing(self, texts: Iterable[Text]) -> list[str]:
        return list(dict.fromkeys(text.content for text in texts if self.key(text.content) not in self.entries))


def mended(path: Path) -> str:
    """The whole lines of the file, which has no others afterwards."""
    if not path.exists():
        return ""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.decode()


def _entry(line: str, where: str) -> tuple[str, Entry]:
    try:
        found: dict[str, Any] = json.loads(line)
        return found["key"], Entry(found["tokens"], found["scores"])
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{where}: not a line of scores; give another --journal, or delete it") from error


def score(engine: Engine, tokenizer: Tokenizer, journal: Journal, texts: Sequence[str]) -> Iterator[None]:
    """Yields once for each text that has been written down. Raises the error of a text that cannot be scored."""
    waiting = iter(texts)
    flying: dict[str, str] = {}
    observe = engine.observer is not None
    while True:
        for text in waiting:
            job = _job(text, tokenizer, engine.limits.context, observe)
            engine.submit(job)
            flying[job.id] = journal.key(text)
            if len(flying) >= AT_ONCE:
                break
        if not flying:
            return
        for event in engine.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Scored):
                scores = {method: score_of(method, event.columns) for method in METHODS}
                journal.add(flying.pop(event.id), Entry(len(event.columns.logprob), scores))
                yield


def _job(text: str, tokenizer: Tokenizer, context: int, observe: bool) -> Score:
    try:
        ids = tokenizer.read(text, "text").ids
    except InvalidRequest as error:
        raise SetupError(f"a text cannot be read: {error.message}") from error
    return Score(hashlib.sha256(text.encode()).hexdigest(), ids, windows(len(ids), context), observe)
