"""Writes the scores behind `notebooks/06-detector.ipynb` as runs/detector-*.jsonl: a line for each text with its scores, without the text.

    python -m models.detector.scores --data ../shared/data

Reads what `models.detector.default` recorded of `detect/`, scores only what is missing, and adds the recorded prose of people.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.calibrate import PASSAGE_TOKENS, score_with_journal
from app.errors import LitmusError, SetupError
from app.scoring.calibration import SMOLLM2_PATH, Calibration, load
from app.scoring.combining import fit_combined, with_combined, with_held_out_combined
from app.scoring.sample import ScoreRow
from app.settings import ModelSettings
from loadtest.run import create_run
from models.detector.build import detect_sets
from models.detector.default import settings_of
from models.detector.evaluation import BUCKET_STARTS, METHODS, left_out, split_name
from models.detector.people import read_whole

SIGNIFICANT_DIGITS = 4  # of a recorded score
MIN_TOKENS = BUCKET_STARTS[0]
PEOPLE = "people"  # name of the set with people's prose of other kinds, whose `domain` is the kind


def rows_by_set(data: Path, settings: ModelSettings, journal: Path) -> dict[str, list[ScoreRow]]:
    """The rows of whole texts and of their beginnings, by `<domain>_<generator>`. Raises `SetupError` without pairs."""
    published = {each.name.removesuffix("/0"): each.texts for each in detect_sets(data) if each.name.endswith("/0")}
    if not published:
        raise SetupError(f"{data / 'detect'} has no pairs; --data names the folder that holds detect/")
    texts = [replace(text, domain=name) for name, found in published.items() for text in found]
    _, rows = score_with_journal(settings, journal, texts, PASSAGE_TOKENS, BUCKET_STARTS)
    return {name: [replace(row, domain=split_name(name)[0]) for row in rows if row.domain == name] for name in published}


def text_lines(sets: Mapping[str, Sequence[ScoreRow]]) -> Iterator[dict[str, Any]]:
    """The lines of the whole texts that are long enough.

    `scores` are by `METHODS`; weights of `combined` leave out the set's domain and generator. `judged` is the score of `combined` that the
    borders were drawn on: weights leave out the text's group. `group` is a number, as only which texts share a source matters.
    """
    fit_rows = [row for rows in sets.values() for row in rows]
    groups = {group: number for number, group in enumerate(sorted({row.group for row in fit_rows}))}
    judged = iter(with_held_out_combined(fit_rows))
    for name, rows in sets.items():
        model = fit_combined(left_out(name, fit_rows))
        for row in with_combined(rows, model) if model else rows:
            line = _line(name, row, next(judged).scores.get("combined"))
            if row.tokens >= MIN_TOKENS and not row.beginning:
                yield {**line, "machine": row.machine, "group": groups[row.group]}


def people_lines(calibration: Calibration) -> Iterator[dict[str, Any]]:
    """People's prose of other kinds, by the calibration's weights, which never saw it."""
    rows = [row for row in read_whole() if row.tokens >= MIN_TOKENS]
    for row in with_combined(rows, calibration.combined):
        yield {**_line(PEOPLE, row, row.scores.get("combined")), "machine": False, "group": row.group, "domain": row.domain}


def _line(name: str, row: ScoreRow, judged: float | None) -> dict[str, Any]:
    scores = [_round(row.scores.get(method)) for method in METHODS]
    return {"kind": "text", "set": name, "tokens": row.tokens, "scores": scores, "judged": _round(judged)}


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


def write(args: argparse.Namespace, command: str) -> Path:
    """Writes the run file and returns its path. Raises a `LitmusError` if the calibration or the pairs are missing."""
    calibration = load(args.calibration)
    sets = rows_by_set(args.data, settings_of(args.model), args.work / "scores.jsonl")
    models = calibration.models
    model = {"id": models.performer, "quantize": models.quantize, "dtype": models.dtype}
    run = create_run(args.out, "detector", {"command": command, "model": model, "methods": METHODS, "made": calibration.made})
    for line in (*threshold_lines(calibration), *text_lines(sets), *people_lines(calibration)):
        run.note(line)
    run.close()
    return run.path


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.detector.scores", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds detect/")
    parser.add_argument("--model", help="another GGUF file or folder of the same weights")
    parser.add_argument("--calibration", type=Path, default=SMOLLM2_PATH, help="whose borders are shown")
    parser.add_argument("--work", type=Path, default=Path("runs/detector"), help="where `models.detector.default` recorded scores")
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
