from collections import Counter

import pytest

from loadtest.chaos.schedule import LAST, LEAVERS, RESTARTS_END, plan, scaled, spread


def acts(events):
    return Counter(event.act for event in events)


def test_ten_minutes_have_what_the_issue_asks_for():
    found = acts(plan(10))
    assert found["kill"] == 20 and found["restart"] + found["start on a full disk"] == 3
    assert found["leave"] * LEAVERS == 200 and found["burst"] == 3 and found["hang"] == 2 and found["kill on a full disk"] == 1
    assert not any(act.startswith("redis") for act in found)


@pytest.mark.parametrize("minutes", [0.1, 0.5, 2, 5, 10, 30])
def test_events_are_in_order_and_within_the_run(minutes):
    events = plan(minutes, redis=True)
    times = [event.at_s for event in events]
    assert times == sorted(times) and times[0] > 0 and times[-1] < LAST * 60 * minutes
    assert {*acts(events)} >= {
        "kill",
        "kill on a full disk",
        "hang",
        "start on a full disk",
        "leave",
        "burst",
        "redis stops",
        "redis starts",
    }
    restarts = [event.at_s for event in events if event.act in {"restart", "start on a full disk"}]
    assert max(restarts) < RESTARTS_END * 60 * minutes, "memory is watched after the last restart"


def test_redis_starts_after_it_stopped():
    stops, starts = (event for event in plan(10, redis=True) if event.act.startswith("redis"))
    assert (stops.act, starts.act) == ("redis stops", "redis starts") and stops.at_s < starts.at_s


def test_a_shorter_run_has_fewer_of_each_but_one_at_least():
    assert scaled(10) == {"kill": 20, "hang": 2, "restart": 3, "leave": 10, "burst": 3}
    assert scaled(2) == {"kill": 4, "hang": 1, "restart": 1, "leave": 2, "burst": 1}
    assert set(scaled(0.01).values()) == {1}


def test_spread():
    assert spread(1, 0, 10) == [5] and spread(2, 10, 20) == [12.5, 17.5]
