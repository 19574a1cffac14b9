"""Shows whether another precision of the default model's weights gives the verdicts of its calibration, and accepts it if so.

    python -m models.detector.equal --model runs/smollm2 --quantize int4 --accept

Both precisions score the same texts of `detect/`. Equal means: the verdict at the 1% border differs for at most 2% of the texts, the share
of human texts beyond it grows by at most 1%, and AUROC falls by at most 0.01. `--accept` adds the precision to the calibration.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.calibrate import CHOICES, PASSAGE_TOKENS, score_with_journal
from app.errors import LitmusError, SetupError
from app.scoring.calibration import SMOLLM2_PATH, Calibration, load, save
from app.scoring.combining import with_combined
from app.scoring.sample import ScoreRow, auroc, sample_of
from app.settings import ModelSettings
from models.detector.build import detect_sets
from models.detector.default import settings_of
from models.detector.quality import take_evenly

MAX_CHANGED = 0.02  # share of all texts whose verdict `machine` comes or goes
MAX_FPR_GROWTH = 0.01
MAX_AUROC_LOSS = 0.01


def compare(calibration: Calibration, made: Sequence[ScoreRow], other: Sequence[ScoreRow]) -> dict[str, float]:
    """Rows of the same texts in the same order, as the calibration's models and as the others score them."""
    pairs = [
        (one, two) for one, two in zip(made, other, strict=True) if one.tokens >= calibration.methods["combined"].buckets[0].min_tokens
    ]
    differences = np.array([(two.scores["combined"] or 0) - (one.scores["combined"] or 0) for one, two in pairs])
    called = np.array([[_is_called(calibration, row) for row in pair] for pair in pairs])
    humans = np.array([not one.machine for one, _ in pairs])
    return {
        "texts": len(pairs),
        "mean_difference": float(differences.mean()),
        "mean_absolute_difference": float(np.abs(differences).mean()),
        "verdicts_changed": float((called[:, 0] != called[:, 1]).mean()),
        "fpr": float(called[humans, 0].mean()),
        "other_fpr": float(called[humans, 1].mean()),
        "tpr": float(called[~humans, 0].mean()),
        "other_tpr": float(called[~humans, 1].mean()),
        "auroc": auroc(sample_of([one for one, _ in pairs], "combined")),
        "other_auroc": auroc(sample_of([two for _, two in pairs], "combined")),
    }


def _is_called(calibration: Calibration, row: ScoreRow) -> bool:
    score = row.scores["combined"]
    judgement = None if score is None else calibration.judge("combined", row.tokens, score)
    return judgement is not None and judgement.verdict == "machine"


def is_equal(found: dict[str, float]) -> bool:
    return (
        found["verdicts_changed"] <= MAX_CHANGED
        and found["other_fpr"] - found["fpr"] <= MAX_FPR_GROWTH
        and found["auroc"] - found["other_auroc"] <= MAX_AUROC_LOSS
    )


def run(args: argparse.Namespace) -> tuple[dict[str, float], bool]:
    calibration, journal = load(args.calibration), args.work / "scores.jsonl"
    if calibration.combined is None:
        raise SetupError(f"{args.calibration} has no weights for combined")
    sets = [each for each in detect_sets(args.data) if each.name.endswith("/0")]
    texts = [text for each in sets for text in take_evenly(each.texts, max(2, args.texts // len(sets)))]
    if not texts:
        raise SetupError(f"{args.data / 'detect'} has no pairs; --data names the folder that holds detect/")
    made = settings_of(args.made_with)
    other = ModelSettings(path=args.model or made.path, quantize=args.quantize, dtype=args.dtype, slots=1, context=made.context)
    models, rows = score_with_journal(made, journal, texts, PASSAGE_TOKENS)
    if models != calibration.models:
        raise SetupError(f"{args.calibration} was made with other weights; name them with --made-with")
    identity, other_rows = score_with_journal(other, journal, texts, PASSAGE_TOKENS)
    found = compare(calibration, with_combined(rows, calibration.combined), with_combined(other_rows, calibration.combined))
    equal = is_equal(found)
    if equal and args.accept and identity not in (calibration.models, *calibration.equal):
        save(calibration.model_copy(update={"equal": (*calibration.equal, identity)}), args.calibration)
    return {**found, **identity.model_dump(exclude_none=True)}, equal


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.detector.equal", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="folder or GGUF file of the same weights; default: the calibration's own file")
    parser.add_argument("--quantize", choices=CHOICES["quantize"], default="none")
    parser.add_argument("--dtype", choices=CHOICES["dtype"], default="auto")
    parser.add_argument("--accept", action="store_true", help="add an equal precision to the calibration")
    parser.add_argument("--texts", type=int, default=480, help="about so many, as many of each set")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds detect/")
    parser.add_argument("--calibration", type=Path, default=SMOLLM2_PATH)
    parser.add_argument("--made-with", help="the weights that the calibration was made with; default: the default model")
    parser.add_argument("--work", type=Path, default=Path("runs/detector"), help="records scores, as `models.detector.default` does")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    try:
        found, equal = run(_parse_args(argv))
    except LitmusError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps({**found, "equal": equal}) + "\n")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
