"""The results of many texts as lines of a CSV or JSONL file that an interrupted run goes on with. Knows no engine.

A text is known by its digest; the file never holds the text.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

from app.engine.facts import Facts
from app.errors import SetupError
from app.schemas import Score, ScoreFailure
from app.scoring.detector import ScoreOptions
from app.scoring.documents import Document
from app.scoring.journal import may_begin, open_behind, split_lines
from app.scoring.score import why_no_judgement

COLUMNS = (
    "source", "digest", "verdict", "p_machine", "p_low", "p_high", "method", "score", "threshold", "target_fpr", "measured_fpr", "tokens",
    "perplexity", "passages", "machine_passages", "warnings", "error", "model", "revision", "calibration", "options",
)  # fmt: skip
WORDS = ("source", "error", "model", "revision", "calibration", "options")  # columns with words from elsewhere
# A table program takes a cell that begins with one of these for a formula; an apostrophe prevents it.
FORMULA = re.compile(r"'*[=+\-@\t\r]")
NAMED = ("source", "digest", "model", "options")  # that no row is without
FAILED = "failed"  # in the summary: a row without a verdict
ELSEWHERE = "name another --out, or delete the file"
STARTS = {".csv": f"{','.join(COLUMNS)}\r\n".encode(), ".jsonl": b'{"source": "'}  # of a file of results


class Judge(Protocol):
    """What gave the scores."""

    @property
    def facts(self) -> Facts: ...

    @property
    def options(self) -> ScoreOptions: ...


def digest_of(content: str | None) -> str:
    return hashlib.sha256((content or "").encode("utf-8", "surrogatepass")).hexdigest()[:16]


NO_TEXT = digest_of(None)


def printable(name: str) -> str:
    r"""As it is written and compared: bytes of a file's name that are not UTF-8 as in `bad\udcff.txt`."""
    return name.encode("utf-8", "backslashreplace").decode()


def options_of(judge: Judge) -> str:
    """All but text and model that decides a row, as `name=value; name=value`."""
    calibration = judge.options.choice.calibration
    values = {
        "methods": "+".join(judge.options.methods),
        "target_fpr": judge.options.target_fpr,
        "quantize": judge.facts.quantize,
        "dtype": judge.facts.dtype,
        "context": judge.facts.text_window,  # the key is its earlier name, so that earlier files go on
        "observer": judge.facts.observer,
        "observer_revision": judge.facts.observer_revision,
        "calibration": calibration and digest_of(calibration.model_dump_json()),
    }
    return "; ".join(f"{name}={'none' if value is None else value}" for name, value in values.items())


def _as_option(value: str) -> str:
    """A value of `options_of`, by the name that the command has for it."""
    name, _, given = value.partition("=")
    return f"--text-window={given}" if name == "context" else value


def result_row(document: Document, score: Score | ScoreFailure, judge: Judge) -> dict[str, Any]:
    """The values of `COLUMNS`; None where a text has no such value."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    calibration = judge.options.choice.calibration
    row |= {
        "source": printable(document.source),
        "digest": digest_of(document.content),
        "model": judge.facts.name,
        "revision": judge.facts.revision,
        "calibration": f"made {calibration.made}" if calibration else None,
        "options": options_of(judge),
    }
    if document.content is None:
        return row | {"error": printable(document.problem)}
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


def _for_csv(row: Mapping[str, Any]) -> dict[str, Any]:
    """With an apostrophe before words that a table program would take for a formula."""
    return {**row, **{name: f"'{row[name]}" for name in WORDS if isinstance(row[name], str) and FORMULA.match(row[name])}}


def _from_csv(row: Mapping[str, Any]) -> dict[str, Any]:
    """As it was before `_for_csv`; also a row of an earlier version, which had no apostrophes."""
    guarded = (name for name in WORDS if (row.get(name) or "").startswith("'") and FORMULA.match(row[name]))
    return {**row, **{name: row[name][1:] for name in guarded}}


def _unmatched(documents: Sequence[Document], rows: Sequence[Mapping[str, Any]]) -> tuple[list[Document], int | None]:
    """The documents without a row, and the index of the first row without a document, if there is one. A row is that of a document with the
    same text, first of all of one from the same place. The row of an unreadable document may be left over.
    """
    by_place = Counter((row["source"], _text_of(row)) for row in rows)
    without = [document for document in documents if not _take(by_place, (printable(document.source), _content_of(document)))]
    by_text: Counter[Hashable] = Counter()
    for (_, text), count in by_place.items():
        by_text[text] += count
    missing = [document for document in without if not _take(by_text, _content_of(document))]
    foreign = (number for number, row in enumerate(rows) if by_text[_text_of(row)] and by_place[row["source"], _text_of(row)])
    return missing, next((number for number in foreign if not _without_text(rows[number])), None)


def _without_text(row: Mapping[str, Any]) -> bool:
    """Of a document that could not be read, unlike that of an empty text."""
    return bool(row["error"]) and row["digest"] == NO_TEXT


def _text_of(row: Mapping[str, Any]) -> Hashable:
    """What the rows of one text share; a row without a text shares it with no other document."""
    return (row["source"], row["error"]) if _without_text(row) else row["digest"]


def _content_of(document: Document) -> Hashable:
    """`_text_of` the document's row."""
    return (printable(document.source), printable(document.problem)) if document.content is None else digest_of(document.content)


def _take(counts: Counter, key: Hashable) -> bool:
    """Whether there was one left."""
    counts[key] -= 1
    if counts[key] >= 0:
        return True
    counts[key] = 0
    return False


class ResultFile:
    """A context manager: opening reads the results that the file has. `resume` opens it for more, behind its last whole line; until then
    the file is left as it is. Raises `SetupError`, also where the disk is full.
    """

    def __init__(self, path: Path, judge: Judge) -> None:
        self._path = path
        self._judge = judge
        self._verdicts: Counter[str] = Counter()
        self._file: TextIOWrapper | None = None
        self._complete = 0  # bytes of whole lines

    def __enter__(self) -> "ResultFile":
        with self._writing():
            self._old = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with self._writing():
                self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SetupError(f"{self._path} cannot be written ({error.strerror}); put that right, and the same command goes on") from error

    def _read(self) -> list[dict[str, Any]]:
        complete, rest = split_lines(self._path)
        self._complete = len(complete)
        try:
            content = complete.decode()
            if self._path.suffix == ".csv":
                reader = csv.DictReader(io.StringIO(content, newline=""))
                rows, known = [_from_csv(row) for row in reader], not complete or tuple(reader.fieldnames or ()) == COLUMNS
            else:
                rows, known = [json.loads(line) for line in content.split("\n")[:-1]], True
            known = known and all(set(COLUMNS) == row.keys() for row in rows)
        except (ValueError, AttributeError, csv.Error):
            known = False
        if not known or (not complete and not may_begin(rest, STARTS[self._path.suffix])):
            raise SetupError(f"{self._path} holds no results of this version of `python -m app.score`; {ELSEWHERE}")
        for number, row in enumerate(rows, 1):
            if not all(isinstance(row[name], str) for name in NAMED):
                raise SetupError(f"{self._path}: result {number} is incomplete, it lacks values; remove its line, {ELSEWHERE}")
        return rows

    def resume(self, documents: Sequence[Document]) -> list[Document]:
        """The documents that the file lacks, in order. Removes an unfinished line, and the rows of unreadable documents that are gone or
        can be read now. Raises `SetupError` for a file with results of texts that are not among them, of another model, or with other
        options.
        """
        options = options_of(self._judge)
        for number, row in enumerate(self._old):
            if difference := self._difference(row, options):
                raise SetupError(f"{self._path} holds results {difference} ({self._place(number)}); give the same, {ELSEWHERE}")
        missing, foreign = _unmatched(documents, self._old)
        if foreign is not None:
            raise SetupError(f"{self._path} holds results of other texts, removed or changed since ({self._place(foreign)}); {ELSEWHERE}")
        contents = {_content_of(document) for document in documents}
        kept = [row for row in self._old if not _without_text(row) or _text_of(row) in contents]
        with self._writing():
            if len(kept) < len(self._old):
                self._complete = self._rewrite(kept)
            self._file = open_behind(self._path, self._complete)
            if self._path.suffix == ".csv" and not self._complete:
                csv.writer(self._file).writerow(COLUMNS)
        self._count(kept)
        return missing

    def _rewrite(self, rows: Iterable[dict[str, Any]]) -> int:
        """Atomically: an interrupted call leaves the old file. Returns the bytes of the new one."""
        path = self._path.resolve()
        part = path.with_name(path.name + ".part")
        try:
            with part.open("w", encoding="utf-8", newline="") as file:
                if self._path.suffix == ".csv":
                    csv.writer(file).writerow(COLUMNS)
                for row in rows:
                    self._write(row, file)
            part.chmod(path.stat().st_mode)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path.stat().st_size

    def _write(self, row: dict[str, Any], file: TextIOWrapper) -> None:
        if self._path.suffix == ".csv":
            csv.DictWriter(file, COLUMNS).writerow(_for_csv(row))
        else:
            file.write(json.dumps(row) + "\n")

    def _difference(self, row: Mapping[str, Any], options: str) -> str | None:
        """`options` are those of this run."""
        facts = self._judge.facts
        if (row["model"], row["revision"] or "") != (facts.name, facts.revision or ""):
            return f"of another model, {row['model']} of revision {row['revision']}; this is {facts.name} of {facts.revision}"
        pairs = zip(row["options"].split("; "), options.split("; "), strict=False)
        changes = [f"{_as_option(before)}, now {now.partition('=')[2]}" for before, now in pairs if before != now]
        return f"with other options: {'; '.join(changes)}" if changes else None

    def _place(self, number: int) -> str:
        """Of an old row, as an editor counts: a CSV has a line of names first."""
        return f"line {number + (2 if self._path.suffix == '.csv' else 1)}: {self._old[number]['source']}"

    def add(self, row: dict[str, Any]) -> None:
        """`resume` comes before it."""
        assert self._file is not None
        with self._writing():
            self._write(row, self._file)
            self._file.flush()
        self._count([row])

    def _count(self, rows: Iterable[dict[str, Any]]) -> None:
        self._verdicts.update(row["verdict"] or FAILED for row in rows)

    @property
    def failed(self) -> int:
        """How many texts have no score."""
        return self._verdicts[FAILED]

    def summary(self) -> str:
        """How many texts have which verdict and, where some are uncalibrated, why."""
        options = self._judge.options
        counts = ", ".join(f"{verdict}: {count:,}" for verdict, count in self._verdicts.most_common())
        return f"{counts}. Uncalibrated: {why_no_judgement(options, options.methods[0])}" if self._verdicts["uncalibrated"] else counts
