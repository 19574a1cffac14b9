"""Traces, as an OpenTelemetry collector gets them over HTTP."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from observing import POISON, create_observed
from serving import ENVIRONMENT, ROOT

from app.errors import SetupError
from app.settings import QueueSettings
from serve.observe import tracing
from serve.observe.tracing import add_traces, check_packages
from serve.workers.router import Router

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="requirements-otel.txt is not installed")

TEXT, SECRET = "/v1/completions", "planted-9"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Keeps the bodies that it gets; `spans` reads them."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def resources(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        return [spans for body in self.bodies for spans in ExportTraceServiceRequest.FromString(body).resource_spans]

    def spans(self) -> list[Any]:
        """In the order in which they ended."""
        return [span for resource in self.resources() for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


@pytest.fixture
def traced(collector: Collector, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A context; the collector has everything after its end."""
    monkeypatch.setattr("serve.observe.traces.EXPORT_S", 60)  # as it is in this process, which a busy machine may keep waiting
    return create_observed(tiny_folder, lambda app, router: add_traces(app, router.observer, collector.url))


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def test_a_long_stream_is_four_spans_of_the_callers_trace(traced: Any, collector: Collector) -> None:
    with traced as observed:
        observed.worker.engine.cached_tokens = 1
        body = {"prompt": SECRET, "max_tokens": 40, "stream": True}
        observed.client.post(
            TEXT, params={"q": SECRET}, json=body, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
        )
        for path in ("/health", "/metrics", "/v1/models"):
            observed.client.get(path)
    spans = collector.spans()
    assert [span.name for span in spans] == ["queue", "prefill", "decode", f"POST {TEXT}"]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    server = spans[-1]
    assert [span.parent_span_id for span in spans] == [server.span_id] * 3 + [bytes.fromhex(PARENT)]
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": TEXT,
        "http.response.status_code": 200,
        "gen_ai.request.model": "fake",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 40,
        "litmus.request_id": "mine",
    }
    assert attributes(spans[1]) == {"gen_ai.usage.input_tokens": 10, "litmus.cached_tokens": 1}
    assert attributes(spans[2]) == {"gen_ai.usage.output_tokens": 40, "litmus.finish": "length"}
    queue, prefill, decode = spans[:3]
    assert server.start_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano
    assert prefill.end_time_unix_nano - decode.start_time_unix_nano < 1e6 and decode.start_time_unix_nano < decode.end_time_unix_nano
    assert decode.end_time_unix_nano <= server.end_time_unix_nano + 1e6
    assert not [body for body in collector.bodies if SECRET.encode() in body]


def test_scores_failures_and_refusals_are_told_apart(traced: Any, collector: Collector) -> None:
    with traced as observed:
        observed.client.post("/v1/score", json={"texts": ["one", "another"]})
        observed.client.post(TEXT, json={"prompt": POISON})
        observed.client.post(TEXT, json={"prompt": "a", "user": "banned"})
    spans = collector.spans()
    assert [span.name for span in spans] == ["score", "score", "POST /v1/score", "queue", f"POST {TEXT}", f"POST {TEXT}"]
    assert attributes(spans[0])["litmus.finish"] == "scored"
    failed, refused = attributes(spans[4]), attributes(spans[5])
    assert (failed["http.response.status_code"], failed["error.type"], spans[4].status.code) == (500, "engine_failed", 2)
    assert (refused["http.response.status_code"], refused["error.type"], spans[5].status.code) == (403, "user_banned", 0)


def test_a_caller_that_does_not_sample_gets_no_spans(traced: Any, collector: Collector) -> None:
    with traced as observed:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        assert observed.client.post(TEXT, json={"prompt": "a", "max_tokens": 1}, headers=headers).status_code == 200
    assert collector.bodies == []


def test_a_collector_that_is_gone_harms_no_request(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.observe import traces

    monkeypatch.setattr(traces, "EXPORT_S", 0.2)
    prepare = lambda app, router: add_traces(app, router.observer, "http://127.0.0.1:9")  # noqa: E731
    with create_observed(tiny_folder, prepare) as observed:
        assert observed.client.post(TEXT, json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_without_the_packages_the_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install -r requirements-otel\.txt"):
        add_traces(FastAPI(), Router(["a"], QueueSettings(max_waiting=1)).observer, "http://127.0.0.1:9")


def test_the_packages_are_imported_only_for_traces() -> None:
    check_packages()
    program = (
        "import sys; import serve.server, serve.routes, serve.observe.tracing; "
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk') or name.startswith('opentelemetry.exporter')])"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert run.stdout.strip() == "[]", run.stderr


def test_the_endpoint_is_taken_from_the_settings_or_opentelemetrys_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.settings import read

    assert read([]).server.collector is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert read([]).server.collector == "http://127.0.0.1:4318"
    assert read(["--server.otlp_endpoint", "http://127.0.0.1:1"]).server.collector == "http://127.0.0.1:1"
    with pytest.raises(SetupError, match="server.otlp_endpoint"):
        read(["--server.otlp_endpoint", "collector:4318"])
