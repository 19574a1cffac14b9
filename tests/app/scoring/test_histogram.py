import numpy as np
import pytest

from app.scoring.histogram import BINS, histogram_of
from app.scoring.sample import Sample


def sample(human: np.ndarray, machine: np.ndarray, sign: int = 1) -> Sample:
    scores = np.concatenate([human, machine])
    return Sample(sign * scores, np.arange(len(scores)) >= len(human), np.arange(len(scores)))


@pytest.mark.parametrize("sign", [1, -1])
def test_every_text_is_counted_on_the_methods_own_scale(sign):
    rng = np.random.default_rng(0)
    human, machine = rng.normal(0, 1, 700), rng.normal(3, 1, 500)
    counts = histogram_of(sample(human, machine, sign), sign)
    assert counts is not None and len(counts.edges) == BINS + 1
    assert (sum(counts.human), sum(counts.machine)) == (700, 500)
    edges = np.array(counts.edges)
    for found, scores in ((counts.human, human), (counts.machine, machine)):
        assert found[10] == ((scores >= edges[10]) & (scores < edges[11])).sum()
        assert found[0] == (scores < edges[1]).sum() and found[-1] == (scores >= edges[-2]).sum()


def test_one_strange_text_does_not_stretch_the_axis():
    rng = np.random.default_rng(0)
    human = np.append(rng.normal(size=999), 1e6)
    counts = histogram_of(sample(human, rng.normal(size=1000)), 1)
    assert counts is not None and counts.edges[-1] < 5 and sum(counts.human) == 1000


def test_bins_of_perplexity_have_equal_ratios():
    rng = np.random.default_rng(0)
    counts = histogram_of(sample(np.exp(rng.normal(3, 1, 500)), np.exp(rng.normal(2, 1, 500)), -1), -1, logarithmic=True)
    assert counts is not None
    ratios = np.array(counts.edges[1:]) / np.array(counts.edges[:-1])
    assert ratios == pytest.approx(ratios[0], rel=1e-3)


def test_equal_scores_have_no_histogram():
    assert histogram_of(sample(np.ones(50), np.ones(50)), 1) is None
