"""How well the methods tell the texts of `detect/` apart when domain and generator were left out of the fit. Knows no model and no file.

A set is `<domain>_<generator>`: the human texts of a domain and what one generator made of their beginnings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.schemas import Method
from app.scoring.calibration import Calibration
from app.scoring.combining import fit_combined, with_combined
from app.scoring.fitting import clopper_pearson, machine_thresholds, rows_in_range
from app.scoring.sample import Sample, ScoreRow, auroc, bootstrap_interval, sample_of

SINGLE: tuple[Method, ...] = ("perplexity", "log_rank", "fast_detect")
METHODS: tuple[Method, ...] = ("combined", *SINGLE)
BUCKET_STARTS = (64, 128, 192)  # scored tokens; most texts of `detect/` have about 200
TARGETS = (0.05, 0.01)  # false-positive rates


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of `n` texts, with its exact 95% interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class SetResult:
    """The results of one method on one set. `auroc` with its 95% interval over groups; `tpr` by target false-positive rate, at the
    border that the set's own human texts give."""

    humans: int
    machines: int
    auroc: tuple[float, float, float]
    tpr: Mapping[float, Rate]


def split_name(name: str) -> tuple[str, str]:
    """Domain and generator of a set."""
    domain, _, generator = name.partition("_")
    return domain, generator


def left_out(name: str, fit_rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """The rows to fit on for this set: of other domains, and of other generators."""
    domain, generator = split_name(name)
    return [row for row in fit_rows if row.domain != domain and not (row.machine and row.generator == generator)]


def evaluate(sets: Mapping[str, Sequence[ScoreRow]], fit_rows: Sequence[ScoreRow]) -> dict[str, dict[Method, SetResult]]:
    """The results of every method on every set, `combined` fitted without the set's domain and generator."""
    results: dict[str, dict[Method, SetResult]] = {}
    for name, rows in sets.items():
        model = fit_combined(left_out(name, fit_rows))
        scored = with_combined(rows, model) if model else list(rows)
        results[name] = {method: set_result(sample_of(scored, method)) for method in METHODS}
    return results


def set_result(sample: Sample) -> SetResult:
    human, machine = sample.human_scores, sample.machine_scores
    return SetResult(
        len(human), len(machine), (auroc(sample), *bootstrap_interval(sample, auroc)), {target: tpr(sample, target) for target in TARGETS}
    )


def tpr(sample: Sample, target: float) -> Rate:
    """The share of machine texts beyond the border that `target` of the human texts lie beyond."""
    human = np.sort(sample.human_scores)[::-1]
    border = human[min(int(target * len(human)), len(human) - 1)]
    found, n = int((sample.machine_scores > border).sum()), len(sample.machine_scores)
    return Rate(found / n, *clopper_pearson(found, n), n)


def mean_of(results: Mapping[str, Mapping[Method, SetResult]], method: Method, names: Sequence[str], target: float | None = None) -> float:
    """The mean AUROC over the sets, or the mean TPR at a target."""
    found = [results[name][method] for name in names]
    return float(np.mean([each.auroc[0] if target is None else each.tpr[target].value for each in found]))


def verdicts(rows: Sequence[ScoreRow], calibration: Calibration) -> tuple[Rate, Rate] | None:
    """The shares of the texts that get the verdicts `machine` and `human` at the border nearest to 1%; None if no text is long enough."""
    judged = [
        judgement.verdict
        for row in rows
        if (score := row.scores.get("combined")) is not None and (judgement := calibration.judge("combined", row.tokens, score))
    ]
    if not judged:
        return None
    counts = [judged.count(verdict) for verdict in ("machine", "human")]
    machine, human = (Rate(count / len(judged), *clopper_pearson(count, len(judged)), len(judged)) for count in counts)
    return machine, human


def without_kind(calibration: Calibration, held_out: Sequence[ScoreRow], people: Sequence[ScoreRow], kind: str) -> Calibration:
    """The calibration with the borders that `combined` would have if this kind were not among `people`. `held_out`: as in `fit_all`."""
    others, fitted = [row for row in people if row.domain != kind], calibration.methods["combined"]
    buckets = []
    for bucket in fitted.buckets:
        rows = rows_in_range(held_out, (bucket.min_tokens, bucket.max_tokens))
        targets = [threshold.target for threshold in bucket.machine if threshold.target is not None]
        buckets.append(bucket.model_copy(update={"machine": machine_thresholds(rows, "combined", targets, others)}))
    return calibration.model_copy(
        update={"methods": {**calibration.methods, "combined": fitted.model_copy(update={"buckets": tuple(buckets)})}}
    )
