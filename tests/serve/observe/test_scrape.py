"""`GET /metrics`: requests, refusals, engines, replicas and processes, as Prometheus reads them."""

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import DEAD_PID, FACTS, FakeEngine, FakeWorker
from observing import LIMIT, POISON, Observed, create_observed, value_of

from app.settings import QueueSettings
from serve.observe import state
from serve.workers.fleet import Fleet, Replica
from serve.workers.messages import Ready
from serve.workers.router import Router
from serve.workers.watch import watch

CHAT, TEXT, SCORE = "/v1/chat/completions", "/v1/completions", "/v1/score"
ROOT = Path(__file__).parents[3]
STANDINGS = ("served", "next", "previous")


def test_chats_and_scores_are_counted(observed: Observed) -> None:
    observed.worker.engine.cached_tokens = 2
    observed.client.post(CHAT, json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})
    with observed.client.stream("POST", TEXT, json={"prompt": "abc", "max_tokens": 4, "stream": True}) as stream:
        stream.read()
    observed.client.post(SCORE, json={"texts": ["one text", "another"]})
    observed.client.post("/v1/embeddings", json={"input": ["a", "bc", "d"]})
    samples = observed.scrape()
    expected = {
        "prompt_tokens_total": 9,
        "generation_tokens_total": 7,
        "prefix_cache_queries_total": 9,
        "prefix_cache_hits_total": 4,
        "time_to_first_token_seconds_count": 2,
        "e2e_request_latency_seconds_count": 2,
        "inter_token_latency_seconds_count": 5,
        "scored_texts_total": 2,
        "scored_tokens_total": len("one text") + len("another") + 2,
        "score_latency_seconds_count": 2,
        "embedded_texts_total": 3,
        "jobs_in_flight": 0,
    }
    assert {name: value_of(samples, name, model="fake") for name in expected} == expected
    assert value_of(samples, "request_success_total", model="fake", finished_reason="length") == 2
    assert value_of(samples, "http_requests_total", method="POST", route=CHAT, status=200) == 1
    assert value_of(samples, "http_request_duration_seconds_count", route=SCORE) == 1
    assert value_of(samples, "model_info", **info()) == 1


def info() -> dict[str, str]:
    (sample,) = state.InfoMetricFamily("m", "", value=state._info(FACTS)).samples
    return {"model": "fake", **sample.labels}


@pytest.mark.parametrize(
    ("request_of", "status", "code"),
    [
        ({"content": "{"}, 400, "invalid_json"),
        ({"json": {"prompt": "a", "max_tokens": 0}}, 400, "invalid_value"),
        ({"json": {"prompt": "a" * 100}}, 400, "context_length_exceeded"),
        ({"json": {"prompt": "a", "user": "banned"}}, 403, "user_banned"),
        ({"json": {"prompt": "a", "model": "other"}}, 404, "model_not_found"),
        ({"content": " " * (LIMIT + 1)}, 413, "body_too_large"),
        ({"json": {"prompt": POISON}}, 500, "engine_failed"),
    ],
)
def test_refusals_are_counted_by_code(observed: Observed, request_of: dict[str, Any], status: int, code: str) -> None:
    answer = observed.client.post(TEXT, headers={"Content-Type": "application/json"}, **request_of)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code
    route = TEXT if status != 413 else "unmatched"  # refused before any route is looked for
    assert observed.value("requests_refused_total", route=route, status=status, code=code) == 1


def test_a_full_queue_and_a_drain_are_counted(observed: Observed) -> None:
    observed.router.replicas[0].load = 5
    assert observed.client.post(TEXT, json={"prompt": "a"}).status_code == 429
    assert observed.value("requests_refused_total", route=TEXT, status=429, code="queue_full") == 1
    observed.router.draining = True
    assert observed.client.post(TEXT, json={"prompt": "a"}).status_code == 503
    assert observed.client.get("/ready").status_code == 503  # an answer, not a refusal
    assert "/ready" not in {dict(labels)["route"] for name, labels in observed.scrape() if name == "litmus:requests_refused_total"}
    assert observed.value("requests_refused_total", route=TEXT, status=503, code="not_ready") == 1


def test_a_refusal_that_no_error_names_has_a_code_of_its_status(tiny_folder: Path) -> None:
    """As that of a middleware which answers by itself."""

    def add_guard(app: Any, router: Router) -> None:
        @app.get("/guarded")
        async def guarded() -> Any:
            from fastapi.responses import JSONResponse

            return JSONResponse({}, 401)

    with create_observed(tiny_folder, add_guard) as observed:
        observed.client.get("/guarded")
        assert observed.value("requests_refused_total", route="/guarded", status=401, code="unauthorized") == 1


def test_labels_hold_templates_and_nothing_that_a_client_chose(observed: Observed) -> None:
    before = len(observed.scrape())
    for index in range(30):
        observed.client.get(f"/planted/{index}?q=planted", headers={"X-Request-Id": f"planted-{index}"})
        observed.client.get(f"/v1/models/planted-{index}")
        observed.client.request(f"PLANTED{index}", "/health")
        observed.client.post(TEXT, json={"prompt": "a", "user": f"planted-{index}", "model": f"planted-{index}"})
    samples = observed.scrape()
    assert not [labels for _, labels in samples if "planted" in str(labels).lower()]
    assert value_of(samples, "http_requests_total", method="GET", route="/v1/models/{name:path}", status=404) == 30
    assert value_of(samples, "http_requests_total", method="GET", route="unmatched", status=404) == 30
    assert value_of(samples, "http_requests_total", method="OTHER", route="/health", status=405) == 30
    assert len(samples) - before < 150  # buckets of four routes, not of 120 requests


def test_a_mounted_application_is_one_route(tiny_folder: Path) -> None:
    def mount(app: Any, router: Router) -> None:
        from fastapi import FastAPI

        inner = FastAPI()
        inner.get("/file/{path:path}")(lambda path: path)
        app.mount("/page", inner)

    with create_observed(tiny_folder, mount) as observed:
        assert observed.client.get("/page/file/a").status_code == 200
        assert observed.value("http_requests_total", method="GET", route="/page", status=200) == 1


def test_the_engines_report_is_read(observed: Observed) -> None:
    samples, labels = observed.scrape(), {"model": "fake", "replica": 0, "version": "served"}
    expected = {
        "num_requests_running": 1,
        "num_requests_waiting": 2,
        "num_texts": 3,
        "slots": 2,
        "slots_busy": 1,
        "kv_cache_usage_perc": 2 / 32,
    }
    assert {name: value_of(samples, name, **labels) for name in expected} == expected
    assert value_of(samples, "engine_report_age_seconds", **labels) < 30
    assert [value_of(samples, name, model="fake") for name in ("replicas", "replicas_alive")] == [1, 1]


def test_a_busy_engine_delays_a_scrape_by_a_bounded_time_and_its_last_report_stands(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"model": "fake", "replica": 0, "version": "served"}
    observed.scrape()
    observed.worker.stalled = True
    monkeypatch.setattr(state, "REPORT_WAIT_S", 0.05)
    start_s = time.monotonic()
    samples = observed.scrape()
    assert time.monotonic() - start_s < 30
    assert value_of(samples, "num_requests_waiting", **labels) == 2
    assert value_of(samples, "engine_report_age_seconds", **labels) >= 0.05


def test_while_a_model_is_replaced_its_versions_are_told_apart(observed: Observed) -> None:
    new = Fleet("fake", [Replica(1, "fake", observed.router.replicas[0].queue)], QueueSettings())

    def seen() -> dict[str, tuple[int, ...]]:
        """The slots of each version's replica 0, and by GET /overview the numbers of the replicas."""
        samples = observed.scrape()
        versions = {version: int(value_of(samples, "slots", model="fake", replica=0, version=version)) for version in STANDINGS}
        overview = observed.client.get("/overview").json()
        numbers = [engine["replica"] for engine in overview["models"][0]["engines"]]
        assert numbers == [each["replica"] for each in overview["processes"] if each["process"] == "worker"]
        return {"numbers": tuple(numbers), "slots": tuple(versions.values())}

    observed.router.add(new)
    observed.router.append([Ready(psutil.Process().pid, 1, FACTS), "OK"])
    assert seen() == {"numbers": (0, 1), "slots": (2, 2, 0)}
    assert observed.router.fleet(None).replica(0).number == 0
    old = observed.router.install(new)
    assert old is not None and seen() == {"numbers": (0, 1), "slots": (2, 0, 2)}
    assert observed.router.fleet(None).replica(0).number == 1
    observed.router.remove(old)
    assert seen() == {"numbers": (0,), "slots": (2, 0, 0)}


def test_reports_of_versions_that_are_gone_are_forgotten() -> None:
    async def main() -> None:
        router = Router([FACTS.name], QueueSettings())
        new = Fleet(FACTS.name, [Replica(1, FACTS.name)], QueueSettings())
        worker = FakeWorker(router, FakeEngine())
        router.add(new)
        for replica in router.replicas:
            replica.queue = worker
            router.append([Ready(psutil.Process().pid, replica.number, FACTS), "OK"])
        reports = state.EngineReports(router)
        await reports.refresh()
        assert list(reports._latest) == [0, 1]
        router.remove(new)
        await reports.refresh()
        assert list(reports._latest) == [0]

    asyncio.run(main())


def test_a_dead_worker_has_no_numbers_nor_has_its_successor_the_dead_ones(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = ("litmus:slots", (("model", "fake"), ("replica", "0"), ("version", "served")))
    assert slots in observed.scrape()
    observed.router.replicas[0].worker = None
    samples = observed.scrape()
    assert value_of(samples, "replicas_alive", model="fake") == 0 and slots not in samples
    assert value_of(samples, "process_resident_memory_bytes", process="worker", model="fake", replica=0, version="served") == 0
    observed.worker.stalled = True
    monkeypatch.setattr(state, "REPORT_WAIT_S", 0.02)
    observed.router.append([Ready(psutil.Process().ppid(), 0, FACTS), "OK"])
    samples = observed.scrape()
    assert value_of(samples, "replicas_alive", model="fake") == 1 and slots not in samples


def test_the_router_tells_deaths_and_restarts() -> None:
    async def main() -> tuple[Router, bytes]:
        router = Router([FACTS.name], QueueSettings(max_waiting=1))
        router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])

        class Dead:
            pid = DEAD_PID

            def status(self) -> str:
                return psutil.STATUS_ZOMBIE

        router.replicas[0].worker = Dead()  # type: ignore[assignment]
        watching = asyncio.create_task(watch(router))
        while router.replicas[0].worker is not None:
            await asyncio.sleep(0.01)
        watching.cancel()
        router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
        from prometheus_client import generate_latest

        return router, generate_latest(router.observer)

    _, text = asyncio.run(main())
    assert b'litmus:worker_deaths_total{model="fake"} 1.0' in text
    assert b'litmus:worker_restarts_total{model="fake"} 1.0' in text


def test_memory_and_cpu_of_every_process_are_read(observed: Observed) -> None:
    samples = observed.scrape()
    for labels in (
        {"process": "main", "model": "", "replica": "", "version": ""},
        {"process": "api", "model": "", "replica": "", "version": ""},
    ):
        assert value_of(samples, "process_resident_memory_bytes", **labels) > 1e6
    worker = {"process": "worker", "model": "fake", "replica": 0, "version": "served"}
    assert value_of(samples, "process_resident_memory_bytes", **worker) == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert 0 < value_of(samples, "process_cpu_seconds_total", **worker) <= time.process_time() + 1


def test_the_document_lists_every_metric(observed: Observed) -> None:
    """Each row of the table has a metric, its type, its labels and its meaning."""
    observed.client.post(TEXT, json={"prompt": POISON})
    text = observed.client.get("/metrics").text
    meanings = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    exposed = {name: (kind, meanings[name]) for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M)}
    rows = re.findall(r"^\| `(litmus:\w+)` \| (\w+) \| ([\w, ]+) \| (.*) \|$", (ROOT / "docs/observability.md").read_text(), re.M)
    rows = [
        row for row in rows if not row[0].startswith("litmus:upstream_")
    ]  # only where there are upstreams; they have a test of their own
    assert {name: (kind, meaning) for name, kind, _, meaning in rows} == exposed
    assert len(rows) == len(exposed) > 40
    documented = {name: set(labels.split(", ")) for name, _, labels, _ in rows}
    for name, labels in observed.scrape():
        metric = name if name in documented else re.sub("_(bucket|sum|count)$", "", name)
        assert {label for label, _ in labels} - {"le"} == documented[metric], name
