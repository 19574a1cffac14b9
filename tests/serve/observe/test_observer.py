"""What the observer counts of jobs, with times that the test sets."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from observing import Samples, samples_of, value_of
from observing_cost import token_us
from prometheus_client import generate_latest

from app.engine.events import Columns, Delta, Embedded, Event, Failed, Scored
from app.engine.notices import Waiting
from app.engine.request import Embed, Generate, Score, Window
from app.errors import EngineFailed
from serve.observe.observer import Observer
from serve.observe.record import RECORD, RequestRecord

MAX_TOKEN_US = 5  # of CPU time; docs/observability.md has what was measured


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, 1000.0 + seconds)


@pytest.fixture
def observer() -> Observer:
    return Observer(["a", "b"])


def scrape(observer: Observer) -> Samples:
    return samples_of(generate_latest(observer).decode())


@pytest.fixture
def record() -> Iterator[RequestRecord]:
    """The record of the request that is being served, which began at 0."""
    record = RequestRecord("id", "POST", 1000.0)
    token = RECORD.set(record)
    yield record
    RECORD.reset(token)


def test_the_times_of_an_answer_add_up(observer: Observer, clock: Callable[[float], None], record: RequestRecord) -> None:
    clock(1)  # the request is read and tokenized for a second
    observer.admitted(Generate("x", (1, 2, 3, 4), 9), "a")
    clock(3)
    observer.events([Waiting("x", 1, None)])
    clock(6)  # 2 seconds of these 5 in a slot
    observer.events([Delta("x", "t", (5,), cached=3, prefill_s=2.0)])
    clock(7)
    observer.events([Delta("x", "t", (5, 6), texts=("t", ""), drafted=3, accepted=1)])  # two tokens in a second
    clock(9)
    observer.events([Delta("x", "t", (5,), "stop")])
    samples = scrape(observer)
    sums = {name: value_of(samples, f"{name}_sum", model="a") for name in TIMES}
    assert sums == pytest.approx(TIMES)
    assert all(value_of(samples, f"{name}_count", model="a") == 1 for name in TIMES)
    assert value_of(samples, "inter_token_latency_seconds_count", model="a") == 3
    assert value_of(samples, "inter_token_latency_seconds_sum", model="a") == pytest.approx(3.0)
    assert value_of(samples, "inter_token_latency_seconds_bucket", model="a", le=0.5) == 2
    assert value_of(samples, "inter_token_latency_seconds_bucket", model="a", le=0.3) == 0
    counts = ("prompt_tokens", 4), ("generation_tokens", 4), ("prefix_cache_queries", 4), ("prefix_cache_hits", 3)
    counts += tuple((f"spec_decode_num_{name}", count) for name, count in (("drafts", 1), ("draft_tokens", 3), ("accepted_tokens", 1)))
    assert {name: value_of(samples, f"{name}_total", model="a") for name, _ in counts} == dict(counts)
    assert value_of(samples, "request_success_total", model="a", finished_reason="stop") == 1
    assert not any(value_of(samples, f"{name}_count", model="b") for name in TIMES)
    assert (record.model, record.prompt_tokens, record.generated_tokens) == ("a", 4, 4)


TIMES = {
    "time_to_first_token_seconds": 6.0,
    "request_queue_time_seconds": 3.0,
    "request_prefill_time_seconds": 2.0,
    "request_decode_time_seconds": 3.0,
    "request_time_per_output_token_seconds": 1.0,
    "e2e_request_latency_seconds": 9.0,
}


@pytest.mark.parametrize(
    ("job", "event", "expected"),
    [
        (Score("x", (1, 2, 3), (Window(0, 3, 1),)), Scored("x", Columns()), {"scored_texts_total": 1, "scored_tokens_total": 3}),
        (Embed("x", (1, 2)), Embedded("x", b""), {"embedded_texts_total": 1, "embedded_tokens_total": 2}),
    ],
)
def test_texts_are_counted_with_their_tokens(observer: Observer, job: Any, event: Event, expected: dict[str, int]) -> None:
    observer.admitted(job, "a")
    observer.events([event])
    observer.ended("x")
    samples = scrape(observer)
    assert {name: value_of(samples, name, model="a") for name in expected} == expected
    assert not [labels for (name, labels) in samples if name == "litmus:request_failures_total"]


def test_the_latency_of_a_score_is_measured(observer: Observer, clock: Callable[[float], None]) -> None:
    clock(0)
    observer.admitted(Score("x", (1, 2), ()), "a")
    clock(0.25)
    observer.events([Scored("x", Columns())])
    assert value_of(scrape(observer), "score_latency_seconds_sum", model="a") == 0.25


def test_every_job_ends_in_one_count(observer: Observer) -> None:
    for name in ("done", "failed", "left"):
        observer.admitted(Generate(name, (1,), 9), "b")
    observer.admitted(Score("text", (1, 2), ()), "b")
    observer.events([Delta("done", "", (5,), "length"), Failed("failed", EngineFailed("no")), Delta("left", "", (5,))])
    for name in ("done", "failed", "left", "text", "text", "never admitted"):
        observer.ended(name)
    observer.events([Delta("left", "", (5,)), Delta("done", "", (5,))])  # what was still on its way
    samples = scrape(observer)
    reasons = {reason: value_of(samples, "request_success_total", model="b", finished_reason=reason) for reason in REASONS}
    assert reasons == {"length": 1, "error": 1, "abort": 1, "stop": 0}
    failures = {labels: value for (name, labels), value in samples.items() if name == "litmus:request_failures_total"}
    assert {tuple(dict(labels).values()): value for labels, value in failures.items()} == {
        ("engine_failed", "generate", "b"): 1,
        ("client_left", "generate", "b"): 1,
        ("client_left", "score", "b"): 1,
    }
    assert value_of(samples, "generation_tokens_total", model="b") == 2


REASONS = ("stop", "length", "abort", "error")


def test_only_a_second_worker_is_a_restart(observer: Observer) -> None:
    observer.worker_ready(0, "a")
    observer.worker_ready(1, "a")
    observer.worker_died("a")
    observer.worker_ready(1, "a")
    samples = scrape(observer)
    assert [value_of(samples, f"worker_{name}_total", model="a") for name in ("deaths", "restarts")] == [1, 1]


def test_a_token_costs_microseconds() -> None:
    assert token_us(Observer(["model"])) < MAX_TOKEN_US
