"""From scored texts to a calibration: thresholds at fixed false-positive rates and a monotone probability map for each length bucket.

Refuses what the number of texts does not support. Needs scikit-learn and SciPy, which the serving process does not import; they
are imported when something is fitted, as that takes two seconds.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from app.errors import SetupError
from app.schemas import MIN_SCORED_TOKENS, Method
from app.scoring.histogram import histogram_of
from app.scoring.sample import FloatArray, Sample, ScoreRow, bootstrap_samples, sample_of
from app.scoring.thresholds import DIRECTIONS, Bucket, MethodCalibration, ProbabilityMap, Threshold, sign_of

BUCKET_STARTS = (MIN_SCORED_TOKENS, 128, 256, 512)  # scored tokens; the last bucket has no upper limit
METHODS: tuple[Method, ...] = get_args(Method)
MAP_POINTS = 33  # of a probability map at most
FOLDS = 5
MIN_GROUPS = 5  # of each class; a bootstrap over fewer groups does not show how uncertain a probability is
BOOTSTRAP_DRAWS = 200  # for the interval of a probability map
LEARNED_SHARE = 0.5  # of a target: the weights of `combined` suit the domains that they were fitted on, and other texts cross more often
Kind = Literal["isotonic", "logistic"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the texts to fit on and of those held out."""

    fit: np.ndarray
    held_out: np.ndarray


def clopper_pearson(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact confidence interval of a rate, of which `count` in `n` independent texts were observed."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    return low, high


def texts_needed(target: float) -> int:
    """The fewest texts that support an error rate: the smallest rate above 0 that n texts can show is 1/n."""
    return math.ceil(1 / target - 1e-9)


def why_too_few(target: float, n: int, side: str = "human") -> str | None:
    """Why `n` texts do not support an error rate, as a clause; None if they do."""
    return f"{100 * target:g}% needs at least {texts_needed(target):,} {side} texts, got {n:,}" if n < texts_needed(target) else None


def threshold_at(scores: FloatArray, target: float) -> float:
    """The score that a further text of the same kind exceeds with a probability of at most `target`.

    It is the k-th largest of n scores, with k = floor(target * (n + 1)) (split conformal prediction; Vovk et al., 2005), so at most k - 1
    of `scores` lie above it. Raises `SetupError` for too few scores.
    """
    reason = why_too_few(target, len(scores))
    if reason:
        raise SetupError(reason)
    rank = max(1, math.floor(target * (len(scores) + 1) + 1e-9))
    return float(np.partition(scores, -rank)[-rank])


def pooled_threshold(scores: FloatArray, domains: Sequence[str], target: float) -> float:
    """The score beyond which at most `target` of the texts lie if each domain weighs the same; -inf for too few texts.

    A text of a kind that was not measured is taken to be of any measured kind.
    """
    counts = Counter(domains)
    if why_too_few(target, len(scores)):
        return -math.inf
    order = np.argsort(-scores)
    weights = np.array([1 / (counts[domains[place]] * len(counts)) for place in order])
    return float(scores[order[np.searchsorted(np.cumsum(weights), target)]])


def fit_threshold(
    scores: FloatArray, target: float, sign: int, domains: Sequence[str] = (), share: float = 1, floor: float = -math.inf
) -> Threshold:
    """The strictest of the thresholds of those domains that have enough texts: a text to judge may be like those of any of them, or like
    none. Several domains' thresholds are those of this `share` of the target; no threshold lies below `floor`. `sign` turns `scores` back
    into the method's own scores.
    """
    rate, few = domain_rate(target, share, domains), small_domains(target, share, domains)
    parts = [scores[np.array(domains) == domain] for domain in sorted(set(domains) - few.keys())]
    value = max((threshold_at(part, rate) for part in parts), default=-math.inf)
    value = max(value, threshold_at(scores, target), floor)
    beyond = int((scores > value).sum())
    low, high = clopper_pearson(beyond, len(scores))
    return Threshold(value=sign * value, target=target, measured=beyond / len(scores), low=low, high=high, n=len(scores))


def domain_rate(target: float, share: float, domains: Sequence[str]) -> float:
    """The rate of the thresholds of single domains."""
    return target * share if len(set(domains)) > 1 else target


def small_domains(target: float, share: float, domains: Sequence[str]) -> dict[str, int]:
    """The domains with too few texts for a threshold of their own, and how many they have."""
    rate = domain_rate(target, share, domains)
    return {domain: count for domain, count in sorted(Counter(domains).items()) if why_too_few(rate, count)}


def with_counts(fitted: MethodCalibration, method: Method, rows: Sequence[ScoreRow]) -> MethodCalibration:
    """The same thresholds and maps, with how these texts score: each bucket's histogram, and the share that its machine thresholds find."""
    return fitted.model_copy(update={"buckets": tuple(_counted(bucket, method, rows) for bucket in fitted.buckets)})


def _counted(bucket: Bucket, method: Method, rows: Sequence[ScoreRow]) -> Bucket:
    sample, sign = sample_of(rows_in_range(rows, (bucket.min_tokens, bucket.max_tokens)), method), sign_of(method)
    shares = [float((sample.machine_scores > sign * threshold.value).mean()) for threshold in bucket.machine]
    machine = tuple(threshold.model_copy(update={"found": share}) for threshold, share in zip(bucket.machine, shares, strict=True))
    return bucket.model_copy(update={"machine": machine, "histogram": histogram_of(sample, sign, method == "perplexity")})


def folds(sample: Sample) -> Iterator[Split]:
    """At most five folds that keep groups whole; none for a single group. Skips a fold without which one class has no text left."""
    count = min(FOLDS, sample.groups)
    if count < 2:
        return
    from sklearn.model_selection import GroupKFold

    for fit, held_out in GroupKFold(count, shuffle=True, random_state=0).split(sample.score, groups=sample.group):
        if 0 < sample.machine[fit].mean() < 1:
            yield Split(fit, held_out)


def fit_and_predict(kind: Kind, sample: Sample, scores: FloatArray) -> FloatArray:
    """Fits a probability map of `kind`, with both classes weighted equally, and applies it to `scores`.

    The map never falls: where a logistic regression would, the probability is 1/2 everywhere.
    """
    if kind == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        isotonic = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        p: FloatArray = isotonic.fit(sample.score, sample.machine.astype(float), sample.weight).predict(scores)
    else:
        from sklearn.linear_model import LogisticRegression

        centre, spread = sample.score.mean(), sample.score.std() or 1.0
        logistic = LogisticRegression().fit(((sample.score - centre) / spread)[:, None], sample.machine, sample.weight)
        if logistic.coef_[0, 0] <= 0:
            return np.full(len(scores), 0.5)
        p = logistic.predict_proba(((scores - centre) / spread)[:, None])[:, 1]
    return np.clip(p, *probability_bounds(sample))


def probability_bounds(sample: Sample) -> tuple[float, float]:
    """The lowest and highest probability that the smaller class supports (Laplace's rule of succession)."""
    lowest = 1 / (min(len(sample.human_scores), len(sample.machine_scores)) + 2)
    return lowest, 1 - lowest


def out_of_fold_probabilities(kind: Kind, sample: Sample) -> FloatArray:
    """The probability of each text by a map fitted without its group; NaN for texts of a skipped fold."""
    p = np.full(len(sample.score), np.nan)
    for split in folds(sample):
        p[split.held_out] = fit_and_predict(kind, sample.take(split.fit), sample.score[split.held_out])
    return p


def losses(p: FloatArray, sample: Sample) -> tuple[float, float] | None:
    """Brier score and log loss (nats), with both classes weighted equally; texts whose `p` is NaN do not count.

    None unless texts of both classes have a probability.
    """
    known = ~np.isnan(p)
    if not 0 < sample.machine[known].sum() < known.sum():
        return None
    part, p = sample.take(known), p[known]
    truth = part.machine.astype(float)
    surprise = -np.log(np.where(part.machine, p, 1 - p))
    return float(np.average((p - truth) ** 2, weights=part.weight)), float(np.average(surprise, weights=part.weight))


def fit_probability_map(sample: Sample, sign: int) -> ProbabilityMap:
    """A map of the kind with the smaller out-of-fold log loss. With too few groups for folds: logistic, and no losses.

    `sign` turns the sample's scores back into the method's own. Raises `SetupError` if all texts have the same score.
    """
    losses_of = {kind: loss for kind in KINDS if (loss := losses(out_of_fold_probabilities(kind, sample), sample))}
    best: Kind = min(losses_of, key=lambda kind: losses_of[kind][1]) if losses_of else "logistic"
    scores = np.unique(np.quantile(sample.score, np.linspace(0, 1, MAP_POINTS)))
    if len(scores) < 2:
        raise SetupError(f"all {len(sample.score)} texts have the same score: no probability can be fitted")
    p = fit_and_predict(best, sample, scores)
    drawn = [fit_and_predict(best, resampled, scores) for resampled in bootstrap_samples(sample, BOOTSTRAP_DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    n = min(len(sample.human_scores), len(sample.machine_scores))
    low = np.minimum.reduce([low, p, np.full(len(p), 1 - 3 / n)])  # rule of three: n texts without an error leave up to 3/n possible
    high = np.maximum.reduce([high, p, np.full(len(p), 3 / n)])
    columns = [(sign * scores)[::sign], p[::sign], np.maximum(low, 0)[::sign], np.minimum(high, 1)[::sign]]
    score, middle, lowest, highest = (tuple(map(float, column)) for column in columns)
    brier, log_loss = losses_of.get(best, (None, None))
    return ProbabilityMap(kind=best, score=score, p=middle, low=lowest, high=highest, brier=brier, log_loss=log_loss)


def bucket_ranges(starts: Sequence[int]) -> list[tuple[int, int | None]]:
    """`(min_tokens, max_tokens)` of each bucket; the last has no upper limit."""
    return list(zip(starts, [*starts[1:], None], strict=True))


def range_name(token_range: tuple[int, int | None]) -> str:
    low, high = token_range
    return f"{low}+ tokens" if high is None else f"{low} to {high} tokens"


def rows_in_range(rows: Sequence[ScoreRow], token_range: tuple[int, int | None]) -> list[ScoreRow]:
    low, high = token_range
    return [row for row in rows if low <= row.tokens and (high is None or row.tokens < high)]


def fit_bucket(
    rows: Sequence[ScoreRow],
    method: Method,
    token_range: tuple[int, int | None],
    targets: Sequence[float],
    people: Sequence[ScoreRow] = (),
) -> tuple[Bucket | None, list[str]]:
    """What the texts of one range of lengths support, and sentences on what they do not.

    `people`: texts of more kinds, by people; no machine threshold is less strict than theirs, of all lengths (a range has too few), pooled
    with the same weight for each kind.
    """
    found = [row for row in rows_in_range(rows, token_range) if row.scores.get(method) is not None]
    sample, sign = sample_of(found, method), sign_of(method)
    low, high = token_range
    humans, machines = sample.human_scores, sample.machine_scores
    name = f"{method}, {range_name(token_range)}"
    reasons = [why_too_few(target, len(humans)) for target in targets]
    reasons += [why_too_few(max(targets), len(machines), "machine")]
    refused = [f"{name}: {reason}" for reason in reasons if reason]
    supported = [target for target in targets if not why_too_few(target, len(humans))]
    if not supported or why_too_few(max(targets), len(machines), "machine"):
        return None, refused
    bucket = Bucket(
        min_tokens=low,
        max_tokens=high,
        n_human=len(humans),
        n_machine=len(machines),
        machine=machine_thresholds(found, method, supported, people),
        human=tuple(fit_threshold(-machines, target, -sign) for target in supported if not why_too_few(target, len(machines))),
        chance=fit_probability_map(sample, sign) if sample.groups_of_smaller_class >= MIN_GROUPS else None,
    )
    domains = [row.domain for row in found if not row.machine]
    refused += [f"{name}: {reason}" for target in supported if (reason := _without_own(target, share_of(method), domains))]
    if bucket.chance is None:
        refused.append(f"{name}: a probability needs {MIN_GROUPS} groups of each class, got {sample.groups_of_smaller_class}")
    return bucket, refused


def share_of(method: Method) -> float:
    return LEARNED_SHARE if method == "combined" else 1


def _without_own(target: float, share: float, domains: Sequence[str]) -> str | None:
    """Which domains the threshold at a target does not rest on, as a clause; None where it rests on each."""
    few, needed = small_domains(target, share, domains), texts_needed(domain_rate(target, share, domains))
    if not few or len(set(domains)) == 1:
        return None
    names = ", ".join(f"{domain or '(none)'} ({count:,})" for domain, count in few.items())
    return f"at {100 * target:g}%, no threshold of its own for a domain with fewer than {needed:,} human texts: {names}"


def machine_thresholds(
    rows: Sequence[ScoreRow], method: Method, targets: Sequence[float], people: Sequence[ScoreRow]
) -> tuple[Threshold, ...]:
    """The thresholds of a machine verdict by the human texts among `rows`, of one range of lengths, and by `people` as in `fit_bucket`.
    None is less strict than that of a higher rate, which more domains may have enough texts for.
    """
    humans, others = ([row for row in found if not row.machine and row.scores.get(method) is not None] for found in (rows, people))
    scores, pool = (sample_of(found, method).score for found in (humans, others))
    domains, kinds = ([row.domain for row in found] for found in (humans, others))
    sign, floor = sign_of(method), -math.inf
    fitted: dict[float, Threshold] = {}
    for target in sorted(targets, reverse=True):
        floor = max(floor, pooled_threshold(pool, kinds, target))
        fitted[target] = fit_threshold(scores, target, sign, domains, share_of(method), floor)
        floor = sign * fitted[target].value
    return tuple(fitted[target] for target in targets)


def fit_methods(
    rows: Sequence[ScoreRow], targets: Sequence[float], starts: Sequence[int] = BUCKET_STARTS, people: Sequence[ScoreRow] = ()
) -> tuple[dict[Method, MethodCalibration], list[str]]:
    """Calibrates every method that has scores; also returns sentences on what was refused.

    `targets` are false-positive rates, `starts` the scored tokens at which buckets begin, `people` those of `fit_bucket`. Raises
    `SetupError` for a target that no bucket supports.
    """
    calibrations: dict[Method, MethodCalibration] = {}
    refused: list[str] = []
    for method in METHODS:
        if not any(row.scores.get(method) is not None for row in rows):
            continue
        fitted = [fit_bucket(rows, method, token_range, targets, people) for token_range in bucket_ranges(starts)]
        refused += [reason for _, reasons in fitted for reason in reasons]
        buckets = tuple(bucket for bucket, _ in fitted if bucket)
        calibrations[method] = with_counts(MethodCalibration(direction=DIRECTIONS[method], buckets=buckets), method, rows)
    _check_targets(calibrations, targets, refused)
    return calibrations, refused


def _check_targets(calibrations: dict[Method, MethodCalibration], targets: Sequence[float], refused: Sequence[str]) -> None:
    """Raises `SetupError` for a target that no bucket of any method supports."""
    buckets = [bucket for calibration in calibrations.values() for bucket in calibration.buckets]
    supported = {threshold.target for bucket in buckets for threshold in bucket.machine}
    for target in targets:
        if target not in supported:
            details = "; ".join(refused) or "no text could be scored"
            raise SetupError(f"no length bucket has enough texts for {100 * target:g}%: add texts or choose wider --buckets. {details}")
