"""OpenTelemetry traces: a span for each request that asks for work, and below it the queue, the prefill and the decode of each answer.

Imported only where a collector is set, as the packages (requirements-otel.txt) are optional. Spans hold the route's template, counts and
names of models: no path as sent, no query, no address, no text. A span for each chunk of a stream would be hundreds; there are none.
"""

import time
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.models.revision import VERSION
from serve.observe.observer import ObservedJob
from serve.observe.record import RequestRecord

CONTEXT_HEADERS = (b"traceparent", b"tracestate")
PAGE = "/ui"
EXPORT_S = 3.0  # for the collector to take a batch, the last one at a stop included
NS = 1_000_000_000


class Traces:
    """Sends to the collector at `endpoint`, such as http://127.0.0.1:4318, over HTTP, in a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({SERVICE_NAME: "litmus", SERVICE_VERSION: VERSION}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("litmus")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, method: str, scope: Any) -> Span | None:
        """A span for a request that asks for work, as part of the trace that its `traceparent` names; None for others."""
        if method != "POST" or scope["path"].startswith(PAGE):
            return None
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in CONTEXT_HEADERS}
        return self._tracer.start_span(method, self._propagator.extract(headers), SpanKind.SERVER)

    def finish(self, record: RequestRecord) -> None:
        span: Span = record.span
        span.update_name(f"{record.method} {record.route}")
        span.set_attributes(
            {
                "http.request.method": record.method,
                "http.route": record.route,
                "http.response.status_code": record.status,
                "gen_ai.request.model": record.model,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.generated_tokens,
                "litmus.request_id": record.id,
            }
        )
        if record.code:
            span.set_attribute("error.type", record.code)
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def add_job(self, parent: Span, observed: ObservedJob, reason: str, ended_s: float) -> None:
        """Spans of a job that has ended; times are those of `time.monotonic`."""
        if not parent.is_recording():
            return
        slot_s = observed.first_s - observed.prefill_s
        if observed.kind != "generate":
            self._add(parent, observed.kind, (observed.admitted_s, ended_s), {"gen_ai.usage.input_tokens": observed.prompt_tokens}, reason)
        elif observed.first_s == 0.0:
            self._add(parent, "queue", (observed.admitted_s, ended_s), {}, reason)
        else:
            prompt = {"gen_ai.usage.input_tokens": observed.prompt_tokens, "litmus.cached_tokens": observed.cached}
            self._add(parent, "queue", (observed.admitted_s, max(slot_s, observed.admitted_s)), {})
            self._add(parent, "prefill", (slot_s, observed.first_s), prompt)
            self._add(parent, "decode", (observed.first_s, ended_s), {"gen_ai.usage.output_tokens": observed.tokens}, reason)

    def _add(self, parent: Span, name: str, times_s: tuple[float, float], counts: dict[str, int], reason: str = "") -> None:
        offset_ns = time.time_ns() - int(time.monotonic() * NS)
        start_ns, end_ns = (offset_ns + int(moment_s * NS) for moment_s in times_s)
        span = self._tracer.start_span(name, set_span_in_context(parent), attributes=counts, start_time=start_ns)
        if reason:
            span.set_attribute("litmus.finish", reason)
        span.end(end_time=end_ns)

    def close(self) -> None:
        """Send what is left. Waits some seconds for a collector that does not answer."""
        self._provider.shutdown()
