"""Which models are served here, in which versions, under which names. Sends no job.

Of each model one version takes new jobs; beside it, another one may be loading or finishing what it has.
"""

import re
from collections.abc import Mapping, Sequence

from app.engine.facts import Facts
from app.errors import LitmusError, UnknownModel
from app.schemas.state import ModelStatus
from app.settings import QueueSettings
from serve.workers.fleet import Fleet, Replica

CHECKPOINT = re.compile(r"ft:.*:ckpt-step-(\d+)")  # as a fine-tuning job calls them
TUNED = "ft:"  # begins the names of what fine-tuning has made
ANY = "*"  # the alias for every name that no model has


class Models:
    """`models` names the model of each replica, the default model first."""

    def __init__(self, models: Sequence[str], queue_settings: QueueSettings) -> None:
        self.replicas = [Replica(number, model) for number, model in enumerate(models)]
        self.queue_settings = queue_settings
        self.draining = False
        self.default = next(iter(models), "")
        self.absent: dict[str, LitmusError] = {}  # what is told of a model that is not served, but could be
        self.adapters: dict[str, str] = {}  # names of adapters, each with that of its base
        self.awaited: dict[str, str] = {}  # names of adapters that no worker has tried to read yet, each with that of its base
        self.aliases: Mapping[str, str] = {}  # further names of models, each with the model's own
        self._beside: list[Fleet] = []  # versions that get no new jobs
        self._fleets = {
            model: Fleet(model, [replica for replica in self.replicas if replica.model == model], queue_settings)
            for model in dict.fromkeys(models)
        }

    @property
    def capacity(self) -> int:
        """Jobs of all models that may be in flight."""
        return sum(fleet.capacity for fleet in self._fleets.values()) + sum(fleet.load for fleet in self._beside)

    @property
    def models(self) -> list[str]:
        """The names of all models, the default one first."""
        return sorted(self._fleets, key=lambda model: model != self.default)

    @property
    def statuses(self) -> Mapping[str, ModelStatus]:
        return {model: self._fleets[model].status for model in self.models}

    @property
    def ready(self) -> bool:
        """Whether every model takes jobs: it is served, with all adapters that it can read, or loaded on demand."""
        served = all(fleet.alive or fleet.wake is not None for fleet in self._fleets.values())
        return served and not self.awaits_adapters and not self.draining

    @property
    def awaits_adapters(self) -> bool:
        """Whether workers are still to try adapters. A model that is loaded on demand tries them then."""
        return any(base in self._fleets and self._fleets[base].wake is None for base in self.awaited.values())

    def facts(self, model: str | None = None) -> Facts:
        """The facts of a model or an adapter, of the default model for None. Raises `UnknownModel`, and `NotReady` until it has been loaded
        once.
        """
        name = self.name_of(model)
        return self.fleet(name).facts_of(name if name in self.adapters else None)

    def name_of(self, model: str | None) -> str:
        """The own name of a model or adapter by any of its names, that of the default model for None or "", as some clients leave it out;
        a name that nobody has as it is.

        A fine-tuned model that is gone is answered by no other one, whatever the aliases say.
        """
        if not model:
            return self.default
        if model in self.statuses or model in self.adapters or model in self.absent:
            return model
        return self.aliases.get(model) or (model if model.startswith(TUNED) else self.aliases.get(ANY, model))

    def base_of(self, model: str | None) -> str:
        """The own name of a model, of its base for an adapter, by any of its names."""
        own = self.name_of(model)
        return self.adapters.get(own, own)

    def aliases_of(self, model: str) -> list[str]:
        return [alias for alias, name in self.aliases.items() if name == model]

    def loaded_facts(self) -> list[Facts]:
        """The facts of every model that has been loaded once."""
        fleets = [self._fleets[model] for model in self.models]
        return [fleet.facts for fleet in fleets if any(replica.facts is not None for replica in fleet.replicas)]

    @property
    def fleets(self) -> list[Fleet]:
        """Every version of every model, those that take new jobs first."""
        return [*self._fleets.values(), *self._beside]

    def adapted_facts(self) -> list[Facts]:
        """The facts of the adapters that these models serve."""
        loaded = {facts.name for facts in self.loaded_facts()}
        fleets = [self._fleets[base] for base in self.models if base in loaded]
        return [fleet.facts_of(name) for fleet in fleets for name in fleet.adapters if self.adapters.get(name) == fleet.model]

    def fleet(self, model: str | None) -> Fleet:
        """The version of a model, or of an adapter's base, that takes new jobs. Raises `UnknownModel`, or what `absent` has for it."""
        name = self.base_of(model)
        if name not in self._fleets:
            if name in self.absent:
                raise self.absent[name]
            if checkpoint := CHECKPOINT.fullmatch(name):
                raise UnknownModel(
                    f"model '{name}' is a checkpoint, which is not served by itself: an administrator loads it by POST "
                    f"/v1/load_lora_adapter from tuning/JOB/checkpoints/step-{checkpoint[1]} in jobs.folder, where JOB is its "
                    "fine_tuning_job_id",
                    param="model",
                )
            names = ", ".join(f"'{served}'" for served in (*self.statuses, *self.adapters))
            raise UnknownModel(f"model '{name}' is not served here; this server has {names}", param="model")
        return self._fleets[name]

    def fleet_of(self, replica: Replica) -> Fleet:
        return next(fleet for fleet in self.fleets if replica in fleet.replicas)

    def check_job_count(self, count: int, model: str | None = None, param: str | None = None) -> None:
        """Raises `InvalidRequest`, naming `param`, if one request may not have that many jobs. Cheap: call it before the jobs are made."""
        self.fleet(model).check_job_count(count, param)

    def add(self, fleet: Fleet) -> None:
        """Know the replicas of a version that is to be loaded; it gets no jobs yet."""
        fleet.standing = "next"
        self._beside.append(fleet)
        self.replicas += fleet.replicas

    def install(self, fleet: Fleet) -> Fleet | None:
        """Let a version that was added take the new jobs of its model. Returns the one that took them until now."""
        self._beside.remove(fleet)
        if old := self._fleets.get(fleet.model):
            old.standing = "previous"
            self._beside.append(old)
        fleet.standing = "served"
        self._fleets[fleet.model] = fleet
        self.absent.pop(fleet.model, None)
        return old

    def withdraw(self, model: str) -> Fleet:
        """Give the version of a model no new jobs; it finishes what it has."""
        fleet = self._fleets.pop(model)
        fleet.standing = "previous"
        self._beside.append(fleet)
        return fleet

    def remove(self, fleet: Fleet) -> None:
        self._beside.remove(fleet)
        self.replicas = [replica for replica in self.replicas if replica not in fleet.replicas]
