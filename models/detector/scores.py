"""Writes the scores behind `docs/detector-pair.md` as runs/detector-*.jsonl: one line for each text with its scores, without the text.

    python -m models.detector.scores --data ../shared/data

Reuses the scores that `models.detector` recorded and computes only missing ones. Leaves out the stories of the books that the calibration
was fitted on, and the `detect/` pairs with their openings cut.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.errors import LitmusError
from app.schemas import Method
from app.scoring.calibration import CALIBRATION_FILE, Calibration, load
from app.scoring.sample import ScoreRow
from app.settings import ModelSettings
from loadtest.run import create_run
from models.detector import build, page

SIGNIFICANT_DIGITS = 4  # of a recorded score
STORIES = "stories"  # name of the set with the model's own stories


def text_lines(name: str, rows: Sequence[ScoreRow], methods: Sequence[Method]) -> Iterator[dict[str, Any]]:
    """The lines of the texts that are long enough. `group` is a number, as only which texts share a source matters."""
    groups = {group: number for number, group in enumerate(sorted({row.group for row in rows}))}
    for row in rows:
        if row.tokens >= page.MIN_TOKENS:
            domain = {"domain": row.domain} if name == STORIES else {}
            text = {"kind": "text", "set": name, "machine": row.machine, "group": groups[row.group], **domain, "tokens": row.tokens}
            yield {**text, "scores": [_round(row.scores.get(method)) for method in methods]}


def _round(score: float | None) -> float | None:
    return None if score is None else float(f"{score:.{SIGNIFICANT_DIGITS}g}")


def threshold_lines(calibration: Calibration) -> Iterator[dict[str, Any]]:
    """The lines of the thresholds of a machine verdict."""
    for method, fitted in calibration.methods.items():
        for bucket in fitted.buckets:
            for threshold in bucket.machine:
                limits = {"min_tokens": bucket.min_tokens, "max_tokens": bucket.max_tokens}
                higher = fitted.direction == "higher"
                yield {"kind": "border", "method": method, "higher": higher, **limits, **threshold.model_dump()}


def held_out_rows(data: Path, work: Path) -> dict[str, list[ScoreRow]]:
    """The rows by name of their set: stories of the books that the calibration was not fitted on, and the pairs as published."""
    published = [text_set for text_set in build.detect_sets(data) if text_set.name.endswith("/0")]
    _, rows = build.score_sets([build.story_set(data, work), *published], ModelSettings(slots=1), work / "scores.jsonl")
    books = sorted(set(map(page.book_of, rows[STORIES])))[: build.FIT_BOOKS]
    rows[STORIES] = [row for row in rows[STORIES] if page.book_of(row) not in books]
    return {name.removesuffix("/0"): set_rows for name, set_rows in rows.items()}


def write(args: argparse.Namespace, command: str) -> Path:
    """Writes the run file and returns its path. Raises a `LitmusError` if the calibration, the books or the pairs are missing."""
    calibration = load(build.PERFORMER / CALIBRATION_FILE)
    methods = list(calibration.methods)
    sets = held_out_rows(args.data, args.work)
    models = calibration.models
    model = {"id": f"{models.performer} with {models.observer}", "quantize": models.quantize, "dtype": models.dtype}
    run = create_run(args.out, "detector", {"command": command, "model": model, "methods": methods, "made": calibration.made})
    for line in threshold_lines(calibration):
        run.note(line)
    for name, rows in sets.items():
        for line in text_lines(name, rows, methods):
            run.note(line)
    run.close()
    return run.path


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.detector.scores", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds stories/ and detect/")
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"), help="where `models.detector` recorded stories and scores")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    try:
        path = write(_parse_args(argv), shlex.join(["python", "-m", "models.detector.scores", *argv]))
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
