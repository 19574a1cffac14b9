"""Hears from the router what happens to each job, and counts it. One observer a router, on its event loop.

A token's event is the hot path: `events` looks at the clock once a step, and counts in plain integers. Knows no HTTP and no engine.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from app.engine.events import Delta, Embedded, Event, Failed, Scored
from app.engine.request import Generate, Job, Score
from serve.observe.metrics import Metrics, ModelMetrics, counts_of, token_families
from serve.observe.recent import Summary
from serve.observe.record import CLIENT_LEFT, RequestRecord, current_record

if TYPE_CHECKING:
    from serve.observe.traces import Traces


@dataclass(slots=True)
class ObservedJob:
    """A job in flight. Times are those of `time.monotonic`."""

    job: Job
    model: ModelMetrics
    record: RequestRecord | None
    admitted_s: float
    first_s: float = 0.0  # when its first token came; 0: not yet
    last_s: float = 0.0  # when its latest token came
    prefill_s: float = 0.0
    cached: int = 0  # prompt tokens found in the cache
    tokens: int = 0  # generated so far

    @property
    def arrived_s(self) -> float:
        return self.admitted_s if self.record is None else self.record.start_s

    @property
    def prompt_tokens(self) -> int:
        return len(self.job.prompt if isinstance(self.job, Generate) else self.job.tokens)

    @property
    def kind(self) -> str:
        return "generate" if isinstance(self.job, Generate) else "score" if isinstance(self.job, Score) else "embed"


@dataclass(frozen=True, slots=True)
class TokenCounts:
    generated: int
    prompt: int
    scored: int


class Observer:
    def __init__(self, models: Iterable[str]) -> None:
        self.metrics = Metrics()
        self.traces: Traces | None = None
        self._models = {model: ModelMetrics(self.metrics, model) for model in dict.fromkeys(models)}
        self._jobs: dict[str, ObservedJob] = {}
        self._started_workers: set[int] = set()  # numbers of the replicas that have had a worker

    def model(self, name: str) -> ModelMetrics:
        """The metrics of a model, also of one that upstreams answer for."""
        self.add(name)
        return self._models[name]

    def admitted(self, job: Job, model: str) -> None:
        """A job is on its way to a worker of the model."""
        record = current_record()
        observed = ObservedJob(job, self._models[model], record, time.monotonic())
        self._jobs[job.id] = observed
        if record is not None:
            record.model = job.adapter or model
            record.jobs += 1
            record.prompt_tokens += observed.prompt_tokens

    def events(self, events: Sequence[Event]) -> None:
        """The events of one step, or the failures that the router itself made."""
        now_s = time.monotonic()
        for event in events:
            observed = self._jobs.get(event.id)
            if observed is None:
                continue
            if type(event) is Delta:
                self._delta(observed, event, now_s)
            else:
                self._other(observed, event, now_s)

    def ended(self, id: str) -> None:
        """Nobody waits for the job any more. If it has not ended by itself, its client left."""
        observed = self._jobs.get(id)
        if observed is not None:
            self._failed(observed, CLIENT_LEFT, time.monotonic())

    def worker_ready(self, replica: int, model: str) -> None:
        self.add(model)
        if replica in self._started_workers:
            self._models[model].worker_restarts.inc()
        self._started_workers.add(replica)

    def worker_stopped(self, replica: int) -> None:
        """As it should: the next one is no restart."""
        self._started_workers.discard(replica)

    def add(self, model: str) -> None:
        """A model that was not there at the start."""
        if model not in self._models:
            self._models[model] = ModelMetrics(self.metrics, model)

    def worker_died(self, model: str) -> None:
        self._models[model].worker_deaths.inc()

    def interrupted(self, model: str) -> None:
        """A job's worker died, and another one goes on with it."""
        self._models[model].interruptions.inc()

    def collect(self) -> Iterator[Metric]:
        """Everything that was counted, for prometheus_client."""
        yield from self.metrics.registry.collect()
        yield from token_families(list(self._models.values()))

    def first_tokens(self, model: str) -> Summary | None:
        """The times to the first token of the model's latest answers; None without any."""
        return self._models[model].first_tokens.summary(time.monotonic())

    def tokens(self, model: str) -> TokenCounts:
        """The tokens that the model has worked on so far."""
        counted = counts_of(self.metrics, model, "prompt_tokens", "scored_tokens")
        return TokenCounts(self._models[model].generated, *counted)

    def _delta(self, observed: ObservedJob, delta: Delta, now_s: float) -> None:
        model, tokens = observed.model, len(delta.tokens)
        if observed.first_s == 0.0:
            self._first(observed, delta, now_s)
        elif tokens:
            model.gaps.add((now_s - observed.last_s) / tokens, tokens)
        observed.last_s = now_s
        observed.tokens += tokens
        model.generated += tokens
        if delta.drafted:
            model.drafts.inc()
            model.drafted.inc(delta.drafted)
            model.accepted.inc(delta.accepted)
        if delta.finish is not None:
            self._finished(observed, delta.finish)

    def _first(self, observed: ObservedJob, delta: Delta, now_s: float) -> None:
        model = observed.model
        observed.first_s, observed.prefill_s, observed.cached = now_s, delta.prefill_s, delta.cached
        model.first_token.observe(now_s - observed.arrived_s)
        model.first_tokens.add(now_s, now_s - observed.arrived_s)
        model.queue.observe(max(0.0, now_s - observed.admitted_s - delta.prefill_s))
        model.prefill.observe(delta.prefill_s)
        model.prompt_tokens.inc(observed.prompt_tokens)
        model.prompt_length.observe(observed.prompt_tokens)
        model.cache_queries.inc(observed.prompt_tokens)
        model.cache_hits.inc(delta.cached)

    def _finished(self, observed: ObservedJob, reason: str) -> None:
        model, decode_s = observed.model, observed.last_s - observed.first_s
        model.finished[reason].inc()
        model.e2e.observe(observed.last_s - observed.arrived_s)
        model.decode.observe(decode_s)
        model.answer_length.observe(observed.tokens)
        if observed.tokens > 1:
            model.token_time.observe(decode_s / (observed.tokens - 1))
        self._forget(observed, reason, observed.last_s)

    def _other(self, observed: ObservedJob, event: Event, now_s: float) -> None:
        model = observed.model
        if isinstance(event, Scored):
            model.scored_texts.inc()
            model.scored_tokens.inc(observed.prompt_tokens)
            model.score.observe(now_s - observed.arrived_s)
            self._forget(observed, "scored", now_s)
        elif isinstance(event, Embedded):
            model.embedded_texts.inc()
            model.embedded_tokens.inc(observed.prompt_tokens)
            self._forget(observed, "embedded", now_s)
        elif isinstance(event, Failed):
            self._failed(observed, event.error.code, now_s)

    def _failed(self, observed: ObservedJob, code: str, now_s: float) -> None:
        self.metrics.failures.labels(observed.model.model, observed.kind, code).inc()
        if isinstance(observed.job, Generate):
            observed.model.finished["abort" if code == CLIENT_LEFT else "error"].inc()
        self._forget(observed, code, now_s)

    def _forget(self, observed: ObservedJob, reason: str, now_s: float) -> None:
        del self._jobs[observed.job.id]
        record = observed.record
        if record is None:
            return
        record.generated_tokens += observed.tokens
        if self.traces is not None and record.span is not None:
            self.traces.add_job(record.span, observed, reason, now_s)
