"""What is reported to Locust about a request, and what is written to the run."""

import json

import gevent
import pytest
from gevent.event import Event

from loadtest.load.goodput import Slo
from loadtest.load.options import Load
from loadtest.load.probe import Capabilities
from loadtest.load.session import MAX_PENDING_S, LoadSession
from loadtest.load.stages import plan_stages
from loadtest.load.transport import Host
from loadtest.prompts import Mix
from loadtest.record import Record
from loadtest.run import create_run


@pytest.fixture
def session_and_events(tmp_path):
    """A session in the second of its two stages, which began at 100 s and warms up for 5 s; and the events it fires."""
    plan = tuple(plan_stages([2, 4], opened=True, seconds=10, warm_up_s=5))
    load = Load(plan, Mix({"short": 1}, 0, 0), Slo(), 0, 8, 9, 2, 0.0, 3, 1.0, None, None, {}, tmp_path)
    run, fired = create_run(tmp_path, "load", {}), []
    session = LoadSession(load, Host("http://x"), Capabilities({"id": "m"}), run, lambda **event: fired.append(event), 90, plan[1], 100)
    yield session, fired
    session.run.close()


def record(outcome="ok", **fields):
    all_fields = {"kind": "chat", "clients": 0, "started_s": 1.0, "status": 200, "e2e_ms": 90.0, "stage": 1, "user": "chat", **fields}
    return Record(outcome=outcome, **all_fields)


def rows_of(fired):
    return [(event["request_type"], event["name"], event["response_time"]) for event in fired]


def test_each_measure_is_an_event(session_and_events):
    session, fired = session_and_events
    session.add(record(ttft_ms=30.0, tpot_ms=5.0, itl_ms=(4.0, 6.0), queue_ms=2.0, late_ms=0.1))
    name = "chat, 4/s"
    assert rows_of(fired) == [
        ("e2e", name, 90.0),
        ("TTFT", name, 30.0),
        ("TPOT", name, 5.0),
        ("queue", name, 2.0),
        ("gap", name, 4.0),
        ("gap", name, 6.0),
        ("late", name, 0.1),
    ]


def test_shed_and_left_are_neither_success_nor_failure(session_and_events):
    session, fired = session_and_events
    session.add(record("shed", status=429, reason="HTTP 429"))
    session.add(record("left", user="leave", ttft_ms=30.0))
    assert rows_of(fired) == [("shed", "chat, 4/s", 90.0), ("left", "chat (leave), 4/s", 90.0), ("TTFT", "chat (leave), 4/s", 30.0)]
    assert all(event["exception"] is None for event in fired)


def test_a_failure_has_a_reason_and_no_time(session_and_events):
    session, fired = session_and_events
    session.add(record("failed", reason="truncated", ttft_ms=30.0))
    (event,) = fired
    assert (event["request_type"], event["response_time"], str(event["exception"])) == ("e2e", None, "truncated")


def test_the_warm_up_is_written_but_not_reported(session_and_events):
    session, fired = session_and_events
    session.add(record(warm_up=True))
    assert not fired and json.loads(session.run.path.read_text().splitlines()[-1])["warm_up"]


def test_an_arrival_counts_from_when_it_was_planned(session_and_events):
    session, _ = session_and_events
    start = session.start_request("chat", 104.5, {"user": "chat"})
    assert (start.at_s, start.clients, start.known_fields["rate"], start.known_fields["warm_up"]) == (104.5, 0, 4, True)
    assert start.known_fields["late_ms"] > 0
    assert not session.start_request("chat", 105.5, {}).known_fields["warm_up"]


def test_a_record_is_pending_until_the_server_reports_its_queue_time(session_and_events, monkeypatch):
    session, fired = session_and_events
    session.capabilities = Capabilities({"id": "m"}, sources=("/slots",))
    clock = [0.0]
    monkeypatch.setattr("loadtest.load.session.time.perf_counter", lambda: clock[0])
    session.add(record(request="a"))
    session.add(record(request="b"))
    session.add(record("shed"))
    assert [event["request_type"] for event in fired] == ["shed"], "a record without an id is never pending"
    session.complete_pending({"a": 7.0, "z": 1.0})
    assert ("queue", "chat, 4/s", 7.0) in rows_of(fired) and len(session.pending) == 1
    clock[0] = MAX_PENDING_S + 0.1
    session.complete_pending({})
    assert not session.pending and [record.queue_ms for record in session.records] == [None, 7.0, None]
    session.add(record(request="c"))
    session.close()
    assert len(session.records) == 4, "at the end no record stays pending"


class WaitingMonitor:
    """Samples as ServerMonitor does, but its first sample waits for `answered`, as for a slow server."""

    def __init__(self, run):
        self.run, self.answered, self.samples = run, Event(), 0

    def sample(self):
        self.samples += 1
        if self.samples == 1:
            self.answered.wait()
        self.run.note({"kind": "sample", "number": self.samples})
        return {}


def test_a_sample_in_progress_ends_before_the_files_are_closed(session_and_events, tmp_path):
    session, _ = session_and_events
    session.monitor = WaitingMonitor(create_run(tmp_path, "server", {}))
    session.start_sampling()
    gevent.sleep(0)
    assert session.monitor.samples == 1
    session.close()
    session.monitor.answered.set()
    gevent.wait(timeout=5)
    assert session.sampler.exception is None and session.monitor.run.file.closed
    rows = [json.loads(line) for line in session.monitor.run.path.read_text().splitlines()[1:]]
    assert rows == [{"kind": "sample", "number": 2}], "the last sample only"
