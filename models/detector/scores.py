"""The texts that `docs/detector.md` is measured on, as runs/detector-*.jsonl: a line for each with its scores, and no text.

    python -m models.detector.scores --data ../shared/data

Scores come from where `models.detector` keeps them; only what is not there yet is scored. Stories of the books that the calibration was
fitted on are left out, and so are the pairs of `detect/` with their openings cut.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.errors import LitmusError
from app.schemas import Method
from app.scoring.calibration import BESIDE, Calibration, load
from app.scoring.sample import Row
from app.settings import ModelSettings
from loadtest.run import create_run
from models.detector import build, page

DIGITS = 4  # that a score is kept with
OWN = "stories"


def lines(name: str, rows: Sequence[Row], methods: Sequence[Method]) -> Iterator[dict[str, Any]]:
    """Texts that are long enough to be scored. A group is a number: what it counts, texts that share a source, needs no name."""
    groups = {group: number for number, group in enumerate(sorted({row.group for row in rows}))}
    for row in rows:
        if row.tokens >= page.LENGTHS[0][0]:
            told = {"domain": row.domain} if name == OWN else {}
            facts = {"kind": "text", "set": name, "machine": row.machine, "group": groups[row.group], **told, "tokens": row.tokens}
            yield {**facts, "scores": [_short(row.scores.get(method)) for method in methods]}


def _short(score: float | None) -> float | None:
    return None if score is None else float(f"{score:.{DIGITS}g}")


def borders(calibration: Calibration) -> Iterator[dict[str, Any]]:
    """Beyond which a text is called a machine's, for a target share of human texts."""
    for method, scale in calibration.methods.items():
        for bucket in scale.buckets:
            for border in bucket.machine:
                span = {"min_tokens": bucket.min_tokens, "max_tokens": bucket.max_tokens}
                yield {"kind": "border", "method": method, "higher": scale.direction == "higher", **span, **border.model_dump()}


def measured(data: Path, work: Path) -> dict[str, list[Row]]:
    """By set: the stories of the books that nothing was fitted on, and the pairs as published."""
    sets = [build.told(data, work), *(one for one in build.pairs(data) if one.name.endswith("/0"))]
    _, rows = build.rows_of(sets, ModelSettings(slots=1), work / "scores.jsonl")
    books = sorted(set(map(page.book_of, rows[OWN])))[: build.FIT_BOOKS]
    rows[OWN] = [row for row in rows[OWN] if page.book_of(row) not in books]
    return {name.removesuffix("/0"): found for name, found in rows.items()}


def write(given: argparse.Namespace, command: str) -> Path:
    """The file. Raises a `LitmusError` where the calibration, the books or the pairs are not there."""
    calibration = load(build.PERFORMER / BESIDE)
    methods = list(calibration.methods)
    sets = measured(given.data, given.work)
    served = calibration.models
    model = {"id": f"{served.performer} with {served.observer}", "quantize": served.quantize, "dtype": served.dtype}
    run = create_run(given.out, "detector", {"command": command, "model": model, "methods": methods, "made": calibration.made})
    for line in borders(calibration):
        run.note(line)
    for name, rows in sets.items():
        for line in lines(name, rows, methods):
            run.note(line)
    run.close()
    return run.path


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.detector.scores", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds stories/ and detect/")
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"), help="where models.detector keeps stories and scores")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    try:
        path = write(_arguments(words), shlex.join(["python", "-m", "models.detector.scores", *words]))
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
