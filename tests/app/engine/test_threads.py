"""The number of threads follows what other processes want, in a simulated machine and on this one."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.engine.threads import LAST_RETRY_S, WINDOW_S, ThreadCount, WaitingTime

BURN = """
import time
print("begins", flush=True)
end_s = time.monotonic() + 60
while time.monotonic() < end_s:
    pass
"""


@dataclass
class Machine:
    """`cores` cores; other processes want `others` of them. All threads of a step, and the others', get an equal share."""

    cores: int
    others: float = 0.0
    threads: int = 0
    now_s: float = 0.0
    waited_s: float = 0.0
    history: list[int] = field(default_factory=list)

    def count(self) -> ThreadCount:
        return ThreadCount(self.cores, self._apply, lambda: self.waited_s, lambda: self.now_s)

    def _apply(self, threads: int) -> None:
        self.threads = threads
        self.history.append(threads)

    def run(self, count: ThreadCount, seconds: float, step_s: float = 0.02) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            wanted = count.threads + self.others
            waiting = count.threads * max(0.0, 1 - self.cores / wanted)
            self.now_s += step_s
            self.waited_s += waiting * step_s
            count.step_ended(step_s)


def test_alone_every_core_is_used() -> None:
    machine = Machine(2)
    machine.run(machine.count(), 20)
    assert machine.history == []


@pytest.mark.parametrize(("cores", "others", "expected"), [(2, 1, 1), (2, 2, 1), (4, 1, 3), (4, 2, 2), (16, 1, 15), (16, 12, 4)])
def test_cores_that_others_use_are_left_to_them(cores: int, others: float, expected: int) -> None:
    machine = Machine(cores, others)
    count = machine.count()
    machine.run(count, 60)
    assert count.threads == machine.threads
    assert abs(count.threads - expected) <= cores // 8


def test_a_light_neighbour_costs_no_thread() -> None:
    machine = Machine(2, others=0.2)
    count = machine.count()
    machine.run(count, 20)
    assert count.threads == 2


def test_a_short_disturbance_costs_no_thread() -> None:
    machine = Machine(2, others=1)
    count = machine.count()
    machine.run(count, WINDOW_S)
    machine.others = 0
    machine.run(count, 5)
    assert machine.history == []


def test_the_threads_come_back_when_the_neighbour_is_gone() -> None:
    machine = Machine(4, others=3)
    count = machine.count()
    machine.run(count, 120)
    machine.others = 0
    machine.run(count, LAST_RETRY_S + 10)
    assert count.threads == 4


def test_tries_that_fail_become_rare() -> None:
    machine = Machine(2, others=1)
    count = machine.count()
    machine.run(count, 20)
    machine.history.clear()
    machine.run(count, 600)
    assert machine.history == [2, 1] * (len(machine.history) // 2)
    assert 600 / LAST_RETRY_S - 2 <= len(machine.history) // 2 <= 600 / LAST_RETRY_S + 2


def test_a_single_thread_is_never_changed() -> None:
    machine = Machine(1, others=5)
    count = machine.count()
    machine.run(count, 10)
    assert (count.threads, machine.history) == (1, [])


def test_threads_that_come_and_go_do_not_disturb_the_sum(tmp_path: Path) -> None:
    waiting = WaitingTime(tmp_path)

    def write(**by_thread: int) -> None:
        for task in tmp_path.iterdir():
            (task / "schedstat").unlink()
            task.rmdir()
        for thread, waited_ns in by_thread.items():
            (tmp_path / thread).mkdir()
            (tmp_path / thread / "schedstat").write_text(f"1 {waited_ns} 7\n")

    write(a=5_000_000_000, b=1_000_000_000)
    assert waiting() == 0
    write(a=6_000_000_000, c=9_000_000_000)
    assert waiting() == 1
    write(a=6_000_000_000, c=9_500_000_000)
    assert waiting() == 1.5


def test_a_system_that_does_not_say_counts_as_alone(tmp_path: Path) -> None:
    assert WaitingTime(tmp_path / "missing")() == 0
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "schedstat").write_text("")
    assert WaitingTime(tmp_path)() == 0


def test_a_thread_of_this_process_that_waits_is_counted() -> None:
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this kernel keeps no scheduler statistics")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # of this thread and what it starts
    burners = [subprocess.Popen([sys.executable, "-S", "-c", BURN], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for burner in burners:
            assert burner.stdout is not None and burner.stdout.readline() == b"begins\n"
        waiting = WaitingTime()
        waiting()
        end_s = time.monotonic() + 1
        while time.monotonic() < end_s:
            pass
        assert waiting() > 0.2
    finally:
        os.sched_setaffinity(0, cores)
        for burner in burners:
            burner.kill()
            burner.communicate()
