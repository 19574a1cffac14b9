"""Scored texts as columns: who wrote each, its group, its score. Knows no file and no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.schemas import Method
from app.scoring.thresholds import DIRECTIONS

Floats = NDArray[np.float64]
DRAWS = 500


@dataclass(frozen=True, slots=True)
class Row:
    """A scored text. `scores` as their methods give them; None where one is not defined. Texts of one `group` share a source."""

    machine: bool
    group: str
    domain: str
    tokens: int  # scored
    scores: dict[Method, float | None]


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts by one method. `score` `[texts]` is turned so that higher looks more like a machine's; `group` are numbers from 0."""

    score: Floats
    machine: NDArray[np.bool_]
    group: NDArray[np.int64]

    @property
    def human_scores(self) -> Floats:
        return self.score[~self.machine]

    @property
    def machine_scores(self) -> Floats:
        return self.score[self.machine]

    @property
    def groups(self) -> int:
        return len(np.unique(self.group))

    @property
    def sources(self) -> int:
        """Groups on the side that has fewer."""
        return min(len(np.unique(self.group[self.machine == side])) for side in (False, True))

    @property
    def weight(self) -> Floats:
        """Of each text, such that both sides weigh one half."""
        share = self.machine.mean()
        return np.where(self.machine, 0.5 / share, 0.5 / (1 - share))

    def take(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> "Sample":
        return Sample(self.score[places], self.machine[places], self.group[places])


def sign_of(method: Method) -> int:
    return -1 if DIRECTIONS[method] == "lower" else 1


def sample_of(rows: Sequence[Row], method: Method) -> Sample:
    known = [(row, value) for row in rows if (value := row.scores.get(method)) is not None]
    names = {name: number for number, name in enumerate(sorted({row.group for row, _ in known}))}
    return Sample(
        sign_of(method) * np.array([value for _, value in known], float),
        np.array([row.machine for row, _ in known], bool),
        np.array([names[row.group] for row, _ in known], np.int64),
    )


def redrawn(sample: Sample, draws: int = DRAWS, seed: int = 0) -> list[Sample]:
    """Samples of as many groups, drawn with replacement. A draw without texts of both sides is left out."""
    rng = np.random.default_rng(seed)
    order = np.argsort(sample.group, kind="stable")
    members = np.split(order, np.unique(sample.group[order], return_index=True)[1][1:])
    drawn = (np.concatenate([members[pick] for pick in rng.integers(len(members), size=len(members))]) for _ in range(draws))
    return [one for places in drawn if 0 < (one := sample.take(places)).machine.mean() < 1]


def interval(sample: Sample, statistic: Callable[[Sample], float], draws: int = DRAWS) -> tuple[float, float]:
    """95%, by percentiles over groups drawn with replacement."""
    found = [statistic(one) for one in redrawn(sample, draws)]
    low, high = np.quantile(found, [0.025, 0.975]) if found else (0.0, 1.0)
    return float(low), float(high)


def auroc(sample: Sample) -> float:
    """How often a machine's text scores above a human's, a tie counted half."""
    human = np.sort(sample.human_scores)
    machine = sample.machine_scores
    below = np.searchsorted(human, machine, "left") + np.searchsorted(human, machine, "right")
    return float(below.sum() / (2 * len(human) * len(machine)))
