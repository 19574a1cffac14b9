"""A router that also knows the models of upstreams: what is in flight to them counts, and they are named with the others."""

from collections.abc import Mapping

from app.errors import LitmusError, UnknownModel
from app.schemas.state import ModelStatus
from app.settings import Settings
from serve.upstream.models import Upstreams
from serve.upstream.pool import Pool
from serve.workers.fleet import Fleet
from serve.workers.router import Router


class Gateway(Router):
    """`models` names the model of each replica, as for a router; none where upstreams have all models."""

    def __init__(self, models: list[str], settings: Settings) -> None:
        super().__init__(models, settings.queue)
        self.upstreams = Upstreams(settings, self.observer)
        self.default, self.aliases = settings.model.served_name, settings.aliases

    @property
    def in_flight(self) -> int:
        return super().in_flight + self.upstreams.in_flight

    @property
    def capacity(self) -> int:
        return super().capacity + self.upstreams.capacity

    @property
    def statuses(self) -> Mapping[str, ModelStatus]:
        upstreams: dict[str, ModelStatus] = {model: "ready" if alive else "unreachable" for model, alive in self.upstreams.alive.items()}
        return {**super().statuses, **upstreams}

    @property
    def ready(self) -> bool:
        return super().ready and all(self.upstreams.alive.values())

    def fail_all(self, error: LitmusError) -> None:
        super().fail_all(error)
        self.upstreams.fail_all(error)

    def pool(self, model: object) -> Pool | None:
        """The upstreams of that model, of the default one for None or ""; None for a model that is loaded here."""
        return self.upstreams.pool(self.name_of(model)) if model is None or isinstance(model, str) else None

    def fleet(self, model: str | None) -> Fleet:
        name = self.name_of(model)
        if self.pool(name) is not None:
            raise UnknownModel(f"'{name}' is not loaded here: an upstream answers for it, which has no such route", param="model")
        return super().fleet(name)
