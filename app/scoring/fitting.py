"""From scored texts to a calibration: borders at fixed false-positive rates, and a monotone probability. Refuses what n does not support.

Needs scikit-learn and SciPy, which the serving process does not import.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.stats import beta
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from app.errors import SetupError
from app.schemas import MIN_SCORED_TOKENS, Method
from app.scoring.sample import Floats, Row, Sample, redrawn, sample_of, sign_of
from app.scoring.thresholds import DIRECTIONS, Border, Bucket, Chance, Scale

EDGES = (MIN_SCORED_TOKENS, 128, 256, 512)  # the last bucket has no end
METHODS: tuple[Method, ...] = get_args(Method)
KNOTS = 33
FOLDS = 5
MIN_SOURCES = 5  # groups on each side, below which drawing them anew says nothing of how sure a probability is
DRAWS = 200  # of the probability map's interval
Kind = Literal["isotonic", "logistic"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of the texts to fit and of those left out, as arrays."""

    fit: np.ndarray
    left: np.ndarray


def clopper_pearson(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share of `count` in `n` independent texts."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    return low, high


def needed(target: float) -> int:
    """Texts below which a rate cannot be claimed: one in n is the least that n texts can show."""
    return math.ceil(1 / target - 1e-9)


def refusal(target: float, n: int, side: str = "human") -> str | None:
    return f"{100 * target:g}% needs {needed(target):,} {side} texts; you gave {n:,}" if n < needed(target) else None


def border_of(scores: Floats, target: float) -> float:
    """The score that a further text of the same kind exceeds with a probability of at most `target`: the k-th largest of n, k the whole
    part of target * (n + 1) (split conformal; Vovk et al., 2005). At most k - 1 of `scores` lie above it. Raises `SetupError`.
    """
    reason = refusal(target, len(scores))
    if reason:
        raise SetupError(reason)
    rank = max(1, math.floor(target * (len(scores) + 1) + 1e-9))
    return float(np.partition(scores, -rank)[-rank])


def border(scores: Floats, target: float, sign: int) -> Border:
    value = border_of(scores, target)
    beyond = int((scores > value).sum())
    low, high = clopper_pearson(beyond, len(scores))
    return Border(value=sign * value, target=target, measured=beyond / len(scores), low=low, high=high, n=len(scores))


def folds(sample: Sample) -> Iterator[Split]:
    """Groups kept whole, at most five parts; none for a single group. A part without which one side is empty is left out."""
    parts = min(FOLDS, sample.groups)
    if parts < 2:
        return
    for fit, left in GroupKFold(parts, shuffle=True, random_state=0).split(sample.score, groups=sample.group):
        if 0 < sample.machine[fit].mean() < 1:
            yield Split(fit, left)


def curve(kind: Kind, sample: Sample, at: Floats) -> Floats:
    """The probability map of `kind`, both sides weighing alike, at these scores. It never falls: a logistic that would is flat at 1/2."""
    if kind == "isotonic":
        step = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        found: Floats = step.fit(sample.score, sample.machine.astype(float), sample.weight).predict(at)
    else:
        centre, spread = sample.score.mean(), sample.score.std() or 1.0
        line = LogisticRegression().fit(((sample.score - centre) / spread)[:, None], sample.machine, sample.weight)
        if line.coef_[0, 0] <= 0:
            return np.full(len(at), 0.5)
        found = line.predict_proba(((at - centre) / spread)[:, None])[:, 1]
    return np.clip(found, *bounds(sample))


def bounds(sample: Sample) -> tuple[float, float]:
    """No probability closer to 0 or 1 than one text more on either side would leave it (Laplace's rule of succession)."""
    least = 1 / (min(len(sample.human_scores), len(sample.machine_scores)) + 2)
    return least, 1 - least


def out_of_fold(kind: Kind, sample: Sample) -> Floats:
    """Probability of each text by a map fitted without its group; NaN for those of a part that could not be left out."""
    found = np.full(len(sample.score), np.nan)
    for split in folds(sample):
        found[split.left] = curve(kind, sample.take(split.fit), sample.score[split.left])
    return found


def losses(p: Floats, sample: Sample) -> tuple[float, float] | None:
    """Brier score and log loss (nats), both sides weighing alike. None without a probability for texts of both sides."""
    known = ~np.isnan(p)
    if not 0 < sample.machine[known].sum() < known.sum():
        return None
    part, p = sample.take(known), p[known]
    truth = part.machine.astype(float)
    surprise = -np.log(np.where(part.machine, p, 1 - p))
    return float(np.average((p - truth) ** 2, weights=part.weight)), float(np.average(surprise, weights=part.weight))


def chance(sample: Sample, sign: int) -> Chance:
    """The kind with the smaller log loss out of fold; logistic, without a loss, where there are too few groups to leave one out."""
    found = {kind: loss for kind in KINDS if (loss := losses(out_of_fold(kind, sample), sample))}
    kind: Kind = min(found, key=lambda one: found[one][1]) if found else "logistic"
    at = np.unique(np.quantile(sample.score, np.linspace(0, 1, KNOTS)))
    if len(at) < 2:
        raise SetupError(f"all {len(sample.score)} texts have the same score: no probability can be fitted")
    p = curve(kind, sample, at)
    low, high = np.quantile([curve(kind, one, at) for one in redrawn(sample, DRAWS)], [0.025, 0.975], axis=0)
    n = min(len(sample.human_scores), len(sample.machine_scores))
    low, high = np.minimum.reduce([low, p, np.full(len(p), 1 - 3 / n)]), np.maximum.reduce([high, p, np.full(len(p), 3 / n)])
    columns = [(sign * at)[::sign], p[::sign], np.maximum(low, 0)[::sign], np.minimum(high, 1)[::sign]]
    score, middle, least, most = (tuple(map(float, column)) for column in columns)
    brier, log_loss = found.get(kind, (None, None))
    return Chance(kind=kind, score=score, p=middle, low=least, high=most, brier=brier, log_loss=log_loss)


def spans(edges: Sequence[int]) -> list[tuple[int, int | None]]:
    return list(zip(edges, [*edges[1:], None], strict=True))


def within(rows: Sequence[Row], span: tuple[int, int | None]) -> list[Row]:
    return [row for row in rows if span[0] <= row.tokens and (span[1] is None or row.tokens < span[1])]


def bucket(rows: Sequence[Row], method: Method, span: tuple[int, int | None], targets: Sequence[float]) -> tuple[Bucket | None, list[str]]:
    """What the texts of one length support, and sentences on what they do not."""
    sample, sign = sample_of(within(rows, span), method), sign_of(method)
    humans, machines = sample.human_scores, sample.machine_scores
    where = f"{span[0]}+ tokens" if span[1] is None else f"{span[0]} to {span[1]} tokens"
    reasons = [refusal(target, len(humans)) for target in targets]
    reasons += [refusal(max(targets), len(machines), "machine")]
    refused = [f"{method}, {where}: {reason}" for reason in reasons if reason]
    able = [target for target in targets if not refusal(target, len(humans))]
    if not able or refusal(max(targets), len(machines), "machine"):
        return None, refused
    made = Bucket(
        min_tokens=span[0],
        max_tokens=span[1],
        n_human=len(humans),
        n_machine=len(machines),
        machine=tuple(border(humans, target, sign) for target in able),
        human=tuple(border(-machines, target, -sign) for target in able if not refusal(target, len(machines))),
        chance=chance(sample, sign) if sample.sources >= MIN_SOURCES else None,
    )
    if made.chance is None:
        refused.append(f"{method}, {where}: a probability needs {MIN_SOURCES} groups on each side; one has {sample.sources}")
    return made, refused


def scales(rows: Sequence[Row], targets: Sequence[float], edges: Sequence[int] = EDGES) -> tuple[dict[Method, Scale], list[str]]:
    """Every method that has scores, and sentences on what was refused. Raises `SetupError` for a target that no length supports."""
    found: dict[Method, Scale] = {}
    refused: list[str] = []
    for method in METHODS:
        if not any(row.scores.get(method) is not None for row in rows):
            continue
        made = [bucket(rows, method, span, targets) for span in spans(edges)]
        refused += [reason for _, reasons in made for reason in reasons]
        found[method] = Scale(direction=DIRECTIONS[method], buckets=tuple(one for one, _ in made if one))
    _check(found, targets, refused)
    return found, refused


def _check(found: dict[Method, Scale], targets: Sequence[float], refused: Sequence[str]) -> None:
    supported = {border.target for scale in found.values() for one in scale.buckets for border in one.machine}
    for target in targets:
        if target not in supported:
            details = "; ".join(refused) or "no text could be scored"
            raise SetupError(f"no length has texts enough for {100 * target:g}%: give more, or wider --buckets. {details}")
