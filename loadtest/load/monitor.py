"""Samples what the server reports about itself during a load test: Prometheus' /metrics, and /slots.

It keeps numbers only: llama-server's slots contain prompts.
"""

import json
import math
import re
import time
from dataclasses import dataclass, field
from typing import Any

from loadtest.load.transport import CONNECTION_ERRORS, Host
from loadtest.run import Run

SOURCES = ("/metrics", "/slots")
METRIC_LINE = re.compile(r"^([a-zA-Z_:][\w:]*(?:\{.*\})?)\s+(\S+)")  # name with labels, value
SKIPPED_METRICS = re.compile(r"^(python_|process_)|_(bucket|created)\b")
SLOT_VALUES = ("slots", "busy", "waiting", "texts")  # texts: those being scored


@dataclass(slots=True)
class Sample:
    """What one source reports: `values` by name, and `queue_times_ms` by the id of the response."""

    values: dict[str, float] = field(default_factory=dict)
    queue_times_ms: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class ServerMonitor:
    """Writes samples of one server to a run file of their own. `began_s` is the start of the load test."""

    host: Host
    sources: tuple[str, ...]
    run: Run
    began_s: float

    def sample(self) -> dict[str, float]:
        """Writes one line with the values of all sources. Returns the queue times of recent requests by the id of the response."""
        at_s, values, queue_times_ms = time.perf_counter() - self.began_s, dict[str, float](), dict[str, float]()
        for source in self.sources:
            sample = read_source(self.host, source)
            if sample is not None:
                values |= sample.values
                queue_times_ms |= sample.queue_times_ms
        self.run.note({"kind": "sample", "at_s": round(at_s, 3), "took_s": self._elapsed_s(at_s), "values": values})
        return queue_times_ms

    def _elapsed_s(self, at_s: float) -> float:
        return round(time.perf_counter() - self.began_s - at_s, 3)


def read_source(host: Host, source: str) -> Sample | None:
    """None if the server does not answer with 200, or with a body in another format."""
    try:
        status, body = host.get(source)
        if status != 200:
            return None
        return parse_metrics(body.decode("utf-8", "replace")) if source == "/metrics" else parse_slots(json.loads(body))
    except (*CONNECTION_ERRORS, ValueError):
        return None


def parse_metrics(text: str) -> Sample | None:
    """Reads Prometheus' text format: every finite value except histogram buckets and metrics of the Python process. None for no value."""
    values = {}
    for line in text.splitlines():
        match = METRIC_LINE.match(line)
        if match and not SKIPPED_METRICS.search(match[1].partition("{")[0]):
            value = _finite(match[2])
            if value is not None:
                values[match[1]] = value
    return Sample(values) if values else None


def parse_slots(body: Any) -> Sample | None:
    """Reads /slots of Litmus, with the queue times of its recent admissions, or of llama-server. None for another format."""
    try:
        if isinstance(body, list):
            return Sample({"slots": len(body), "busy": sum(bool(slot["is_processing"]) for slot in body)})
        counts = (len(body["slots"]), sum(slot["stage"] != "idle" for slot in body["slots"]), len(body["waiting"]), body["texts"])
        # a request with several choices is admitted as id/0, id/1 ...: the first one counts
        firsts = [decision for decision in body["decisions"] if decision["request"].endswith("/0")]
        queue_times_ms = {decision["request"].removesuffix("/0"): 1000 * decision["waited_s"] for decision in firsts}
        return Sample(dict(zip(SLOT_VALUES, map(float, counts), strict=True)), queue_times_ms)
    except (AttributeError, KeyError, TypeError):
        return None


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
