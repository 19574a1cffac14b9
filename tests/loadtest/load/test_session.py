"""What Locust is told of a request, and what is written of it."""

import json

import pytest

from loadtest.load.goodput import Slo
from loadtest.load.options import Load
from loadtest.load.probe import Abilities
from loadtest.load.session import KEEP_S, Push
from loadtest.load.stages import stages
from loadtest.load.transport import Host
from loadtest.prompts import Mix
from loadtest.record import Record
from loadtest.run import create_run


@pytest.fixture
def pushed(tmp_path):
    """A push in its second of two stages, which began at 100 s and warms up for 5 s, and the events it fires."""
    plan = tuple(stages([2, 4], opened=True, seconds=10, warm_up_s=5))
    load = Load(plan, Mix({"short": 1}, 0, 0), Slo(), 0, 8, 9, 2, 0.0, 3, 1.0, None, None, {}, tmp_path)
    run, fired = create_run(tmp_path, "load", {}), []
    push = Push(load, Host("http://x"), Abilities({"id": "m"}), run, lambda **what: fired.append(what), 90, plan[1], 100)
    yield push, fired
    push.run.close()


def record(outcome="ok", **fields):
    given = {"kind": "chat", "clients": 0, "started_s": 1.0, "status": 200, "e2e_ms": 90.0, "stage": 1, "user": "chat", **fields}
    return Record(outcome=outcome, **given)


def shown(fired):
    return [(one["request_type"], one["name"], one["response_time"]) for one in fired]


def test_each_measure_is_an_event(pushed):
    push, fired = pushed
    push.settle(record(ttft_ms=30.0, tpot_ms=5.0, itl_ms=(4.0, 6.0), queue_ms=2.0, late_ms=0.1))
    name = "chat, 4/s"
    assert shown(fired) == [
        ("e2e", name, 90.0),
        ("TTFT", name, 30.0),
        ("TPOT", name, 5.0),
        ("queue", name, 2.0),
        ("gap", name, 4.0),
        ("gap", name, 6.0),
        ("late", name, 0.1),
    ]


def test_shed_and_left_are_neither_success_nor_failure(pushed):
    push, fired = pushed
    push.settle(record("shed", status=429, reason="HTTP 429"))
    push.settle(record("left", user="leave", ttft_ms=30.0))
    assert shown(fired) == [("shed", "chat, 4/s", 90.0), ("left", "chat (leave), 4/s", 90.0), ("TTFT", "chat (leave), 4/s", 30.0)]
    assert all(one["exception"] is None for one in fired)


def test_a_failure_has_a_reason_and_no_time(pushed):
    push, fired = pushed
    push.settle(record("failed", reason="truncated", ttft_ms=30.0))
    (one,) = fired
    assert (one["request_type"], one["response_time"], str(one["exception"])) == ("e2e", None, "truncated")


def test_the_warm_up_is_written_and_not_told(pushed):
    push, fired = pushed
    push.settle(record(warm_up=True))
    assert not fired and json.loads(push.run.path.read_text().splitlines()[-1])["warm_up"]


def test_an_arrival_counts_from_when_it_was_planned(pushed):
    push, _ = pushed
    start = push.start("chat", 104.5, {"user": "chat"})
    assert (start.at_s, start.clients, start.traits["rate"], start.traits["warm_up"]) == (104.5, 0, 4, True)
    assert start.traits["late_ms"] > 0
    assert not push.start("chat", 105.5, {}).traits["warm_up"]


def test_a_record_waits_for_the_server_to_tell_of_its_wait(pushed, monkeypatch):
    push, fired = pushed
    push.abilities = Abilities({"id": "m"}, sources=("/slots",))
    clock = [0.0]
    monkeypatch.setattr("loadtest.load.session.time.perf_counter", lambda: clock[0])
    push.settle(record(request="a"))
    push.settle(record(request="b"))
    push.settle(record("shed"))
    assert [one["request_type"] for one in fired] == ["shed"], "one without an id is not waited for"
    push.hear({"a": 7.0, "z": 1.0})
    assert ("queue", "chat, 4/s", 7.0) in shown(fired) and len(push.pending) == 1
    clock[0] = KEEP_S + 0.1
    push.hear({})
    assert not push.pending and [one.queue_ms for one in push.records] == [None, 7.0, None]
    push.settle(record(request="c"))
    push.close()
    assert len(push.records) == 4, "at the end none is kept back"
