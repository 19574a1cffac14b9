"""The bundled pair as a detector: its calibration, and what it can and cannot tell, as `docs/detector.md`.

    python -m models.detector --data ../shared/data

Fitted on three of the five validation books, measured on the other two and on every set of `detect/`. Resumable: stories and scores are
kept under `--work` as they come.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.calibrate import scored
from app.errors import LitmusError, SetupError
from app.models.loading import create_engine
from app.scoring.calibration import BESIDE, Calibration, Models, save
from app.scoring.fitting import scales
from app.scoring.report import render
from app.scoring.sample import Row
from app.scoring.sources import Fields, Text, prepared, read
from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from models.detector import excerpts, page

PERFORMER = Path(ModelSettings().path)
FIT_BOOKS = 3  # the first by name; the others are measured on
TARGETS = (0.05, 0.01)
EDGES = (64, 128, 256)
CUTS = (0, 25)  # words the two halves of a detect pair share


@dataclass(frozen=True, slots=True)
class Set:
    """Texts that are looked at together."""

    name: str
    texts: list[Text]


def told(data: Path, work: Path) -> Set:
    """Passages and stories; the domain of a human text is "human", of a story its setting."""
    settings = ModelSettings(slots=32)
    tokenizer = Tokenizer(settings.path)
    humans = list(excerpts.passages(data / "stories" / "valid", tokenizer))
    if not humans:
        raise SetupError(f"{data / 'stories' / 'valid'} has no books; --data names the folder that holds stories/ and detect/")
    engine, _ = create_engine(settings)
    pieces = [*humans, *excerpts.stories(engine, tokenizer, humans, work / "stories.jsonl")]
    texts = (Text(piece.text, piece.kind != "human", piece.group, piece.kind) for piece in pieces)
    return Set("stories", prepared(texts, collapse=True))


def pairs(data: Path) -> list[Set]:
    """Every file of `detect/`, as published and with the shared opening cut from both halves."""
    files = sorted((data / "detect").glob("*.jsonl.gz"))
    made = []
    for words in CUTS:
        for file in files:
            both = [*read([file], False, Fields()), *read([file], True, Fields())]
            made.append(Set(f"{file.name.removesuffix('.jsonl.gz')}/{words}", prepared(both, True, words)))
    return made


def rows_of(sets: Sequence[Set], settings: ModelSettings, journal: Path) -> tuple[Models, dict[str, list[Row]]]:
    """The scored texts of each set, in their order."""
    models, rows = scored(settings, journal, [text for one in sets for text in one.texts])
    left = iter(rows)
    return models, {one.name: [next(left) for _ in one.texts] for one in sets}


def fit(rows: Sequence[Row], models: Models) -> Calibration:
    methods, refused = scales(rows, TARGETS, EDGES)
    books = ", ".join(sorted({page.book_of(row) for row in rows}))
    ended = {name: scale.model_copy(update={"buckets": tuple(page.ended(one) for one in scale.buckets)}) for name, scale in methods.items()}
    return Calibration(
        made=time.strftime("%Y-%m-%d"),
        source=f"Human texts: passages of {books}. Machine texts: stories of the model itself, asked for with words of these passages, at "
        f"{'; '.join(excerpts.SETTINGS)}. It says nothing about texts of other models or of other kinds.",
        models=models,
        collapse=True,
        methods=ended,
        refused=tuple(refused),
    )


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.detector", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds stories/ and detect/")
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"), help="stories and scores; delete it to start anew")
    parser.add_argument("--out", type=Path, default=PERFORMER / BESIDE, help="the calibration")
    parser.add_argument("--report", type=Path, default=(PERFORMER / BESIDE).with_suffix(".md"))
    parser.add_argument("--page", type=Path, default=Path("docs/detector.md"))
    return parser.parse_args(words)


def measure(given: argparse.Namespace) -> None:
    sets = [told(given.data, given.work), *pairs(given.data)]
    models, rows = rows_of(sets, ModelSettings(slots=1), given.work / "scores.jsonl")
    stories = rows.pop("stories")
    books = sorted(set(map(page.book_of, stories)))[:FIT_BOOKS]
    fitted = [row for row in stories if page.book_of(row) in books]
    calibration = fit(fitted, models)
    save(calibration, given.out)
    given.report.write_text(render(calibration, fitted))
    given.page.write_text(page.render(calibration, books, stories, rows))


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    try:
        measure(given)
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
