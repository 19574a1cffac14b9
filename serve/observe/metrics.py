"""The metrics that are counted as things happen, under names modelled on vLLM's. What is looked up when Prometheus asks is in `state`.

One registry in one process, the API process. Labels have few values: never an id, a user or a path as sent.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from serve.observe.durations import Durations
from serve.observe.recent import Recent

PREFIX = "litmus:"
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 10)
FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
REQUEST_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Metrics:
    """Every counter and histogram. Build one a router: it has a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        model, of_model = ("model",), "model"
        self.first_token = self._histogram("time_to_first_token_seconds", "from the request's arrival to its first token", FIRST_TOKEN_S)
        self.e2e = self._histogram("e2e_request_latency_seconds", "from the request's arrival to the end of its answer", REQUEST_S)
        self.queue = self._histogram("request_queue_time_seconds", "from admission until the answer has a slot", REQUEST_S)
        self.prefill = self._histogram("request_prefill_time_seconds", "from the slot to the first token", REQUEST_S)
        self.decode = self._histogram("request_decode_time_seconds", "from the first token to the last", REQUEST_S)
        self.token_time = self._histogram("request_time_per_output_token_seconds", "mean time between tokens of an answer", TOKEN_S)
        self.prompt_length = self._histogram("request_prompt_tokens", "tokens of the prompts", TOKENS)
        self.answer_length = self._histogram("request_generation_tokens", "tokens of the answers", TOKENS)
        self.score = self._histogram("score_latency_seconds", "from the request's arrival until a text is scored", REQUEST_S)
        self.prompt_tokens = self._counter("prompt_tokens", "tokens of prompts, those found in the cache included", *model)
        self.cache_queries = self._counter("prefix_cache_queries", "prompt tokens that were looked for in the cache", *model)
        self.cache_hits = self._counter("prefix_cache_hits", "prompt tokens that were found in the cache", *model)
        self.drafted = self._counter("spec_decode_num_draft_tokens", "tokens that were drafted and run beside the token before", *model)
        self.accepted = self._counter("spec_decode_num_accepted_tokens", "drafted tokens that are in their answer", *model)
        self.drafts = self._counter("spec_decode_num_drafts", "drafts of one token or more", *model)
        self.success = self._counter(
            "request_success", "answers by how they ended: stop, length, abort, error", of_model, "finished_reason"
        )
        self.failures = self._counter(
            "request_failures", "admitted answers (generate) and texts (score, embed) without a result", of_model, "kind", "code"
        )
        self.scored_texts = self._counter("scored_texts", "texts that were scored", *model)
        self.scored_tokens = self._counter("scored_tokens", "tokens of scored texts", *model)
        self.embedded_texts = self._counter("embedded_texts", "texts that were embedded", *model)
        self.embedded_tokens = self._counter("embedded_tokens", "tokens of embedded texts", *model)
        self.worker_deaths = self._counter("worker_deaths", "worker processes that died", *model)
        self.interruptions = self._counter(
            "interruptions", "answers and texts whose worker died, and that another one goes on with", *model
        )
        self.worker_restarts = self._counter("worker_restarts", "worker processes that were ready again after a death", *model)
        self.http_requests = self._counter("http_requests", "HTTP requests by route and status", "method", "route", "status")
        self.http_duration = Histogram(
            PREFIX + "http_request_duration_seconds",
            "until the last byte of the answer",
            ("route",),
            registry=self.registry,
            buckets=REQUEST_S,
        )
        self.storage_up = Gauge(
            PREFIX + "limits_storage_up",
            "1 while limits are counted in Redis for all servers, 0 while this one counts alone",
            ("storage",),
            registry=self.registry,
        )
        self.refused = self._counter("requests_refused", "requests answered with a status of 400 or more", "route", "status", "code")

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, meaning, ("model",), registry=self.registry, buckets=buckets)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, meaning, labels, registry=self.registry)


class ModelMetrics:
    """The metrics of one model, ready to count: looking them up by label for each event would take longer than counting."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.model = model
        self.generated = 0  # tokens
        self.gaps = Durations(TOKEN_S)  # between two tokens
        self.first_tokens = Recent()  # seconds from arrival to the first token
        self.first_token, self.e2e = metrics.first_token.labels(model), metrics.e2e.labels(model)
        self.queue, self.prefill, self.decode = metrics.queue.labels(model), metrics.prefill.labels(model), metrics.decode.labels(model)
        self.token_time, self.score = metrics.token_time.labels(model), metrics.score.labels(model)
        self.prompt_length, self.answer_length = metrics.prompt_length.labels(model), metrics.answer_length.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.cache_queries, self.cache_hits = metrics.cache_queries.labels(model), metrics.cache_hits.labels(model)
        self.drafts, self.drafted = metrics.drafts.labels(model), metrics.drafted.labels(model)
        self.accepted = metrics.accepted.labels(model)
        self.finished = {reason: metrics.success.labels(model, reason) for reason in ("stop", "length", "abort", "error")}
        self.scored_texts, self.scored_tokens = metrics.scored_texts.labels(model), metrics.scored_tokens.labels(model)
        self.embedded_texts, self.embedded_tokens = metrics.embedded_texts.labels(model), metrics.embedded_tokens.labels(model)
        self.interruptions = metrics.interruptions.labels(model)
        self.worker_deaths, self.worker_restarts = metrics.worker_deaths.labels(model), metrics.worker_restarts.labels(model)


def token_families(models: list[ModelMetrics]) -> Iterator[Metric]:
    """The two metrics that are counted at every token, without prometheus_client."""
    tokens = CounterMetricFamily(PREFIX + "generation_tokens", "tokens of answers", labels=["model"])
    gaps = HistogramMetricFamily(PREFIX + "inter_token_latency_seconds", "between two tokens of an answer", labels=["model"])
    for model in models:
        tokens.add_metric([model.model], model.generated)
        gaps.add_metric([model.model], model.gaps.buckets(), model.gaps.total_s)
    yield from (tokens, gaps)


def counts_of(metrics: Metrics, model: str, *names: str) -> list[int]:
    """What the counters of these names have counted for the model."""
    wanted = {f"{PREFIX}{name}_total": 0 for name in names}
    for family in metrics.registry.restricted_registry(wanted).collect():
        wanted |= {sample.name: int(sample.value) for sample in family.samples if sample.labels["model"] == model}
    return list(wanted.values())
