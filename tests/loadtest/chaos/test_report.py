import copy

import pytest

from loadtest.chaos.ledger import Disturbance, Ending
from loadtest.chaos.memory import Sample
from loadtest.chaos.report import missed, result, tables
from loadtest.chaos.trial import Options, Seen, warm_s

GOOD_END = {"exit_code": 0, "orphans": 0, "port_free": True}


def seen(equal=20, failed=0):
    """One kill with requests in flight, one hang that was noticed, one restart in order."""
    found = Seen(samples=[Sample(float(at), {1: 5_000_000}, 9, 1) for at in range(700)], start_s=0.0, end_s=600.0, capacity=8, end=GOOD_END)
    numbers = [found.ledger.begin("chat", f"0/{index}", 1.0) for index in range(equal + failed)]
    kill = found.ledger.disturb("kill", 2.0)
    kill.not_ready_s, kill.served_again_s = 0.2, 3.0
    for index, number in enumerate(numbers):
        found.ledger.end(number, 5.0, Ending("answered", equal=True) if index < equal else Ending("failed", "503 worker_died"))
    found.ledger.disturb("hang", 10.0).facts["detected"] = True
    found.ledger.disturb("restart", 20.0).facts.update(GOOD_END)
    return found


def good():
    return result(Options(minutes=10), seen(), 0)


def changed(**paths):
    found = copy.deepcopy(good())
    for path, value in paths.items():
        *parents, last = path.split("__")
        place = found
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        place[last] = value
    return found


def test_a_good_run_misses_nothing():
    assert missed(good()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"aborted": "no"}, "The run ended early: no."),
        ({"all__lost": 2, "reasons": {"lost: x": 2, "failed: y": 1}}, "2 of 20 requests were lost: 2 x."),
        ({"in_flight_at_end": 1}, "1 requests had no end when the run ended."),
        ({"all__different": 1, "different": ["3/4"]}, "1 answers differ from the undisturbed ones (requests 3/4)."),
        ({"server_errors": 3}, "3 requests met an error of the server's own (500)."),
        ({"disturbances__1__detected": False}, "1 of 1 stopped workers were not noticed and replaced within 10 s."),
        ({"disturbances__2__orphans": 2}, "2 processes were left after the restart."),
        ({"disturbances__2__exit_code": 2}, "The server's exit code was 2, not 0, at the restart."),
        ({"disturbances__2__goes_on": False}, "The server did not go on at a restart."),
        ({"end__orphans": 1}, "1 processes were left after the last stop."),
        ({"end__port_free": False}, "The port was not free after the last stop."),
        ({"memory__growth_mb_per_hour": 61.0}, "The memory of the processes that stay grew by 61 MB an hour, more than 60."),
    ],
)
def test_each_mark_has_its_sentence(change, sentence):
    assert missed(changed(**change)) == [sentence]


def test_a_short_run_does_not_judge_memory():
    assert missed(changed(memory__growth_mb_per_hour=1000.0, minutes=4.9)) == []


@pytest.mark.parametrize(("equal", "failed", "good"), [(95, 5, True), (94, 6, False), (0, 3, False), (0, 0, True)])
def test_95_of_100_requests_in_flight_at_a_kill_are_answered_as_undisturbed(equal, failed, good):
    sentences = missed(result(Options(), seen(equal, failed), 0))
    assert (sentences == []) is good
    if not good:
        assert f"{equal} of {equal + failed} requests in flight at a kill" in sentences[0]


def test_growth_is_of_the_time_in_which_the_server_was_warm():
    found = seen()
    found.warm_s = 300.0
    found.samples = [Sample(float(at), {1: 10**9 if at < 300 else 2 * 10**9 + 1000 * at}, 9, 1) for at in range(700)]
    assert result(Options(), found, 0)["memory"]["growth_mb_per_hour"] == 3.6


def test_the_tables_show_every_kind_and_every_disturbance():
    shown = tables(good())
    assert "| chat | 20 | 20 | 20 | 0 | 0 | 0 | 0 |" in shown and "| all | 20 |" in shown
    assert "| kill | 1 | 20 | 20 | 20 | 0 | 0 | 0 | 0 | 0.20, at most 0.20 | 3.00, at most 3.00 |" in shown
    assert "| hang | 1 | 0 |" in shown and "grew by 0.0 MB/h" in shown


def test_what_a_short_run_cannot_tell_is_said_in_words():
    found = seen()
    found.samples = found.samples[:59]
    shown = tables(result(Options(), found, 0))
    assert "too short to say how fast the processes that stay grow" in shown and "no request met a full queue" in shown
    assert "grew by None" not in shown and "after None ms" not in shown


@pytest.mark.parametrize(
    ("kinds", "warm"),
    [
        ([], 1.0),
        ([("restart", 10, 5.0)], 15.0),
        ([("restart", 10, 5.0), ("burst", 20, 7.0), ("burst", 40, 7.0)], 27.0),
        ([("burst", 4, 7.0), ("restart", 20, 5.0)], 25.0),
        ([("burst", 4, 7.0), ("burst", 9, 7.0)], 11.0),
    ],
)
def test_the_server_is_warm_after_its_last_restart_and_the_first_burst_after_it(kinds, warm):
    disturbances = []
    for number, (kind, at_s, took_s) in enumerate(kinds):
        facts = {"over_s": took_s} if kind == "burst" else {"exit_code": 0}
        disturbances.append(Disturbance(number, kind, at_s, served_again_s=None if kind == "burst" else took_s, facts=facts))
    assert warm_s(disturbances, 1.0) == warm


def test_refusals_are_timed():
    found = seen()
    for number in range(1, 101):
        found.ledger.end(found.ledger.begin("burst", "0/0", 0.0), number / 1000, Ending("refused", "429 queue_full"))
    assert result(Options(), found, 0)["refusals"] == {"p50_ms": 50.5, "p99_ms": 99.0}
    assert good()["refusals"] == {"p50_ms": None, "p99_ms": None}
