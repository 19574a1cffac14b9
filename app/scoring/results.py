"""The results of many texts as lines of a CSV or JSONL file that an interrupted run goes on with. Knows no engine.

A text is known by its digest; the file never holds the text.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

from app.engine.facts import Facts
from app.errors import SetupError
from app.schemas import Score, ScoreFailure
from app.scoring.detector import ScoreOptions
from app.scoring.documents import Document
from app.scoring.journal import read_complete_lines

COLUMNS = (
    "source", "digest", "verdict", "p_machine", "p_low", "p_high", "method", "score", "threshold", "target_fpr", "measured_fpr", "tokens",
    "perplexity", "passages", "machine_passages", "warnings", "error", "model", "revision", "calibration",
)  # fmt: skip


class Judge(Protocol):
    """What gave the scores."""

    @property
    def facts(self) -> Facts: ...

    @property
    def options(self) -> ScoreOptions: ...


def digest_of(content: str | None) -> str:
    return hashlib.sha256((content or "").encode("utf-8", "surrogatepass")).hexdigest()[:16]


def result_row(document: Document, score: Score | ScoreFailure, judge: Judge) -> dict[str, Any]:
    """The values of `COLUMNS`; None where a text has no such value."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    calibration = judge.options.choice.calibration
    row |= {
        "source": document.source,
        "digest": digest_of(document.content),
        "model": judge.facts.name,
        "revision": judge.facts.revision,
        "calibration": f"made {calibration.made}" if calibration else None,
    }
    if document.content is None:
        return row | {"error": document.problem}
    if isinstance(score, ScoreFailure):
        return row | {"error": score.message}
    rate, chance, passages = score.false_positive_rate, score.p_machine, score.passages or []
    return row | {
        "verdict": score.verdict,
        "p_machine": chance and chance.value,
        "p_low": chance and chance.interval[0],
        "p_high": chance and chance.interval[1],
        "method": score.method,
        "score": score.scores[score.method],
        "threshold": score.threshold,
        "target_fpr": rate and rate.target,
        "measured_fpr": rate and rate.measured,
        "tokens": score.scored_tokens,
        "perplexity": score.statistics and score.statistics.perplexity,
        "passages": len(passages) or 1,
        "machine_passages": sum(passage.verdict == "machine" for passage in passages) if passages else int(score.verdict == "machine"),
        "warnings": " ".join(warning.code for warning in score.warnings),
    }


class ResultFile:
    """A context manager: opening removes an incomplete last line from the file, so that the run goes on behind it. Raises `SetupError`,
    also where the disk is full.
    """

    def __init__(self, path: Path, judge: Judge) -> None:
        self._path = path
        self._judge = judge
        self._verdicts: Counter[str] = Counter()
        self._file: TextIOWrapper

    def __enter__(self) -> "ResultFile":
        with self._writing():
            self._old = self._read(read_complete_lines(self._path))
            self._file = self._path.open("a", encoding="utf-8", newline="")
            if self._path.suffix == ".csv" and not self._path.stat().st_size:
                csv.writer(self._file).writerow(COLUMNS)
        return self

    def __exit__(self, *_: object) -> None:
        with self._writing():
            self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SetupError(f"{self._path} cannot be written ({error.strerror}); put that right, and the same command goes on") from error

    def _read(self, content: str) -> list[dict[str, Any]]:
        try:
            lines = content.splitlines()
            if self._path.suffix == ".csv":
                reader = csv.DictReader(lines)
                rows, known = list(reader), tuple(reader.fieldnames or COLUMNS) == COLUMNS
            else:
                rows, known = [json.loads(line) for line in lines], True
            if known and all(set(COLUMNS) == row.keys() for row in rows):
                return rows
        except (ValueError, AttributeError):
            pass
        raise SetupError(f"{self._path} holds no results of `python -m app.score`; name another --out, or delete the file")

    def resume(self, documents: Sequence[Document]) -> int:
        """How many of the documents the file has, from the first on. Raises `SetupError` for a file of other texts or another model."""
        facts = self._judge.facts
        for number, row in enumerate(self._old):
            same = number < len(documents) and row["digest"] == digest_of(documents[number].content)
            if not same or (row["model"], row["revision"] or None) != (facts.name, facts.revision):
                reason = "another model" if same else "other texts"
                raise SetupError(f"{self._path} holds results of {reason} (line {number + 1}); name another --out, or delete the file")
        self._count(self._old)
        return len(self._old)

    def add(self, row: dict[str, Any]) -> None:
        with self._writing():
            if self._path.suffix == ".csv":
                csv.DictWriter(self._file, COLUMNS).writerow(row)
            else:
                self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self._count([row])

    def _count(self, rows: Iterable[dict[str, Any]]) -> None:
        self._verdicts.update(row["verdict"] or "failed" for row in rows)

    def summary(self) -> str:
        return ", ".join(f"{verdict}: {count:,}" for verdict, count in self._verdicts.most_common())
