"""One load test under way: which stage runs, what becomes of each request, and what Locust is told of it.

Locust's table gets a row for each measure: its type is the measure, its name who asked for what. Only whole requests (e2e) are
requests there; the others are times within them, and those that were shed or left are neither success nor failure.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loadtest.load.monitor import Watch
from loadtest.load.options import Load
from loadtest.load.probe import Abilities
from loadtest.load.stages import Stage
from loadtest.load.transport import Host
from loadtest.record import Kind, Record, Start
from loadtest.run import Run

KEEP_S = 3.0  # a record waits so long for the server's word on its wait in the queue


class RequestFailed(Exception):
    """What Locust shows in its list of failures."""


@dataclass(slots=True)
class Push:
    """`fire` is Locust's event of a request. `waits_ms` is what the server told of waits, by the id of the answer."""

    load: Load
    host: Host
    abilities: Abilities
    run: Run
    fire: Callable[..., None]
    began_s: float
    stage: Stage
    stage_s: float
    watch: Watch | None = None
    records: list[Record] = field(default_factory=list)
    pending: list[tuple[float, Record]] = field(default_factory=list)
    over: bool = False
    closed: bool = False

    @property
    def plan(self) -> list[Stage]:
        """A load without stages has one, with as many users as were started."""
        return list(self.load.plan) if self.load.plan[0].seconds is not None else [self.stage]

    def enter(self, stage: Stage) -> None:
        self.stage, self.stage_s = stage, time.perf_counter()

    def start(self, kind: Kind, planned_s: float | None, traits: Mapping[str, Any]) -> Start:
        """To be called when the request leaves. In an open loop its times count from when it was planned to."""
        now_s, stage = time.perf_counter(), self.stage
        at_s = now_s if planned_s is None else planned_s
        more: dict[str, Any] = {"stage": stage.number, "warm_up": stage.warming(at_s - self.stage_s)}
        if stage.opened:
            more |= {"rate": stage.level, "late_ms": None if planned_s is None else round(1000 * (now_s - planned_s), 3)}
        return Start(kind, 0 if stage.opened else int(stage.level), at_s, self.began_s, {**traits, **more})

    def settle(self, record: Record) -> None:
        """A record is written when all is known of it. One kept back is written with the next sample of the server, or at the end."""
        if "/slots" in self.abilities.sources and record.request is not None and record.queue_ms is None:
            self.pending.append((time.perf_counter(), record))
        else:
            self._keep(record)

    def listen(self, last: bool = False) -> None:
        self.hear({} if self.watch is None else self.watch.sample(), last)

    def close(self) -> None:
        self.listen(last=True)
        self.closed = True
        self.run.close()
        if self.watch is not None:
            self.watch.run.close()

    def hear(self, waits_ms: Mapping[str, float], last: bool = False) -> None:
        """What the server told of waits goes to the records that are kept back for it; old ones wait no longer."""
        now_s, pending = time.perf_counter(), self.pending
        self.pending = []
        for since_s, record in pending:
            known = waits_ms.get(record.request or "")
            if known is not None or last or now_s - since_s > KEEP_S:
                self._keep(replace(record, queue_ms=known))
            else:
                self.pending.append((since_s, record))

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        self.run.add(record)
        if not record.warm_up:
            self._tell(record)

    def _tell(self, record: Record) -> None:
        who = record.kind if record.user == record.kind else f"{record.kind} ({record.user})"
        staged = len(self.load.plan) > 1 or self.load.opened
        name = f"{who}, {self.plan[record.stage].name}" if staged else who
        if record.outcome in ("shed", "left"):
            self._event(record.outcome, name, record.e2e_ms)
        else:
            failure = RequestFailed(record.reason) if record.outcome == "failed" else None
            self._event("e2e", name, None if failure else record.e2e_ms, failure)
        if record.outcome in ("ok", "left"):
            times = {"TTFT": record.ttft_ms, "TPOT": record.tpot_ms, "queue": record.queue_ms}
            for measure, value in times.items():
                if value is not None:
                    self._event(measure, name, value)
            for gap in record.itl_ms:
                self._event("gap", name, gap)
        if record.late_ms is not None:
            self._event("late", name, record.late_ms)

    def _event(self, measure: str, name: str, value_ms: float | None, failure: Exception | None = None) -> None:
        self.fire(request_type=measure, name=name, response_time=value_ms, response_length=0, exception=failure, context={})
