import random
import statistics

import pytest

from loadtest.load.stages import Stage, arrivals, poisson, stage_at, stages


def test_a_stage_warms_up_and_is_then_measured():
    one, two = stages([4, 8], opened=False, seconds=10, warm_up_s=2)
    assert (one.seconds, one.warming(1.9), one.warming(2.0)) == (12, True, False)
    assert [stage_at([one, two], at_s) for at_s in (0, 11.9, 12.0, 23.9, 24.0)] == [one, one, two, two, None]
    assert stage_at([Stage(0, 1, False, None, 0.0)], 1e9) is not None, "without seconds it lasts"


@pytest.mark.parametrize(("level", "opened", "name"), [(1, False, "1 user"), (8, False, "8 users"), (0.5, True, "0.5/s"), (2, True, "2/s")])
def test_names(level, opened, name):
    assert Stage(0, level, opened, None, 0.0).name == name


def test_arrivals_are_poisson():
    """Gaps are exponential: their mean is 1 / rate and so is their standard deviation; counts of a second have mean and variance `rate`."""
    rate, seconds = 20.0, 2000.0
    times = poisson(random.Random(1), rate, seconds)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert times == sorted(times) and times[0] > 0 and times[-1] < seconds
    assert statistics.mean(gaps) == pytest.approx(1 / rate, rel=0.02) and statistics.stdev(gaps) == pytest.approx(1 / rate, rel=0.03)
    counts = [0] * int(seconds)
    for at_s in times:
        counts[int(at_s)] += 1
    assert statistics.variance(counts) == pytest.approx(rate, rel=0.1)


def test_the_same_seed_the_same_arrivals_and_each_stage_its_own():
    one, two = stages([5, 5], opened=True, seconds=10, warm_up_s=0)
    assert arrivals(one, 7) == arrivals(one, 7) != arrivals(two, 7)
    assert arrivals(one, 7) != arrivals(one, 8)
