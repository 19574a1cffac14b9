"""Counts one request to an upstream: for the metrics of its model, for the request's line in the log, and for the limits of its client.

Its tokens are those of the upstream's `usage`; where it says none, an event with text counts as a token. Knows no HTTP.
"""

import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter

from serve.observe.metrics import ModelMetrics
from serve.observe.observer import Observer
from serve.observe.record import CLIENT_LEFT, current_record
from serve.upstream.wires import Wire

COUNTS = {  # names of the counts; those of one tuple add up
    "prompt": (("prompt_tokens",), ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")),
    "answer": (("completion_tokens",), ("output_tokens",)),
}
MAX_COUNT = 10**9
CUT = frozenset({"length", "max_tokens", "incomplete"})  # why an answer ended, where a limit ended it


def is_count(value: Any) -> bool:
    """Whether it can be a number of tokens: what is no such number would spoil what is counted until the next start."""
    return type(value) is int and 0 <= value <= MAX_COUNT


class Meter:
    """Times are those of `time.monotonic`."""

    def __init__(self, observer: Observer, model: str, wire: Wire, requests: Counter) -> None:
        self._failures, self._metrics = observer.metrics.failures, observer.model(model)
        self._wire, self._requests = wire, requests
        self._record = current_record()
        self.start_s = time.monotonic() if self._record is None else self._record.start_s
        self._entered_s = time.monotonic()
        self.first_s = self.last_s = 0.0  # when its first and its latest text came
        self.texts = 0  # events with text
        self.counts: dict[str, int] = {}  # tokens as the upstream counted them
        self.cut = False
        self._has_upstream = self._ended = False
        if self._record is not None:
            self._record.model = model

    @property
    def metrics(self) -> ModelMetrics:
        return self._metrics

    def sent(self) -> None:
        """It has an upstream, which may compute for it though no count comes back."""
        self._has_upstream = True
        self._metrics.queue.observe(time.monotonic() - self._entered_s)

    def told(self, url: str, outcome: str) -> None:
        """What an upstream did with it: answered, refused, failed."""
        self._requests.labels(self._metrics.model, url, outcome).inc()

    def text(self) -> None:
        now_s = time.monotonic()
        if self.texts:
            self._metrics.gaps.add(now_s - self.last_s, 1)
        else:
            self.first_s = now_s
            self._metrics.first_token.observe(now_s - self.start_s)
        self.last_s, self.texts = now_s, self.texts + 1

    def usage(self, usage: Any) -> None:
        """Some count the prompt in one event and the answer in another."""
        if not isinstance(usage, Mapping):
            return
        for part, forms in COUNTS.items():
            for names in forms:
                numbers = [usage[name] for name in names if is_count(usage.get(name))]
                if numbers:
                    self.counts[part] = max(sum(numbers), self.counts.get(part, 0))

    def reason(self, reason: Any) -> None:
        self.cut = self.cut or reason in CUT

    def finished(self) -> None:
        self._count()
        metrics, tokens = self._metrics, self.counts.get("answer", self.texts)
        if self._wire.kind != "generate":
            return
        now_s = time.monotonic()
        metrics.finished["length" if self.cut else "stop"].inc()
        metrics.e2e.observe(now_s - self.start_s)
        metrics.answer_length.observe(tokens)
        if self.texts > 1 and tokens > 1:
            metrics.decode.observe(self.last_s - self.first_s)
            metrics.token_time.observe((self.last_s - self.first_s) / (tokens - 1))

    def failed(self, code: str) -> None:
        """Once: what comes after the end of an answer changes nothing."""
        if self._ended:
            return
        self._count()
        self._failures.labels(self._metrics.model, self._wire.kind, code).inc()
        if self._wire.kind == "generate":
            self._metrics.finished["abort" if code == CLIENT_LEFT else "error"].inc()

    def _count(self) -> None:
        self._ended = True
        metrics, prompt = self._metrics, self.counts.get("prompt", 0)
        tokens = self.counts.get("answer", self.texts)
        metrics.generated += tokens
        if prompt:
            metrics.prompt_tokens.inc(prompt)
            metrics.prompt_length.observe(prompt)
        if self._record is not None and (self.counts or self._has_upstream):
            self._record.jobs += 1
            self._record.prompt_tokens += prompt
        if self._record is not None:
            self._record.generated_tokens += tokens
