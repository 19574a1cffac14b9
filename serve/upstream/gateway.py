"""A router that also knows the models of upstreams: what is in flight to them counts, and they are named with the others."""

from app.errors import LitmusError, UnknownModel
from app.settings import Settings
from serve.upstream.models import Upstreams
from serve.workers.fleet import Fleet
from serve.workers.router import Router


class Gateway(Router):
    """`models` names the model of each replica, as for a router; none where upstreams have all models."""

    def __init__(self, models: list[str], settings: Settings) -> None:
        super().__init__(models, settings.queue)
        self.upstreams = Upstreams(settings, self.observer)

    @property
    def in_flight(self) -> int:
        return super().in_flight + self.upstreams.in_flight

    @property
    def capacity(self) -> int:
        return super().capacity + self.upstreams.capacity

    @property
    def alive(self) -> dict[str, bool]:
        return super().alive | self.upstreams.alive

    def fail_all(self, error: LitmusError) -> None:
        super().fail_all(error)
        self.upstreams.fail_all(error)

    def _fleet(self, model: str | None) -> Fleet:
        name = self.upstreams.default if model is None else model
        if self.upstreams.pool(name) is not None:
            raise UnknownModel(f"'{name}' is not loaded here: an upstream answers for it, which has no such route", param="model")
        try:
            return super()._fleet(name)
        except UnknownModel:
            names = ", ".join(f"'{served}'" for served in self.alive)
            raise UnknownModel(f"model '{name}' is not served here; this server has {names}", param="model") from None
