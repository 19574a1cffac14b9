"""The LoRA adapters of a running server: loads them into the workers of their base, at any time and again into each worker that starts
later, and unloads them.

Lives in the API process. Knows no wire format.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from pathlib import Path

from app.engine.facts import AdapterFacts
from app.errors import Conflict, InvalidRequest, LitmusError, NotFound, NotReady, SetupError, UnknownModel
from app.models.names import MODEL_NAME
from app.scoring.detector import UNCALIBRATED, Detector, detector_of
from app.settings import ModelSettings, Settings
from serve.admission.paths import ModelPaths
from serve.workers.fleet import Fleet, Replica
from serve.workers.messages import AdapterRead, LoadAdapter, Ready, UnloadAdapter
from serve.workers.register import Entry, Register
from serve.workers.router import Router

log = logging.getLogger(__name__)

LOAD_S = 120.0  # that workers have to read an adapter; after a start, /ready waits no longer for one
DRAIN_POLL_S = 0.05
FILE = "adapters.json"  # in the folder of the jobs
NOT_LOADED = "adapter '{}' could not be loaded again and is not served at the moment; an administrator sees why at GET /admin/models"
BEING_LOADED = "adapter '{}' is being loaded; GET /ready says when it is served"
Loading = asyncio.Future[AdapterFacts]


class Shelf:
    """`keep` is for what makes adapters here, such as fine-tuning; `load` and `unload` are for those who administer the server.

    `detectors` are what the routes use of each model: kept in step with what is served. `bases` says how a model is served, by its name.
    """

    def __init__(
        self,
        router: Router,
        settings: Settings,
        detectors: MutableMapping[str, Detector],
        bases: Callable[[str], ModelSettings | None],
    ) -> None:
        self._router, self._detectors = router, detectors
        self._paths, self._drain_s = ModelPaths(settings), settings.server.drain_s
        self._bases = bases
        self._register = Register(Path(settings.jobs.folder) / FILE)
        self._entries = {name: entry for name, entry in self._register.read().items() if name not in {*router.statuses, *router.aliases}}
        for base, model in ((model.served_name, model) for model in settings.loaded.values()):
            self._entries |= {name: Entry(path=path, model=base) for name, path in model.adapters.items()}
        self._loading: dict[tuple[int, str], Loading] = {}  # by the replica's number and the adapter's name
        self._changing: dict[
            str, list[Callable[[], None]]
        ] = {}  # by the name of an adapter that somebody loads or unloads: what to do after that
        for name, entry in self._entries.items():
            self._await(name, entry.model)
        router.adapted, router.installed = self.hear, self._publish

    async def keep(self, name: str, path: str, model: str) -> None:
        """Serve the adapter in the folder `path` as `name`, on the model `model`: from now on, and after each restart of the server, until
        `unload`. If the model is not loaded or not served at the moment, the adapter is loaded with it.

        Raises `InvalidRequest` for a name that is taken, and for an adapter that cannot be served; its message says why. Raises
        `StorageFull` where it cannot be remembered; then it is not served, so that it can be kept again.
        """
        with self._change(name):
            entry = Entry(path=path, model=self._base_name_of(model))
            self._register.write(name, entry)
            try:
                await self._load(name, entry)
            except InvalidRequest:
                self._register.write(name, None)
                raise

    async def load(self, name: str, path: str, model: str | None = None) -> None:
        """Serve an adapter until the server ends; `model` is the default one for None. Raises as `keep` does, and `Forbidden` for a path
        that is not allowed, and `NotReady` for a model that is not loaded.
        """
        with self._change(name):
            self._paths.check_adapter(path)
            fleet = self._base_of(model)
            if not fleet.alive:
                raise NotReady(f"the model '{fleet.model}' is not loaded at the moment, so no adapter can be added to it")
            await self._load(name, Entry(path=path, model=fleet.model))

    async def unload(self, name: str) -> None:
        """Give the adapter no new requests, wait until it has finished those that it has, for as long as SIGTERM would, and forget it.

        Raises `NotFound` for a name that is none of an adapter.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise NotFound(f"The lora adapter '{name}' cannot be found.", param="lora_name", code="adapter_not_found")
        with self._change_alone(name):
            self._register.write(name, None)
            self._withdraw(name, UnknownModel(f"adapter '{name}' was unloaded and is not served at the moment", param="model"))
            del self._entries[name]
            deadline_s = time.monotonic() + self._drain_s
            while self._is_used(name, entry.model) and time.monotonic() < deadline_s:
                await asyncio.sleep(DRAIN_POLL_S)
            self._drop(name, entry.model)
            log.info("adapter", extra={"fields": {"adapter": name, "model": entry.model, "unloaded": True}})

    def inside(self, folder: Path) -> list[str]:
        """The names of the adapters that lie in this folder."""
        return [name for name, entry in self._entries.items() if Path(entry.path).resolve().is_relative_to(folder.resolve())]

    async def furnish(self, fleet: Fleet) -> None:
        """Wait until a model's adapters are loaded into a new version of it; `Fleet.problems` says why some could not be."""
        numbers = {replica.number for replica in fleet.replicas}
        if pending := [loading for (number, _), loading in self._loading.items() if number in numbers]:
            await asyncio.wait(pending, timeout=LOAD_S)

    def hear(self, message: Ready | AdapterRead) -> None:
        """A worker is there, perhaps without some of its adapters; or it has read one."""
        if isinstance(message, AdapterRead):
            self._note(message)
            return
        fleet, replica = self._place_of(message.worker)
        for facts in message.facts.adapters:
            if facts.name in self._entries:
                self._serve(facts, fleet)
        there = {facts.name for facts in message.facts.adapters}
        for name, entry in self._entries.items():
            if entry.model == fleet.model and name not in there:
                if name in self._router.awaited:
                    self._router.absent[name] = NotReady(BEING_LOADED.format(name))
                    asyncio.get_running_loop().call_later(LOAD_S, self._lose_patience, name)
                self._order(replica, name, entry).add_done_callback(partial(self._settle, fleet, name))

    def _await(self, name: str, model: str) -> None:
        """Say what requests get until the base is loaded."""
        self._router.awaited[name] = model
        self._router.absent[name] = (
            NotReady(f"adapter '{name}' is loaded with its base '{model}', which is not loaded yet; GET /v1/models lists what is served")
            if model in self._router.models
            else UnknownModel(
                f"adapter '{name}' is not served, as its base '{model}' is no model of this server; an administrator loads that by POST "
                f"/admin/models/{model}, or names it in the settings",
                param="model",
            )
        )

    def _lose_patience(self, name: str) -> None:
        if self._router.awaited.pop(name, None) is not None:
            log.error("adapter", extra={"fields": {"adapter": name, "failed": f"no worker has read it within {LOAD_S:g} s"}})

    def _base_of(self, model: str | None) -> Fleet:
        """Raises `UnknownModel` for a model that is not served, and `InvalidRequest` for an adapter."""
        fleet = self._router.fleet(model)
        if model in self._router.adapters:
            raise InvalidRequest(f"'{model}' is an adapter itself; its base is '{fleet.model}'", param="model")
        return fleet

    def _base_name_of(self, model: str) -> str:
        """The own name of a base, which need not be served at the moment. Raises `InvalidRequest` for an adapter."""
        try:
            return self._base_of(model).model
        except (UnknownModel, NotReady):
            return self._router.name_of(model)

    def _place_of(self, number: int) -> tuple[Fleet, Replica]:
        return next((fleet, replica) for fleet in self._router.fleets for replica in fleet.replicas if replica.number == number)

    def _order(self, replica: Replica, name: str, entry: Entry) -> Loading:
        earlier = self._loading.get((replica.number, name))  # the worker died while it read the adapter
        loading = earlier or asyncio.get_running_loop().create_future()
        self._loading[replica.number, name] = loading
        replica.send(LoadAdapter(name, entry.path))
        return loading

    def _note(self, message: AdapterRead) -> None:
        workers = [replica.worker for replica in self._router.replicas if replica.number == message.worker]
        if not any(worker is not None and worker.pid == message.pid for worker in workers):  # it died, or its version is gone
            return
        loading = self._loading.pop((message.worker, message.name), None)
        if loading is None or loading.done():
            return
        if message.facts is None:
            loading.set_exception(SetupError(message.reason))
        else:
            loading.set_result(message.facts)

    async def _load(self, name: str, entry: Entry) -> None:
        """Into the workers that there are; those that start meanwhile or later get it from `hear`."""
        fleets = [self._router.fleet(entry.model)] if entry.model in self._router.models else []  # none: its base is not served
        self._entries[name] = entry
        try:
            async with asyncio.timeout(LOAD_S):
                found = await asyncio.gather(*(self._order(replica, name, entry) for fleet in fleets for replica in fleet.alive))
        except (SetupError, TimeoutError) as error:
            del self._entries[name]
            self._drop(name, entry.model)
            reason = error.message if isinstance(error, SetupError) else f"the workers did not read it within {LOAD_S:g} s"
            raise InvalidRequest(reason, param="lora_path", code="adapter_not_loaded") from error
        if not found:
            self._await(name, entry.model)
        for fleet in fleets:
            for facts in found:
                self._serve(facts, fleet)
        log.info("adapter", extra={"fields": {"adapter": name, "model": entry.model, "loaded": bool(found)}})

    def _serve(self, facts: AdapterFacts, fleet: Fleet) -> None:
        fleet.adapters[facts.name] = facts
        fleet.problems.pop(facts.name, None)
        if fleet.standing == "served":
            self._offer(facts, fleet)

    def _publish(self, fleet: Fleet) -> None:
        """A version takes the new jobs of its model: from now on an adapter is served, or is not, as this one could read it."""
        for name in self._entries:
            if name in fleet.adapters:
                self._offer(fleet.adapters[name], fleet)
            elif name in fleet.problems:
                self._withdraw(name, NotReady(NOT_LOADED.format(name), code="adapter_not_loaded"))

    def _offer(self, facts: AdapterFacts, fleet: Fleet) -> None:
        self._router.adapters[facts.name] = fleet.model
        self._router.absent.pop(facts.name, None)
        self._router.awaited.pop(facts.name, None)
        self._detectors[facts.name] = self._detector_of(facts, fleet.model)

    def _settle(self, fleet: Fleet, name: str, loading: Loading) -> None:
        """What comes of loading an adapter into a worker that has just started. A version that takes no jobs keeps it to itself."""
        if name in self._changing:
            self._changing[name].append(partial(self._settle, fleet, name, loading))
            return
        if loading.cancelled() or name not in self._entries:
            return
        error = loading.exception()
        if error is None:
            self._serve(loading.result(), fleet)
        elif isinstance(error, SetupError):
            log.error("adapter", extra={"fields": {"adapter": name, "model": fleet.model, "failed": error.message}})
            fleet.adapters.pop(name, None)
            fleet.problems[name] = error.message
            if fleet.standing == "served":
                self._withdraw(name, NotReady(NOT_LOADED.format(name), code="adapter_not_loaded"))

    def _withdraw(self, name: str, error: LitmusError) -> None:
        self._router.adapters.pop(name, None)
        self._router.absent[name] = error
        self._router.awaited.pop(name, None)
        self._detectors.pop(name, None)

    def _drop(self, name: str, model: str) -> None:
        """Let every worker of the model forget the adapter."""
        self._router.awaited.pop(name, None)
        for fleet in [fleet for fleet in self._router.fleets if fleet.model == model]:
            fleet.adapters.pop(name, None)
            fleet.problems.pop(name, None)
            for replica in fleet.alive:
                if loading := self._loading.pop((replica.number, name), None):
                    loading.cancel()  # nobody waits for it in vain
                with contextlib.suppress(OSError, EOFError):  # the process that holds the queue is gone, and the worker with it
                    replica.send(UnloadAdapter(name))

    def _is_used(self, name: str, model: str) -> bool:
        """Whether a request has a job of the adapter, or prepares one."""
        fleets = [fleet for fleet in self._router.fleets if fleet.model == model]
        flying = any(flight.job.adapter == name for fleet in fleets for flight in self._router.unfinished(fleet))
        return flying or any(getattr(getattr(pin, "facts", None), "adapter", None) == name for fleet in fleets for pin in fleet.pins)

    def _detector_of(self, facts: AdapterFacts, model: str) -> Detector:
        """The base is the observer; a calibration of the pair may lie in the adapter's folder."""
        base = self._bases(model)
        try:
            return detector_of(ModelSettings(path=facts.path, observer=model if base is None else base.path))
        except SetupError as error:
            log.error("adapter '%s': %s; its scores have no verdicts", facts.name, error.message)
            return UNCALIBRATED

    @contextlib.contextmanager
    def _change(self, name: str) -> Iterator[None]:
        """Raises `InvalidRequest` for a name that cannot be had."""
        if re.fullmatch(MODEL_NAME, name) is None:
            raise InvalidRequest(f"lora_name has to match {MODEL_NAME}", param="lora_name")
        if name in self._router.adapters:
            raise InvalidRequest(f"The lora adapter '{name}' has already been loaded.", param="lora_name", code="adapter_exists")
        if name in self._router.statuses:
            raise InvalidRequest(f"'{name}' is a model of this server; choose another name for the adapter", param="lora_name")
        if name in self._router.aliases:
            raise InvalidRequest(
                f"'{name}' is another name of '{self._router.aliases[name]}'; choose another one for the adapter", param="lora_name"
            )
        with self._change_alone(name):
            yield

    @contextlib.contextmanager
    def _change_alone(self, name: str) -> Iterator[None]:
        """Raises `NotReady` while the server shuts down, and `Conflict` while somebody else changes the adapter."""
        if self._router.draining:
            raise NotReady("the server is shutting down")
        if name in self._changing:
            raise Conflict(f"adapter '{name}' is being loaded or unloaded at the moment", param="lora_name", code="adapter_busy")
        self._changing[name] = []
        try:
            yield
        finally:
            for settle in self._changing.pop(name):
                settle()
