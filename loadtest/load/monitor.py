"""What the server says of itself while it is pushed: Prometheus' /metrics and the slots, sampled beside the requests.

Numbers only: llama-server's slots hold prompts, which are not kept.
"""

import json
import math
import re
import time
from dataclasses import dataclass, field
from typing import Any

from loadtest.load.transport import BROKEN, Host
from loadtest.run import Run

SOURCES = ("/metrics", "/slots")
SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*(?:\{.*\})?)\s+(\S+)")
SKIPPED = re.compile(r"^(python_|process_)|_(bucket|created)\b")
FLAT = ("slots", "busy", "waiting", "texts")


@dataclass(slots=True)
class Told:
    """`values` by name; `waits_ms` of requests by the id that their answers have."""

    values: dict[str, float] = field(default_factory=dict)
    waits_ms: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Watch:
    """Samples one server into a run of its own."""

    host: Host
    sources: tuple[str, ...]
    run: Run
    began_s: float

    def sample(self) -> dict[str, float]:
        """Writes a line; returns the waits of requests that were told of."""
        at_s, values, waits_ms = time.perf_counter() - self.began_s, dict[str, float](), dict[str, float]()
        for source in self.sources:
            said = told(self.host, source)
            if said is not None:
                values |= said.values
                waits_ms |= said.waits_ms
        self.run.note({"kind": "sample", "at_s": round(at_s, 3), "took_s": self._took(at_s), "values": values})
        return waits_ms

    def _took(self, at_s: float) -> float:
        return round(time.perf_counter() - self.began_s - at_s, 3)


def told(host: Host, source: str) -> Told | None:
    """None where the server does not answer it, or with something else."""
    try:
        status, body = host.get(source)
        if status != 200:
            return None
        return metrics(body.decode("utf-8", "replace")) if source == "/metrics" else slots(json.loads(body))
    except (*BROKEN, ValueError):
        return None


def metrics(text: str) -> Told | None:
    """Prometheus' text: every finite sample, without the buckets of histograms and what the language's own process tells."""
    found = {}
    for line in text.splitlines():
        matched = SAMPLE.match(line)
        if matched and not SKIPPED.search(matched[1].partition("{")[0]):
            value = _number(matched[2])
            if value is not None:
                found[matched[1]] = value
    return Told(found) if found else None


def slots(body: Any) -> Told | None:
    """Litmus' list of slots with its last decisions, or llama-server's."""
    try:
        if isinstance(body, list):
            return Told({"slots": len(body), "busy": sum(bool(slot["is_processing"]) for slot in body)})
        counts = (len(body["slots"]), sum(slot["stage"] != "idle" for slot in body["slots"]), len(body["waiting"]), body["texts"])
        first = {one["request"].removesuffix("/0"): 1000 * one["waited_s"] for one in body["decisions"] if one["request"].endswith("/0")}
        return Told(dict(zip(FLAT, map(float, counts), strict=True)), first)
    except (AttributeError, KeyError, TypeError):
        return None


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
