"""Scored texts as arrays, the area under the ROC curve, and bootstrap intervals over groups. Knows no file and no model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.schemas import Method
from app.scoring.thresholds import sign_of

FloatArray = NDArray[np.float64]
BOOTSTRAP_DRAWS = 500


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """The scores of one text, or of its beginning, and its statistics (`app.scoring.features`). A score is None where its method is not
    defined. Texts of one `group` share a source.
    """

    machine: bool  # a model wrote the text
    group: str
    domain: str
    tokens: int  # scored
    scores: dict[Method, float | None]
    values: Mapping[str, float] = field(default_factory=dict)
    generator: str = ""  # the model that wrote it
    beginning: bool = False  # only the first tokens of a longer text


@dataclass(frozen=True, slots=True)
class Sample:
    """The scores of many texts by one method; each array is `[texts]`.

    `score` has the sign of the method's direction applied, so higher always looks more like a machine's writing. `group` numbers the
    groups from 0.
    """

    score: FloatArray
    machine: NDArray[np.bool_]
    group: NDArray[np.int64]

    @property
    def human_scores(self) -> FloatArray:
        return self.score[~self.machine]

    @property
    def machine_scores(self) -> FloatArray:
        return self.score[self.machine]

    @property
    def groups(self) -> int:
        return len(np.unique(self.group))

    @property
    def groups_of_smaller_class(self) -> int:
        """The number of groups of the class, human or machine, that has fewer."""
        return min(len(np.unique(self.group[self.machine == machine])) for machine in (False, True))

    @property
    def weight(self) -> FloatArray:
        """The weight of each text; the weights of either class add up to half the number of texts."""
        share = self.machine.mean()
        return np.where(self.machine, 0.5 / share, 0.5 / (1 - share))

    def take(self, indices: NDArray[np.int64] | NDArray[np.bool_]) -> "Sample":
        return Sample(self.score[indices], self.machine[indices], self.group[indices])


def sample_of(rows: Sequence[ScoreRow], method: Method) -> Sample:
    """The texts that have a score by this method."""
    scored = [(row, score) for row in rows if (score := row.scores.get(method)) is not None]
    numbers = {name: number for number, name in enumerate(sorted({row.group for row, _ in scored}))}
    return Sample(
        sign_of(method) * np.array([score for _, score in scored], float),
        np.array([row.machine for row, _ in scored], bool),
        np.array([numbers[row.group] for row, _ in scored], np.int64),
    )


def bootstrap_samples(sample: Sample, draws: int = BOOTSTRAP_DRAWS, seed: int = 0) -> list[Sample]:
    """Draws as many groups as the sample has, with replacement, `draws` times. A draw without texts of both classes is left out."""
    rng = np.random.default_rng(seed)
    order = np.argsort(sample.group, kind="stable")
    members = np.split(order, np.unique(sample.group[order], return_index=True)[1][1:])  # indices of the texts of each group
    drawn = (np.concatenate([members[pick] for pick in rng.integers(len(members), size=len(members))]) for _ in range(draws))
    return [resampled for indices in drawn if 0 < (resampled := sample.take(indices)).machine.mean() < 1]


def bootstrap_interval(sample: Sample, statistic: Callable[[Sample], float], draws: int = BOOTSTRAP_DRAWS) -> tuple[float, float]:
    """The 95% percentile interval of a statistic over groups drawn with replacement."""
    values = [statistic(resampled) for resampled in bootstrap_samples(sample, draws)]
    low, high = np.quantile(values, [0.025, 0.975]) if values else (0.0, 1.0)
    return float(low), float(high)


def auroc(sample: Sample) -> float:
    """The share of pairs in which the machine text scores above the human text; a tie counts half."""
    human = np.sort(sample.human_scores)
    machine = sample.machine_scores
    below = np.searchsorted(human, machine, "left") + np.searchsorted(human, machine, "right")
    return float(below.sum() / (2 * len(human) * len(machine)))
