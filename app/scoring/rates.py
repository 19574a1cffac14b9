"""False-positive and true-positive rates of a threshold on texts that it was not chosen on. Knows no Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.schemas import Method
from app.scoring.fitting import clopper_pearson, folds, machine_thresholds, threshold_at, why_too_few
from app.scoring.sample import Sample, ScoreRow, sample_of
from app.scoring.thresholds import Threshold, sign_of

Judged = list[tuple[ScoreRow, bool]]  # texts, and whether each lies beyond its threshold


@dataclass(frozen=True, slots=True)
class Rates:
    """The shares of `n_human` human texts (`fpr`) and of `n_machine` machine texts (`tpr`) that lie beyond a threshold."""

    fpr: float
    n_human: int
    tpr: float
    n_machine: int

    @property
    def fpr_interval(self) -> tuple[float, float]:
        return clopper_pearson(round(self.fpr * self.n_human), self.n_human)


def out_of_fold_rates(sample: Sample, target: float) -> Rates | None:
    """Judges the groups of each fold by the threshold of the other folds, whose texts are taken for one kind. None if the human texts of
    those are too few for the target.
    """
    beyond = np.zeros(len(sample.score), bool)
    judged = np.zeros(len(sample.score), bool)
    for split in folds(sample):
        humans = sample.take(split.fit).human_scores
        if why_too_few(target, len(humans)):
            return None
        beyond[split.held_out] = sample.score[split.held_out] > threshold_at(humans, target)
        judged[split.held_out] = True
    return _rates(beyond[judged], sample.machine[judged])


def judged_out_of_fold(rows: Sequence[ScoreRow], method: Method, targets: Sequence[float]) -> dict[float, Judged]:
    """The texts of one range of lengths, each judged by thresholds that are fitted as a calibration's are, but without its fold. Lacks a
    target that the human texts of the other folds are too few for.
    """
    found = [row for row in rows if row.scores.get(method) is not None]
    sample, sign = sample_of(found, method), sign_of(method)
    judged: dict[float, Judged] = {target: [] for target in targets}
    for split in folds(sample):
        others, held_out = ([found[index] for index in part] for part in (split.fit, split.held_out))
        humans = sum(not row.machine for row in others)
        judged = {target: before for target, before in judged.items() if not why_too_few(target, humans)}
        thresholds = machine_thresholds(others, method, [*judged], ())
        for before, threshold in zip(judged.values(), thresholds, strict=True):
            beyond = sample.score[split.held_out] > sign * threshold.value
            before += zip(held_out, map(bool, beyond), strict=True)
    return judged


def rates_of(judged: Judged) -> Rates | None:
    """None unless there are texts of both classes."""
    return _rates(np.array([beyond for _, beyond in judged], bool), np.array([row.machine for row, _ in judged], bool))


def rates_at_threshold(sample: Sample, threshold: Threshold, sign: int) -> Rates | None:
    """Judges texts that the calibration was not fitted on by its threshold. None unless there are texts of both classes."""
    return _rates(sample.score > sign * threshold.value, sample.machine)


def _rates(beyond: np.ndarray, machine: np.ndarray) -> Rates | None:
    humans, machines = int((~machine).sum()), int(machine.sum())
    if not humans or not machines:
        return None
    return Rates(float(beyond[~machine].mean()), humans, float(beyond[machine].mean()), machines)


def rows_by_domain(rows: Sequence[ScoreRow]) -> dict[str, list[ScoreRow]]:
    """The texts of each domain. A domain with only one class is completed by all texts of the other class."""
    by_domain = {}
    for domain in sorted({row.domain for row in rows}):
        own = [row for row in rows if row.domain == domain]
        classes = {row.machine for row in own}
        by_domain[domain] = own if len(classes) == 2 else own + [row for row in rows if row.machine not in classes]
    return by_domain
