"""Calibrates the bundled pair, and measures what it detects and what it does not, as `docs/detector-pair.md`.

    python -m models.detector --data ../shared/data

Fits on three of the five validation books, and measures on the other two and on every set of `detect/`. Stories and scores are recorded
under `--work` as they come, so a second run resumes.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.calibrate import score_with_journal
from app.errors import LitmusError, SetupError
from app.models.loading import create_engine
from app.scoring.calibration import CALIBRATION_FILE, Calibration, ModelIdentity, save
from app.scoring.combining import fit_all, with_combined
from app.scoring.report import render
from app.scoring.sample import ScoreRow
from app.scoring.sources import FieldNames, LabelledText, prepare_texts, read
from app.settings import BUNDLED, ModelSettings
from app.tokenizer import Tokenizer
from models.detector import excerpts, page

PERFORMER = BUNDLED / "storyteller"
FIT_BOOKS = 3  # the first by name; the others are held out for measuring
TARGETS = (0.05, 0.01)  # false-positive rates
BUCKET_STARTS = (64, 128, 256)  # scored tokens
CUT_WORDS = (0, 25)  # words to cut from both texts of a `detect/` pair, which share their opening


@dataclass(frozen=True, slots=True)
class TextSet:
    """Texts that are evaluated together."""

    name: str
    texts: list[LabelledText]


def settings_of(slots: int) -> ModelSettings:
    """The bundled pair, also where another model is the default."""
    return ModelSettings(path=str(PERFORMER), slots=slots)


def story_set(data: Path, work: Path) -> TextSet:
    """Passages and stories. The domain of a human text is "human", that of a story its kind of sampling, which counts as its generator."""
    settings = settings_of(32)
    tokenizer = Tokenizer(settings.path)
    humans = list(excerpts.passages(data / "stories" / "valid", tokenizer))
    if not humans:
        raise SetupError(f"{data / 'stories' / 'valid'} has no books; --data names the folder that holds stories/ and detect/")
    engine, _ = create_engine(settings)
    stories = excerpts.load_or_generate_stories(engine, tokenizer, humans, work / "stories.jsonl")
    texts = [LabelledText(excerpt.text, False, excerpt.group, excerpt.kind) for excerpt in humans]
    texts += [LabelledText(excerpt.text, True, excerpt.group, excerpt.kind, excerpt.kind) for excerpt in stories]
    return TextSet("stories", prepare_texts(texts, collapse=True))


def detect_sets(data: Path) -> list[TextSet]:
    """Every file of `detect/`, once as published and once with the shared opening cut from both texts: `name/0` and `name/25`."""
    files = sorted((data / "detect").glob("*.jsonl.gz"))
    sets = []
    for words in CUT_WORDS:
        for file in files:
            texts = [*read([file], False, FieldNames()), *read([file], True, FieldNames())]
            sets.append(TextSet(f"{file.name.removesuffix('.jsonl.gz')}/{words}", prepare_texts(texts, True, words)))
    return sets


def score_sets(
    sets: Sequence[TextSet], settings: ModelSettings, journal: Path, passage_tokens: int | None = None
) -> tuple[ModelIdentity, dict[str, list[ScoreRow]]]:
    """Scores the texts of all sets; returns the rows by name of their set, in the order of its texts."""
    models, rows = score_with_journal(settings, journal, [text for text_set in sets for text in text_set.texts], passage_tokens)
    remaining = iter(rows)
    return models, {text_set.name: [next(remaining) for _ in text_set.texts] for text_set in sets}


def fit_calibration(rows: Sequence[ScoreRow], models: ModelIdentity) -> tuple[Calibration, list[ScoreRow]]:
    """The calibration, and the rows with the held-out scores of `combined` that its borders rest on."""
    combined, methods, refused, held_out = fit_all(rows, TARGETS, BUCKET_STARTS)
    books = ", ".join(sorted({page.book_of(row) for row in rows}))
    limited = {
        method: fitted.model_copy(update={"buckets": tuple(page.with_upper_limit(bucket) for bucket in fitted.buckets)})
        for method, fitted in methods.items()
    }
    calibration = Calibration(
        made=time.strftime("%Y-%m-%d"),
        source=f"Human texts: passages of {books}. Machine texts: stories of the model itself, asked for with words of these passages, at "
        f"{'; '.join(excerpts.SAMPLING)}. It says nothing about texts of other models or of other kinds.",
        models=models,
        collapse=True,
        combined=combined,
        methods=limited,
        refused=tuple(refused),
    )
    return calibration, held_out


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.detector", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds stories/ and detect/")
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"), help="records stories and scores; delete it to start over")
    parser.add_argument("--out", type=Path, default=PERFORMER / CALIBRATION_FILE, help="calibration file to write")
    parser.add_argument("--report", type=Path, default=(PERFORMER / CALIBRATION_FILE).with_suffix(".md"))
    parser.add_argument("--page", type=Path, default=Path("docs/detector-pair.md"))
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> None:
    """Generates, scores, fits, and writes calibration, report and page."""
    sets = [story_set(args.data, args.work), *detect_sets(args.data)]
    models, rows = score_sets(sets, settings_of(1), args.work / "scores.jsonl")
    stories = rows.pop("stories")
    books = sorted(set(map(page.book_of, stories)))[:FIT_BOOKS]
    calibration, fitted = fit_calibration([row for row in stories if page.book_of(row) in books], models)
    save(calibration, args.out)
    args.report.write_text(render(calibration, fitted))
    others = with_combined([row for row in stories if page.book_of(row) not in books], calibration.combined)
    scored = {name: with_combined(found, calibration.combined) for name, found in rows.items()}
    args.page.write_text(page.render(calibration, fitted, others, scored))


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    try:
        build(args)
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
