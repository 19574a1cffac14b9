"""How many texts of either side lie beyond a border, on texts that had no part in choosing it. Knows no Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.scoring.fitting import border_of, clopper_pearson, folds, refusal
from app.scoring.sample import Row, Sample
from app.scoring.thresholds import Border


@dataclass(frozen=True, slots=True)
class Rates:
    """Beyond a border: `false` of `n_human` human texts, `true` of `n_machine` machine texts (shares)."""

    false: float
    n_human: int
    true: float
    n_machine: int

    @property
    def false_interval(self) -> tuple[float, float]:
        return clopper_pearson(round(self.false * self.n_human), self.n_human)


def at_target(sample: Sample, target: float) -> Rates | None:
    """Each group judged by the border of the others (five parts). None where the others are too few to claim the rate."""
    beyond = np.zeros(len(sample.score), bool)
    seen = np.zeros(len(sample.score), bool)
    for split in folds(sample):
        humans = sample.take(split.fit).human_scores
        if refusal(target, len(humans)):
            return None
        beyond[split.left] = sample.score[split.left] > border_of(humans, target)
        seen[split.left] = True
    return _rates(beyond[seen], sample.machine[seen])


def at_border(sample: Sample, border: Border, sign: int) -> Rates | None:
    """Texts of no part in the calibration, judged by its border."""
    return _rates(sample.score > sign * border.value, sample.machine)


def _rates(beyond: np.ndarray, machine: np.ndarray) -> Rates | None:
    humans, machines = int((~machine).sum()), int(machine.sum())
    if not humans or not machines:
        return None
    return Rates(float(beyond[~machine].mean()), humans, float(beyond[machine].mean()), machines)


def by_domain(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Texts of each domain; where it has only one side, with all texts of the other."""
    found = {}
    for domain in sorted({row.domain for row in rows}):
        own = [row for row in rows if row.domain == domain]
        sides = {row.machine for row in own}
        found[domain] = own if len(sides) == 2 else own + [row for row in rows if row.machine not in sides]
    return found
