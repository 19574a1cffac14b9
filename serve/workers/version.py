"""One version of a model: its settings, its replicas, and how it stands."""

import contextlib
import time
from dataclasses import dataclass, field

import psutil

from app.engine.facts import Facts
from app.schemas import AdminModel, AdminStatus
from app.settings import ModelSettings
from serve.workers.fleet import Fleet

NEARLY = 0.99  # of a load that takes longer than the last time
AGAIN = "its process died, and another one is loading the model"


@dataclass(slots=True, eq=False)
class Version:
    settings: ModelSettings
    fleet: Fleet
    status: AdminStatus = "served"  # as far as it was told; a version without a living worker is none that is served
    message: str | None = None
    since_s: float = field(default_factory=time.monotonic)  # when it began to load
    takes_s: float | None = None  # how long it took to load
    deleted: bool = False  # an administrator unloaded it
    wanted: bool = False  # a request waits for it to be loaded again

    @property
    def loaded(self) -> float | None:
        """The share of its loading that is done, by the time that it took before."""
        status = self.shown_status
        if status != "loading":
            return float(status in {"served", "draining"})
        return None if self.takes_s is None else min(NEARLY, (time.monotonic() - self.since_s) / self.takes_s)

    @property
    def shown_status(self) -> AdminStatus:
        return "loading" if self.status == "served" and not self.fleet.alive else self.status

    @property
    def facts(self) -> Facts | None:
        """As its workers last reported them; None before the first has loaded the model."""
        return next((replica.facts for replica in self.fleet.replicas if replica.facts is not None), None)

    @property
    def revision(self) -> str | None:
        return None if self.facts is None else self.facts.revision

    def is_idle(self, now_s: float) -> bool:
        """Whether it is to be unloaded."""
        limit_s, fleet = self.settings.idle_unload_s, self.fleet
        if limit_s is None or self.status != "served":
            return False
        if fleet.load or fleet.pins or not fleet.alive:
            fleet.used_s = now_s
        return now_s - fleet.used_s > limit_s

    def begin(self) -> None:
        self.status, self.message, self.since_s = "loading", None, time.monotonic()

    def serve(self) -> None:
        self.status, self.takes_s = "served", time.monotonic() - self.since_s

    @property
    def _message(self) -> str | None:
        return "; ".join([*([] if self.message is None else [self.message]), *self.fleet.problems.values()]) or None

    def state(self) -> AdminModel:
        """As GET /admin/models shows it."""
        shown = self.shown_status
        return AdminModel(
            id=self.fleet.model,
            path=self.settings.path,
            revision=self.revision,
            status=shown,
            message=AGAIN if shown != self.status and self.facts is not None else self._message,
            loaded=self.loaded,
            in_flight=self.fleet.load,
            bytes=self._resident_bytes(),
        )

    def _resident_bytes(self) -> int | None:
        """What its workers take of the machine's memory."""
        total = 0
        for replica in self.fleet.alive:
            with contextlib.suppress(psutil.Error):
                assert replica.worker is not None
                total += replica.worker.memory_info().rss
        return total or None
