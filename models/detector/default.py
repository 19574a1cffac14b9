"""Calibrates the default model on `detect/`, and measures it with domain and generator left out, as `docs/detector.md`.

    python -m models.detector.default --data ../shared/data

Scores are recorded under `--work` as they come, so a second run resumes. `--counts` keeps the weights, borders and probabilities of
`--out`, and counts anew how its texts score; no page is written then.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from app.calibrate import PASSAGE_TOKENS, memorised_nats, min_characters_per_token, score_with_journal
from app.errors import LitmusError, SetupError
from app.scoring.calibration import SMOLLM2_PATH, Calibration, ModelIdentity, load, save
from app.scoring.combining import fit_all, with_combined
from app.scoring.fitting import with_counts
from app.scoring.sample import ScoreRow
from app.scoring.sources import FieldNames, LabelledText, prepare_texts, read
from app.settings import ModelSettings, smollm2
from app.tokenizer import Tokenizer
from models.detector import default_page
from models.detector.build import detect_sets, score_sets
from models.detector.evaluation import BUCKET_STARTS, TARGETS
from models.detector.people import read_people

SOURCE = (
    "Human texts: news (XSum) and stories (WritingPrompts). Machine texts: what GPT-3.5, GPT-4, text-davinci-003, GPT-2 XL, GPT-J and "
    "GPT-Neo made of their beginnings (the pairs of Fast-DetectGPT, arXiv 2310.05130). Borders: the stricter of the two domains', each "
    "text scored by weights that were fitted without it; those of `combined` are drawn at half of their rate. No border is less strict "
    "than that of eight other kinds of people's prose, each with the same weight."
)


def settings_of(path: str | None) -> ModelSettings:
    """Raises `SetupError` where the default model is not installed."""
    found = path or smollm2()
    if found is None:
        raise SetupError("SmolLM2-135M-Instruct is not installed; `make install` fetches it, or name the file with --model")
    return ModelSettings(path=str(found), slots=1, context=1024)


def fit_texts(data: Path) -> list[LabelledText]:
    files = sorted((data / "detect").glob("*.jsonl.gz"))
    if not files:
        raise SetupError(f"{data / 'detect'} has no pairs; --data names the folder that holds detect/")
    return prepare_texts([*read(files, False, FieldNames()), *read(files, True, FieldNames())], collapse=True)


def fit_calibration(rows: Sequence[ScoreRow], models: ModelIdentity, characters: float | None) -> Calibration:
    combined, methods, refused, _ = fit_all(rows, TARGETS, BUCKET_STARTS, read_people())
    return Calibration(
        made=time.strftime("%Y-%m-%d"),
        source=SOURCE,
        models=models,
        collapse=True,
        passage_tokens=PASSAGE_TOKENS,
        min_characters_per_token=characters,
        memorised_nats=memorised_nats(rows),
        combined=combined,
        methods=methods,
        refused=tuple(refused),
    )


def build(args: argparse.Namespace) -> None:
    """Scores, fits, evaluates, and writes the calibration and the page."""
    settings, journal = settings_of(args.model), args.work / "scores.jsonl"
    texts = fit_texts(args.data)
    models, rows = score_with_journal(settings, journal, texts, PASSAGE_TOKENS, BUCKET_STARTS)
    characters = min_characters_per_token([text.content for text in texts if not text.machine], Tokenizer(settings.path))
    calibration = fit_calibration(rows, models, characters)
    warn_of_accepted(args.out)
    save(calibration, args.out)
    _, sets = score_sets(detect_sets(args.data), settings, journal, PASSAGE_TOKENS)
    by_domain = {
        domain: fit_calibration([row for row in rows if row.domain != domain], models, characters)
        for domain in sorted({row.domain for row in rows})
    }
    args.page.write_text(default_page.render(calibration, sets, rows, by_domain))


def warn_of_accepted(path: Path) -> None:
    """Of precisions that were shown to be equal to the calibration that is replaced; that does not show it of the new one."""
    accepted = load(path).equal if path.exists() else ()
    for each in accepted:
        sys.stderr.write(
            f"{each.performer} in {each.quantize if each.quantize != 'none' else each.dtype} was accepted in the calibration that this one "
            "replaces; show it anew with python -m models.detector.equal --accept\n"
        )


def recount(args: argparse.Namespace) -> None:
    """Adds to a calibration how its texts score. Raises `SetupError` for one that was made with other weights."""
    calibration, settings = load(args.out), settings_of(args.model)
    models, rows = score_with_journal(settings, args.work / "scores.jsonl", fit_texts(args.data), PASSAGE_TOKENS, BUCKET_STARTS)
    if models != calibration.models:
        raise SetupError(f"{args.out} was made with {calibration.models.performer} ({calibration.models.revision}); name it with --model")
    rows = with_combined(rows, calibration.combined)
    methods = {method: with_counts(fitted, method, rows) for method, fitted in calibration.methods.items()}
    save(calibration.model_copy(update={"methods": methods}), args.out)


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.detector.default", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds detect/")
    parser.add_argument("--model", help="another GGUF file or folder of the same weights")
    parser.add_argument("--work", type=Path, default=Path("runs/detector"), help="records scores; delete it to start over")
    parser.add_argument("--out", type=Path, default=SMOLLM2_PATH, help="calibration file to write")
    parser.add_argument("--counts", action="store_true", help="only count anew how the texts of --out score")
    parser.add_argument("--page", type=Path, default=Path("docs/detector.md"))
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    try:
        (recount if args.counts else build)(args)
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
