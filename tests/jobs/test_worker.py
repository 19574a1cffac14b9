"""Batches from the official client through the real routes to the answers of a fake engine, with workers in this process."""

import json
import re
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from batch_lines import ids, line
from serving import wait_for
from sqlalchemy import update

from app.ledger.tables import batches
from app.log import JSONFormatter
from app.settings import QueueSettings
from jobs import policy
from jobs.lines import Lines
from jobs.server import Server

SECRET = "planted"


def texts(lines):
    return [each["response"]["body"]["choices"][0]["text"] for each in lines]


@contextmanager
def in_thread(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    yield thread
    thread.join(60)
    assert not thread.is_alive()


def stall_at(hosted, monkeypatch, count):
    """The engine stops at the job of that number."""
    submit = hosted.engine.submit

    def submit_and_stall(job):
        submit(job)
        hosted.worker.stalled = hosted.worker.stalled or len(hosted.engine.submitted) == count

    monkeypatch.setattr(hosted.engine, "submit", submit_and_stall)


BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/embeddings": {"input": "hi"},
    "/v1/score": {"text": "It was the best of times."},
}


@pytest.mark.parametrize("endpoint", BODIES)
def test_every_endpoint_answers_as_it_does_alone(hosted, endpoint):
    made = hosted.start(line("a", endpoint, **BODIES[endpoint]), endpoint=endpoint, metadata={"for": "me"})
    assert (made.status, made.metadata, made.request_counts.total) == ("validating", {"for": "me"}, 0)
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    output, errors = hosted.output(batch)
    assert (batch.status, batch.request_counts.completed, errors, batch.error_file_id) == ("completed", 1, [], None)
    (answer,) = output
    assert set(answer) == {"id", "custom_id", "response", "error"} and answer["error"] is None and answer["id"].startswith("batch_req_")
    assert answer["response"]["status_code"] == 200 and answer["response"]["request_id"].startswith("req-")
    alone = hosted.client().post(endpoint.removeprefix("/v1"), body=BODIES[endpoint], cast_to=object)
    assert set(answer["response"]["body"]) - {"service_tier"} == set(alone) - {"service_tier"}
    assert answer["response"]["body"]["service_tier"] == "flex"


def test_answers_keep_the_order_of_the_lines_and_errors_have_a_file_of_their_own(hosted, monkeypatch):
    monkeypatch.setattr(policy, "pause_s", lambda tries, retry_after=None: 0.0)
    lines = [line(f"r{n}", prompt="a" * (n + 1), max_tokens=1) for n in range(10)]
    lines[4]["body"]["model"] = "unknown"
    lines[7]["body"]["prompt"] = "~"  # the engine fails on it
    made = hosted.start(*lines)
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    output, errors = hosted.output(batch)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (10, 8, 2)
    assert ids(output) == [f"r{n}" for n in range(10) if n not in (4, 7)]
    assert [text.split("/")[0] for text in texts(output)] == [str(n + 2) for n in range(10) if n not in (4, 7)]
    assert [(each["custom_id"], each["response"]["status_code"]) for each in errors] == [("r4", 404), ("r7", 500)]
    assert errors[0]["response"]["body"]["error"]["code"] == "model_not_found"
    assert batch.usage.output_tokens == 8 and batch.usage.input_tokens == sum(n + 2 for n in range(10) if n not in (4, 7))
    assert batch.in_progress_at and batch.finalizing_at and batch.completed_at and batch.model == "unknown"


def test_a_wrong_file_fails_with_its_lines(hosted):
    made = hosted.start(line("a"), line("a"), line("b", "/v1/score"))
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    assert (batch.status, batch.request_counts.total, batch.output_file_id) == ("failed", 0, None)
    assert [(each.code, each.line) for each in batch.errors.data] == [("duplicate_custom_id", 2), ("invalid_url", 3)]
    assert hosted.engine.submitted == []


def test_lines_are_flex_work_and_a_worker_has_only_so_many_in_flight(hosted):
    hosted.worker.stalled = True
    hosted.start(*[line(f"r{n}") for n in range(9)])
    with in_thread(hosted.work):
        wait_for(lambda: len(hosted.engine.submitted) == 2)
        time.sleep(0.1)
        assert len(hosted.engine.submitted) == 2
        hosted.worker.stalled = False
    assert {job.tier for job in hosted.engine.submitted} == {"flex"} and len(hosted.engine.submitted) == 9


@pytest.mark.parametrize(
    ("endpoint", "first", "in_flight"),
    [
        ("/v1/completions", {}, 7),
        ("/v1/completions", {"model": "fake"}, 7),
        ("/v1/completions", {"model": "small"}, 1),
        ("/v1/completions", {"model": "unknown"}, 1),  # it may come, with as few slots as the smallest
        ("/v1/completions", {"model": ["small"]}, 1),
        ("/v1/score", {"model": "small"}, 20),  # scores take no slots
    ],
)
def test_one_slot_of_the_models_that_a_batch_names_is_left_to_people(hosted, monkeypatch, endpoint, first, in_flight):
    """The model has 8 slots, and another one of that server 2."""
    slots = Server.slots

    async def with_small(server, task):
        return {**await slots(server, task), "small": 2}

    monkeypatch.setattr(Server, "slots", with_small)
    jobs = hosted.settings.jobs.model_copy(update={"lines_at_once": 20, "lines_per_task": 100})
    hosted.settings = hosted.settings.model_copy(update={"jobs": jobs})
    hosted.worker.stalled = True
    lines = [line(f"r{n}", endpoint, **BODIES[endpoint]) for n in range(30)]
    lines[0]["body"] = {**lines[0]["body"], **first}
    hosted.start(*lines, endpoint=endpoint)
    with in_thread(hosted.work):
        wait_for(lambda: len(hosted.engine.submitted) >= in_flight)
        time.sleep(0.1)
        assert len(hosted.engine.submitted) == in_flight
        hosted.worker.stalled = False


def test_a_cancelled_batch_keeps_what_it_has(hosted, monkeypatch):
    monkeypatch.setattr(policy, "MAX_BEAT_S", 0.1)
    stall_at(hosted, monkeypatch, 5)
    made = hosted.start(*[line(f"r{n}") for n in range(9)])
    with in_thread(hosted.work):
        wait_for(lambda: hosted.worker.stalled and hosted.router.in_flight == 2)
        assert hosted.client().batches.cancel(made.id).status == "cancelling"
        wait_for(lambda: hosted.router.in_flight == 0)  # the lines in flight are given up: their slots are free
        hosted.worker.stalled = False
    hosted.sweep()
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    output, errors = hosted.output(batch)
    assert batch.status == "cancelled" and len(output) >= 3 and len(errors) >= 2
    assert sorted(ids(output) + ids(errors)) == [f"r{n}" for n in range(9)]
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"} and {each["response"] for each in errors} == {None}
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), len(errors))


def test_an_expired_batch_keeps_what_it_has(hosted, monkeypatch):
    stall_at(hosted, monkeypatch, 5)
    made = hosted.start(*[line(f"r{n}") for n in range(9)])
    stopping = threading.Event()
    worker = hosted.new_worker(stopping=stopping)
    worker._jobs = hosted.settings.jobs.model_copy(update={"grace_s": 0.1})
    with in_thread(worker.run):
        wait_for(lambda: hosted.worker.stalled and hosted.router.in_flight == 2)
        stopping.set()  # gives up what is in flight, with the lines behind it
    hosted.worker.stalled = False
    with hosted.database.transaction() as connection:
        connection.execute(update(batches).values(expires=1.0))
    hosted.sweep()
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    output, errors = hosted.output(batch)
    assert batch.status == "expired" and batch.expired_at and len(output) >= 2
    assert sorted(ids(output) + ids(errors)) == [f"r{n}" for n in range(9)]
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}


def test_a_stopped_worker_gives_its_task_back_at_once(hosted, monkeypatch):
    heard = threading.Event()
    monkeypatch.setattr(Lines, "stop", lambda lines, stop=Lines.stop: (stop(lines), heard.set()))
    hosted.worker.stalled = True
    made = hosted.start(*[line(f"r{n}") for n in range(3)])
    stopping = threading.Event()
    with in_thread(hosted.new_worker(stopping=stopping).run):
        wait_for(lambda: len(hosted.engine.submitted) == 2)
        stopping.set()
        assert heard.wait(60)
        hosted.worker.stalled = False  # what is in flight is finished
    assert len(hosted.engine.submitted) == 2
    assert hosted.client().batches.retrieve(made.id).request_counts.completed == 2
    hosted.work()
    assert len(hosted.engine.submitted) == 3 and ids(hosted.output(made)[0]) == ["r0", "r1", "r2"]


def test_a_stop_does_not_wait_longer_than_its_grace(hosted):
    hosted.worker.stalled = True
    hosted.start(line("a"))
    worker, stopping = hosted.new_worker(), threading.Event()
    worker._stopping, worker._jobs = stopping, hosted.settings.jobs.model_copy(update={"grace_s": 0.1})
    with in_thread(worker.run):
        wait_for(lambda: hosted.router.in_flight == 1)
        stopping.set()
    wait_for(lambda: hosted.router.in_flight == 0)  # the server sees that its client has left
    hosted.worker.stalled = False


def test_what_a_lost_worker_had_committed_is_not_done_again(hosted):
    lines = [line(f"r{n}") for n in range(3)]
    made = hosted.start(*lines)
    worker = hosted.new_worker(name="lost")
    leases = worker._leases
    hosted.worker.stalled = True
    task = leases.take()
    assert task.kind == "check"
    leases.release(task)
    with in_thread(hosted.work):  # divides the batch, then hangs at its lines
        wait_for(lambda: hosted.router.in_flight == 2)
        stolen = None
        while stolen is None:
            with hosted.database.transaction() as connection:  # as if its lease had ended
                connection.exec_driver_sql("UPDATE tasks SET due = 1 WHERE kind = 'lines'")
            stolen = leases.take()
        assert len(hosted.engine.submitted) == 2 and stolen.fence == 2
        hosted.worker.stalled = False
    assert hosted.client().batches.retrieve(made.id).request_counts.completed == 0  # the first worker could not write
    leases.release(stolen)
    hosted.work()
    batch = hosted.client().batches.retrieve(made.id)
    assert (batch.status, batch.request_counts.completed, len(hosted.output(batch)[0])) == ("completed", 3, 3)


def test_a_busy_server_is_asked_again_when_it_says(hosted, monkeypatch):
    pauses = []
    monkeypatch.setattr(policy, "pause_s", lambda tries, retry_after=None: pauses.append((tries, retry_after)) or 0.05)
    hosted.router.draining = True  # 503
    made = hosted.start(line("a"))
    with in_thread(hosted.work):
        wait_for(lambda: len(pauses) > 2)
        hosted.router.draining = False
    assert [tries for tries, _ in pauses[:3]] == [1, 2, 3]
    assert len(hosted.output(made)[0]) == 1


def test_a_line_that_fails_is_tried_three_times(hosted, monkeypatch):
    monkeypatch.setattr(policy, "pause_s", lambda tries, retry_after=None: 0.0)
    made = hosted.start(line("a", prompt="~", max_tokens=1))
    hosted.work()
    assert len(hosted.engine.submitted) == policy.MAX_TRIES
    assert hosted.output(made)[1][0]["response"]["status_code"] == 500


def test_an_answer_that_does_not_come_is_an_error_of_its_line(hosted, monkeypatch):
    monkeypatch.setattr(policy, "pause_s", lambda tries, retry_after=None: 0.0)
    hosted.worker.stalled = True
    made = hosted.start(line("a"))
    jobs = hosted.settings.jobs.model_copy(update={"line_timeout_s": 0.1})
    hosted.settings = hosted.settings.model_copy(update={"jobs": jobs})
    hosted.work()
    hosted.worker.stalled = False
    (error,) = hosted.output(made)[1]
    assert error["error"]["code"] == "request_timeout" and error["response"] is None


def test_a_line_may_take_longer_than_the_deadline_of_people(hosted, monkeypatch):
    monkeypatch.setattr(policy, "pause_s", lambda tries, retry_after=None: 0.0)
    monkeypatch.setattr(hosted.router, "queue_settings", QueueSettings(max_waiting=64, timeout_s=1e-9))
    made = hosted.start(line("a"), line("b", prompt="ab", max_tokens=2, timeout_s=1e-9))
    hosted.work()
    answers, errors = hosted.output(made)
    assert ids(answers) == ["a"]
    assert [(error["custom_id"], error["response"]["body"]["error"]["code"]) for error in errors] == [("b", "deadline_exceeded")]


def test_a_batch_works_on_behalf_of_its_owner(shared):
    made = shared.start(line("a"), name="alice")
    shared.work()
    assert ids(shared.output(made, "alice")[0]) == ["a"]
    with pytest.raises(Exception, match="404"):
        shared.client("bob").batches.retrieve(made.id)
    assert not list(shared.client("bob").files.list()) and len(list(shared.client("alice").files.list())) == 2


def test_the_metrics_count_batches_and_their_lines(hosted, monkeypatch):
    monkeypatch.setattr("serve.observe.state.REPORT_WAIT_S", 0.01)  # for the engine, which says nothing while it is stalled

    def counted():
        text = httpx.get(f"{hosted.url}/metrics", trust_env=False).text
        rows = re.findall(r'^litmus:batch\w+{\w+="(\w+)"} ([1-9]\d*)\.0$', text, re.M)
        return {name: int(count) for name, count in rows}

    hosted.start(line("a"))
    hosted.work()
    assert counted() == {"completed": 1}
    stall_at(hosted, monkeypatch, 5)
    hosted.start(*[line(f"r{n}") for n in range(9)])
    with in_thread(hosted.work):
        wait_for(lambda: hosted.worker.stalled and counted() == {"in_progress": 1, "waiting": 6, "completed": 3})
        hosted.worker.stalled = False
    assert counted() == {"completed": 2}


def test_a_line_that_cannot_be_sent_is_an_error_of_its_own_and_no_log_quotes_it(hosted, monkeypatch, caplog):
    """As one of a file that an earlier version has checked."""
    monkeypatch.setattr("jobs.check.check_sendable", lambda request: None)
    made = hosted.start(
        line("a", prompt=f"{SECRET} \ud83d", max_tokens=1),
        line("\ud800"),
        line("c", prompt="ab", max_tokens=1, seed=float("inf")),
        line("d"),
    )
    hosted.work()
    output, errors = hosted.output(made)
    assert hosted.client().batches.retrieve(made.id).status == "completed" and ids(output) == ["?", "d"]
    assert [(error["custom_id"], error["error"]["code"]) for error in errors] == [("a", "line_failed"), ("c", "line_failed")]
    assert "UnicodeEncodeError" in caplog.text and SECRET not in caplog.text


def test_a_task_that_meets_an_error_counts_an_attempt_and_others_go_on(hosted, monkeypatch, caplog):
    run = Lines.run

    async def fails_for_the_first(lines):
        if lines.task.batch == first.id:
            raise ValueError(SECRET)
        return await run(lines)

    monkeypatch.setattr(Lines, "run", fails_for_the_first)
    monkeypatch.setattr("jobs.worker.PAUSE_S", 0.0)
    first, second = hosted.start(line("a")), hosted.start(line("b"))
    hosted.work()
    assert ids(hosted.output(second)[0]) == ["b"]
    (error,) = hosted.output(first)[1]
    assert (error["custom_id"], error["error"]["code"]) == ("a", "worker_lost")
    tries = [record for record in caplog.records if record.getMessage().startswith("a task was ended by ValueError")]
    assert len(tries) == policy.MAX_ATTEMPTS and SECRET not in "".join(map(JSONFormatter().format, caplog.records))


def test_no_line_of_the_files_is_cut_where_python_ends_a_line(hosted):
    ends = "a\u2028b\u2029c\u0085d\x1ce"
    made = hosted.start(line(ends), line(f"{ends}2", model=ends))
    hosted.work()
    shown = hosted.client().batches.retrieve(made.id)
    texts = [hosted.client().files.content(id).text for id in (shown.output_file_id, shown.error_file_id)]
    assert [[json.loads(each)["custom_id"] for each in text.splitlines()] for text in texts] == [[ends], [f"{ends}2"]]
    assert [text.count("\\u2028") for text in texts] == [1, 1]
