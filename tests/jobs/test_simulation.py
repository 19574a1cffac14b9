"""The policy under failures, in virtual time."""

import pytest

from jobs import policy
from jobs.simulation import Cluster, Simulation

SMALL = {"workers": 30, "tasks": 90, "lines_per_task": 60, "failure_s": 60.0}


@pytest.mark.parametrize("seed", range(3))
def test_no_line_is_lost_or_there_twice_while_workers_die_and_hang(seed):
    report = Simulation(Cluster(**SMALL, seed=seed)).run()
    assert (report.lines_missing, report.lines_twice, report.tasks_given_up) == (0, 0, 0)
    assert report.deaths > 10 and report.hangs > 0 and report.tasks_taken_again > 3 and report.lines_answered_again > 0
    assert report.longest_stall_s < 3 * 30


def test_workers_that_go_on_after_their_lease_are_refused():
    report = Simulation(Cluster(**SMALL, hangs=1.0)).run()
    assert report.writes_refused > 0 and (report.lines_missing, report.lines_twice) == (0, 0)


def test_a_broker_that_loses_nearly_everything_only_costs_time():
    report = Simulation(Cluster(**SMALL, lost_messages=0.9)).run()
    assert (report.lines_missing, report.lines_twice) == (0, 0) and report.messages_lost > report.messages / 2


def test_without_failures_nothing_is_done_again():
    report = Simulation(Cluster(**{**SMALL, "failure_s": 1e9})).run()
    assert (report.lines_answered_again, report.tasks_taken_again, report.writes_refused) == (0, 0, 0)
    assert report.messages < 4 * SMALL["workers"]  # who is awake takes the next task without one


def test_leases_that_are_ignored_would_be_seen(monkeypatch):
    monkeypatch.setattr(policy, "is_due", lambda due, now: due < 1e12)
    report = Simulation(Cluster(**SMALL)).run()
    assert report.writes_refused > 100


def test_the_same_seed_is_the_same_run():
    assert Simulation(Cluster(**SMALL)).run().shown() == Simulation(Cluster(**SMALL)).run().shown()
