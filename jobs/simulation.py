"""`python -m jobs.simulation`: a thousand workers with failures in virtual time, by the policy that the real workers follow.

Of a worker it knows how long a line takes, that it takes the first task that is due, commits in groups and beats, and that it may die or
hang at any moment; of the broker that messages may be lost. It knows no table: what one would be asked is counted. What decides is in
`jobs.policy`.
"""

import argparse
import heapq
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs import policy

NEVER = float("inf")
LATENCY_S = 0.05  # from a message to the task that is taken


@dataclass(frozen=True, slots=True)
class Cluster:
    workers: int = 1000
    tasks: int = 4000
    lines_per_task: int = 500
    line_s: float = 0.8  # how long a line takes
    lines_at_once: int = 8
    lease_s: float = 30.0
    failure_s: float = 600.0  # mean time from the start of a worker to its failure
    hangs: float = 0.2  # share of the failures in which it goes on after two leases, as if nothing had been
    restart_s: float = 20.0  # until another one stands in the place of one that died
    lost_messages: float = 0.1  # share of them
    seed: int = 1


@dataclass(slots=True)
class SimulatedTask:
    rank: float
    due: float = 0.0
    fence: int = 0
    attempts: int = 0
    written: int = 0  # lines committed
    written_at: float = 0.0  # when a line was last committed, or the task first taken
    commits: bytearray = field(default_factory=bytearray)  # how often each line was committed


@dataclass(slots=True)
class Report:
    seconds: float = 0.0
    ideal_s: float = 0.0
    lines: int = 0
    lines_twice: int = 0
    lines_missing: int = 0
    lines_answered_again: int = 0
    deaths: int = 0
    hangs: int = 0
    writes_refused: int = 0  # by the fence
    tasks_taken_again: int = 0
    tasks_given_up: int = 0
    longest_stall_s: float = 0.0
    messages: int = 0
    messages_lost: int = 0
    transactions: Counter[str] = field(default_factory=Counter)

    def shown(self) -> dict[str, Any]:
        per_s = {name: round(count / self.seconds, 1) for name, count in self.transactions.items()}
        plain = {name: getattr(self, name) for name in ("lines", "lines_twice", "lines_missing", "lines_answered_again", "deaths", "hangs")}
        more = {
            name: getattr(self, name) for name in ("tasks_taken_again", "tasks_given_up", "writes_refused", "messages", "messages_lost")
        }
        times = {name: round(getattr(self, name), 1) for name in ("seconds", "ideal_s", "longest_stall_s")}
        return {**times, **plain, **more, "transactions_per_s": {**per_s, "all": round(sum(self.transactions.values()) / self.seconds, 1)}}


class Worker:
    """One worker process. `life` grows at its death, so that what it had planned is not done."""

    def __init__(self) -> None:
        self.life = 0
        self.alive = True
        self.task: SimulatedTask | None = None
        self.fence = 0
        self.in_flight = 0  # lines
        self.hangs_until = 0.0

    def is_idle(self, now: float) -> bool:
        return self.alive and self.task is None and self.hangs_until <= now


class Simulation:
    """Events in the order of their time. A worker's group of lines is one event, as its commit is one transaction."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.now = 0.0
        self.report = Report(lines=cluster.tasks * cluster.lines_per_task)
        self._random = random.Random(cluster.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._workers = [Worker() for _ in range(cluster.workers)]
        self._tasks = [SimulatedTask(policy.rank(0.0, n), commits=bytearray(cluster.lines_per_task)) for n in range(cluster.tasks)]
        self._waiting = [(task.rank, n) for n, task in enumerate(self._tasks)]  # due; a heap by rank
        self._running: set[int] = set()
        self._left = cluster.tasks
        self._queued = 0  # messages at the broker
        self._turn: tuple[Worker, float] | None = None  # who sweeps, and until when

    def run(self) -> Report:
        for worker in self._workers:
            self._begin(worker)
        while self._left and self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()
        cluster = self.cluster
        self.report.seconds = self.now
        self.report.ideal_s = self.report.lines * cluster.line_s / cluster.lines_at_once / cluster.workers
        self.report.lines_missing = sum(cluster.lines_per_task - task.written for task in self._tasks)
        self.report.lines_twice = sum(count > 1 for task in self._tasks for count in task.commits)
        return self.report

    def _at(self, delay_s: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + delay_s, self._order, action))

    def _while_alive(self, worker: Worker, delay_s: float, action: Callable[[Worker], None]) -> None:
        life = worker.life

        def act() -> None:
            if worker.life == life and worker.hangs_until > self.now:
                self._at(worker.hangs_until - self.now, act)
            elif worker.life == life:
                action(worker)

        self._at(delay_s, act)

    def _begin(self, worker: Worker) -> None:
        worker.alive, worker.task, worker.in_flight = True, None, 0
        self._fail_later(worker)
        self._while_alive(worker, self._random.uniform(0, policy.TURN_S), self._ask_for_turn)

    def _fail_later(self, worker: Worker) -> None:
        hangs = self._random.random() < self.cluster.hangs
        self._while_alive(worker, self._random.expovariate(1 / self.cluster.failure_s), self._hang if hangs else self._die)

    def _hang(self, worker: Worker) -> None:
        self.report.hangs += 1
        worker.hangs_until = self.now + 2 * self.cluster.lease_s
        self._fail_later(worker)

    def _die(self, worker: Worker) -> None:
        self.report.deaths += 1
        self.report.lines_answered_again += worker.in_flight
        worker.life += 1
        worker.alive, worker.task = False, None
        self._at(self.cluster.restart_s, lambda: self._begin(worker))

    def _ask_for_turn(self, worker: Worker) -> None:
        self.report.transactions["turn"] += 1
        holder = self._turn
        mine = holder is None or holder[0] is worker or holder[1] < self.now
        if mine:
            self._turn = (worker, self.now + policy.TURN_S)
            self._sweep()
        self._while_alive(worker, policy.SWEEP_S if mine else policy.TURN_S * self._random.uniform(0.5, 1), self._ask_for_turn)

    def _sweep(self) -> None:
        self.report.transactions["sweep"] += 3
        self._release_ended()
        for _ in range(policy.wakes(len(self._waiting), self._queued)):
            self.report.messages += 1
            if self._random.random() < self.cluster.lost_messages:
                self.report.messages_lost += 1
                continue
            self._queued += 1
            self._at(LATENCY_S, self._deliver)

    def _deliver(self) -> None:
        """An idle worker takes the message; without one it waits at the broker."""
        idle = [worker for worker in self._random.sample(self._workers, 20) if worker.is_idle(self.now)]
        worker = idle[0] if idle else next((each for each in self._workers if each.is_idle(self.now)), None)
        if worker is None:
            self._at(policy.SWEEP_S, self._deliver)
            return
        self._queued -= 1
        self._take(worker)

    def _release_ended(self) -> None:
        for n in [n for n in self._running if policy.is_due(self._tasks[n].due, self.now)]:
            self._running.discard(n)
            heapq.heappush(self._waiting, (self._tasks[n].rank, n))

    def _take(self, worker: Worker) -> None:
        self.report.transactions["take"] += 1
        self._release_ended()
        if not self._waiting:
            worker.task = None
            return
        n = heapq.heappop(self._waiting)[1]
        task = self._tasks[n]
        task.fence, task.attempts = task.fence + 1, task.attempts + 1
        task.due = policy.lease_end(self.now, self.cluster.lease_s)
        self._running.add(n)
        self.report.tasks_taken_again += task.fence > 1
        task.written_at = task.written_at or self.now
        if policy.gives_up(task.attempts):
            self.report.tasks_given_up += 1
            self._complete(worker, n)
            return
        worker.task, worker.fence = task, task.fence
        self._while_alive(worker, policy.beat_s(self.cluster.lease_s), lambda worker: self._beat(worker, task, worker.fence))
        self._answer(worker, n)

    def _answer(self, worker: Worker, n: int) -> None:
        """The next group of lines: as many as are in flight at once."""
        task, cluster = self._tasks[n], self.cluster
        group = min(cluster.lines_at_once, cluster.lines_per_task - task.written)
        took_s = cluster.line_s * self._random.uniform(0.5, 1.5) + policy.GROUP_S / 2
        first, worker.in_flight = task.written, group
        self._while_alive(worker, took_s, lambda worker: self._commit(worker, n, first, group))

    def _beat(self, worker: Worker, task: SimulatedTask, fence: int) -> None:
        if worker.task is not task or worker.fence != fence:
            return
        self.report.transactions["beat"] += 1
        if task.fence == fence:
            task.due = policy.lease_end(self.now, self.cluster.lease_s)
            self._while_alive(worker, policy.beat_s(self.cluster.lease_s), lambda worker: self._beat(worker, task, fence))

    def _commit(self, worker: Worker, n: int, first: int, group: int) -> None:
        task = self._tasks[n]
        self.report.transactions["commit"] += 1
        worker.in_flight = 0
        if task.fence != worker.fence:  # somebody else has the task
            self.report.writes_refused += 1
            self.report.lines_answered_again += group
            self._take(worker)
            return
        self.report.longest_stall_s = max(self.report.longest_stall_s, self.now - task.written_at)
        for line in range(first, first + group):
            task.commits[line] += 1
        task.written, task.written_at, task.attempts = task.written + group, self.now, 0
        task.due = policy.lease_end(self.now, self.cluster.lease_s)
        if task.written < self.cluster.lines_per_task:
            self._answer(worker, n)
        else:
            self._complete(worker, n)

    def _complete(self, worker: Worker, n: int) -> None:
        self.report.transactions["complete"] += 1
        self._running.discard(n)
        self._tasks[n].due = NEVER
        self._left -= 1
        worker.task = None
        self._take(worker)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m jobs.simulation", description=(__doc__ or "").splitlines()[0])
    defaults = Cluster()
    for name in Cluster.__dataclass_fields__:
        default = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    cluster = Cluster(**vars(parser.parse_args()))
    sys.stdout.write(json.dumps(Simulation(cluster).run().shown(), indent=1) + "\n")


if __name__ == "__main__":
    main()
