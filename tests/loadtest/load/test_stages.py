import random
import statistics

import pytest

from loadtest.load.stages import Stage, arrival_times, plan_stages, poisson_times, stage_at


def test_a_stage_warms_up_and_is_then_measured():
    first, second = plan_stages([4, 8], opened=False, seconds=10, warm_up_s=2)
    assert (first.seconds, first.is_warm_up(1.9), first.is_warm_up(2.0)) == (12, True, False)
    assert [stage_at([first, second], at_s) for at_s in (0, 11.9, 12.0, 23.9, 24.0)] == [first, first, second, second, None]
    assert stage_at([Stage(0, 1, False, None, 0.0)], 1e9) is not None, "a stage without seconds has no end"


@pytest.mark.parametrize(("level", "opened", "name"), [(1, False, "1 user"), (8, False, "8 users"), (0.5, True, "0.5/s"), (2, True, "2/s")])
def test_names(level, opened, name):
    assert Stage(0, level, opened, None, 0.0).name == name


def test_arrivals_are_poisson():
    """Gaps are exponential: their mean is 1 / rate and so is their standard deviation; counts of a second have mean and variance `rate`."""
    rate, seconds = 20.0, 2000.0
    times = poisson_times(random.Random(1), rate, seconds)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert times == sorted(times) and times[0] > 0 and times[-1] < seconds
    assert statistics.mean(gaps) == pytest.approx(1 / rate, rel=0.02) and statistics.stdev(gaps) == pytest.approx(1 / rate, rel=0.03)
    counts = [0] * int(seconds)
    for at_s in times:
        counts[int(at_s)] += 1
    assert statistics.variance(counts) == pytest.approx(rate, rel=0.1)


def test_arrivals_depend_on_the_seed_and_the_stage_only():
    first, second = plan_stages([5, 5], opened=True, seconds=10, warm_up_s=0)
    assert arrival_times(first, 7) == arrival_times(first, 7) != arrival_times(second, 7)
    assert arrival_times(first, 7) != arrival_times(first, 8)
