"""A running load test: which stage runs, and where each finished request is written and reported.

Locust's table gets a row for each measure: the row's type is the measure, its name says which users sent which kind of request. Only the
type e2e counts as a request there; the other types are times within a request, or requests that were shed or left (no success, no failure).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gevent  # type: ignore[import-untyped]

from loadtest.load.monitor import ServerMonitor
from loadtest.load.options import Load
from loadtest.load.probe import Capabilities
from loadtest.load.stages import Stage
from loadtest.load.transport import Host
from loadtest.record import Kind, Record, Start
from loadtest.run import Run

SAMPLE_INTERVAL_S = 1.0  # between two samples of the server
MAX_PENDING_S = 3.0  # how long a record waits for the server to report its queue time


class RequestFailed(Exception):
    """Passed to Locust, which shows its message in the list of failures."""


@dataclass(slots=True)
class LoadSession:
    """The state of one load test. Times are readings of `time.perf_counter`.

    `fire` is Locust's event for a request. `pending` holds records, with the time they finished, that wait for their queue time.
    `sampler`: the greenlet that samples the server until the end. `stopping`: no further requests are to be sent.
    """

    load: Load
    host: Host
    capabilities: Capabilities
    run: Run
    fire: Callable[..., None]
    began_s: float
    stage: Stage
    stage_began_s: float
    monitor: ServerMonitor | None = None
    records: list[Record] = field(default_factory=list)
    pending: list[tuple[float, Record]] = field(default_factory=list)
    sampler: gevent.Greenlet | None = None
    stopping: bool = False

    @property
    def plan(self) -> list[Stage]:
        """The stages; a load without stages counts as one stage with as many users as were started."""
        return list(self.load.plan) if self.load.plan[0].seconds is not None else [self.stage]

    def begin_stage(self, stage: Stage) -> None:
        self.stage, self.stage_began_s = stage, time.perf_counter()

    def start_request(self, kind: Kind, planned_s: float | None, known_fields: Mapping[str, Any]) -> Start:
        """To be called when a request is sent. In an open loop its times count from `planned_s`, its planned arrival."""
        now_s, stage = time.perf_counter(), self.stage
        at_s = now_s if planned_s is None else planned_s
        stage_fields: dict[str, Any] = {"stage": stage.number, "warm_up": stage.is_warm_up(at_s - self.stage_began_s)}
        if stage.opened:
            stage_fields |= {"rate": stage.level, "late_ms": None if planned_s is None else round(1000 * (now_s - planned_s), 3)}
        return Start(kind, 0 if stage.opened else int(stage.level), at_s, self.began_s, {**known_fields, **stage_fields})

    def add(self, record: Record) -> None:
        """Writes and reports a finished request; it stays pending first if the server is yet to report its queue time."""
        if "/slots" in self.capabilities.sources and record.request is not None and record.queue_ms is None:
            self.pending.append((time.perf_counter(), record))
        else:
            self._write(record)

    def start_sampling(self) -> None:
        """Samples the server every `SAMPLE_INTERVAL_S`, until `close`."""
        self.sampler = gevent.spawn(self._keep_sampling)

    def _keep_sampling(self) -> None:
        while True:
            self.sample_server()
            gevent.sleep(SAMPLE_INTERVAL_S)

    def sample_server(self, final: bool = False) -> None:
        """Samples the server and completes pending records with it."""
        self.complete_pending({} if self.monitor is None else self.monitor.sample(), final)

    def close(self) -> None:
        """Ends the sampler, which may be waiting for the server's answer, takes a last sample and closes the run files."""
        if self.sampler is not None:
            self.sampler.kill()
        self.sample_server(final=True)
        self.run.close()
        if self.monitor is not None:
            self.monitor.run.close()

    def complete_pending(self, queue_times_ms: Mapping[str, float], final: bool = False) -> None:
        """Writes the pending records whose queue time is known by now (by request id), those that waited too long, or all (`final`)."""
        now_s, pending = time.perf_counter(), self.pending
        self.pending = []
        for since_s, record in pending:
            queue_ms = queue_times_ms.get(record.request or "")
            if queue_ms is not None or final or now_s - since_s > MAX_PENDING_S:
                self._write(replace(record, queue_ms=queue_ms))
            else:
                self.pending.append((since_s, record))

    def _write(self, record: Record) -> None:
        self.records.append(record)
        self.run.add(record)
        if not record.warm_up:
            self._report(record)

    def _report(self, record: Record) -> None:
        """Adds the record to Locust's table."""
        who = record.kind if record.user == record.kind else f"{record.kind} ({record.user})"
        has_stages = len(self.load.plan) > 1 or self.load.is_open_loop
        name = f"{who}, {self.plan[record.stage].name}" if has_stages else who
        if record.outcome in ("shed", "left"):
            self._fire(record.outcome, name, record.e2e_ms)
        else:
            failure = RequestFailed(record.reason) if record.outcome == "failed" else None
            self._fire("e2e", name, None if failure else record.e2e_ms, failure)
        if record.outcome in ("ok", "left"):
            times = {"TTFT": record.ttft_ms, "TPOT": record.tpot_ms, "queue": record.queue_ms}
            for measure, value_ms in times.items():
                if value_ms is not None:
                    self._fire(measure, name, value_ms)
            for gap_ms in record.itl_ms:
                self._fire("gap", name, gap_ms)
        if record.late_ms is not None:
            self._fire("late", name, record.late_ms)

    def _fire(self, measure: str, name: str, value_ms: float | None, failure: Exception | None = None) -> None:
        self.fire(request_type=measure, name=name, response_time=value_ms, response_length=0, exception=failure, context={})
