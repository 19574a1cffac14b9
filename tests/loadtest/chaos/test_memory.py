import os
import subprocess
import sys

import psutil
import pytest

from loadtest.chaos.memory import MIN_SAMPLES, Sample, growth_mb_per_hour, measure, peak_by_worker_mb, steady


def samples(count=100, **growing):
    """Two processes that stay, one of which grows 36 MB an hour, and a worker that is replaced in the middle."""
    worker = lambda at: 3 if at < count / 2 else 4  # noqa: E731
    return [
        Sample(float(at), {1: 5_000_000 + 10_000 * at, 2: 7_000_000, worker(at): 10**8 + 10**6 * at}, 9, worker(at)) for at in range(count)
    ]


def test_growth_is_that_of_the_processes_that_stay():
    assert growth_mb_per_hour(samples()) == pytest.approx(36)
    assert growth_mb_per_hour(samples(MIN_SAMPLES - 1)) is None
    assert growth_mb_per_hour([]) is None


def test_growth_is_read_after_the_last_restart_and_a_warm_up():
    assert [sample.at_s for sample in steady(samples(), 50.0)][0] == pytest.approx(60, abs=1)
    assert [sample.at_s for sample in steady(samples(1000), 0.0)][0] == 60
    assert steady(samples(), 200.0) == []


def test_the_peak_of_each_worker():
    assert peak_by_worker_mb(samples()) == [149.0, 199.0]
    assert peak_by_worker_mb([Sample(0.0, {1: 5}, 1)]) == []


def test_a_process_is_measured_and_one_that_ended_left_out():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(ended.pid)
    ended.wait()
    sample = measure([psutil.Process(), process], 1.0, None)
    assert list(sample.resident) == [os.getpid()] and sample.total > 10**6 and sample.descriptors > 2
