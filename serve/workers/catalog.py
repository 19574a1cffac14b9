"""The models of a running server: loads versions of them, swaps one for another, unloads, and loads on demand.

Lives in the API process. Its orders go to the main process, which has the worker processes (`serve.workers.host`). Knows no wire format.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from app.errors import Conflict, LitmusError, NotReady, SetupError, UnknownModel
from app.scoring.detector import Detector
from app.settings import ModelSettings, Settings
from app.tokenizer import Tokenizer
from serve.admission.paths import ModelPaths
from serve.workers.candidate import assignments, check, read, same_tokens
from serve.workers.fleet import Fleet, Replica
from serve.workers.handover import move_on, release, tell_loading
from serve.workers.loads import Loads
from serve.workers.messages import Order
from serve.workers.router import Router
from serve.workers.version import Version

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.5  # between two looks for idle models, and between two comments to those who wait for one
DRAIN_POLL_S = 0.05
DELETED = "it was unloaded by DELETE /admin/models; POST /admin/models loads it again"
REPLACED = "the model was replaced before the answer was complete, and its new version cannot go on with it; send the request again"
GONE = "the model was unloaded before the answer was complete"
NOT_LOADED = "the model could not be loaded; an administrator sees why at GET /admin/models"


class Catalog:
    """`_served` has, by name, the version that takes requests, or last took them; `_beside` the one that loads, drains or has failed.

    `tokenizers` and `detectors` are what the routes use of each model: kept in step with what is served.
    """

    def __init__(
        self,
        router: Router,
        settings: Settings,
        order: Callable[[Order], None],
        tokenizers: MutableMapping[str, Tokenizer],
        detectors: MutableMapping[str, Detector],
    ) -> None:
        self._router, self._settings = router, settings
        self._tokenizers, self._detectors = tokenizers, detectors
        self._paths = ModelPaths(settings)
        self._loads = Loads(order)
        self._served = {model.served_name: Version(model, router.fleet(model.served_name)) for model in settings.loaded.values()}
        self._beside: dict[str, Version] = {}
        self._asked: set[str] = set()  # names of the models that a request to load or unload is being checked for
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by name: what is being done about a model
        self._pool = ThreadPoolExecutor(4, "versions")  # one may wait for a download
        self._next = len(router.replicas)  # number of the next replica
        router.heard = self._loads.hear
        self.furnish: Callable[[Fleet], Awaitable[None]] | None = None  # loads its adapters into a version, as far as they can be

    def versions(self) -> Iterator[Version]:
        for name in dict.fromkeys((*self._served, *self._beside)):
            yield from (of[name] for of in (self._served, self._beside) if name in of)

    def settings_of(self, name: str) -> ModelSettings | None:
        """How a model is served, by any of its names; None for one that is not."""
        version = self._served.get(self._router.name_of(name))
        return None if version is None or version.deleted else version.settings

    def paths(self) -> dict[str, str]:
        """Of the models that are served, each by all its names."""
        served = {name: version.settings.path for name, version in self._served.items() if not version.deleted}
        return served | {alias: served[name] for alias, name in self._router.aliases.items() if name in served}

    async def load(self, name: str, settings: Callable[[ModelSettings | None], ModelSettings]) -> Version:
        """Begin to load a version of a model; `settings` makes its settings from those of the present one.

        Raises `Conflict` while something else is done about the model, and where there is no memory for it beside the present version,
        and `Forbidden` for a path that may not be loaded.
        """
        with self._alone(name):
            present = self._served.get(name)
            wanted = settings(None if present is None else present.settings)
            await self._in_pool(check, wanted, self._paths, self._on_cuda(wanted))
            version = Version(wanted, self._new_fleet(name, wanted))
            version.begin()
            version.takes_s = None if present is None or present.settings != wanted else present.takes_s
            self._beside[name] = version
            self._tell_absent(name)
            self._run(name, self._swap(name, version))
        return version

    def unload(self, name: str, default: str | None = None) -> Version:
        """Begin to unload a model: it gets nothing new, and what it has is finished. `default` names the default model from now on.

        Raises `UnknownModel`, and `Conflict` for the default model without a successor.
        """
        with self._alone(name):
            version, failed = self._served.get(name), self._beside.get(name)
            if version is None and failed is None:
                raise UnknownModel(f"model '{name}' is not known here; GET /admin/models lists the models", param="name")
            if version is None or version.deleted:
                del (self._beside if failed is not None else self._served)[name]
                self._tell_absent(name)
                return failed or version  # type: ignore[return-value]
            self._choose_default(name, default)
            self._beside.pop(name, None)
            version.deleted, version.status = True, "draining"
            self._router.withdraw(name)
            self._tell_absent(name)
            del self._tokenizers[name], self._detectors[name]
            self._run(name, self._retire(version))
        return version

    async def watch(self) -> None:
        """Run as long as the server: unload what is idle, and tell those who wait how far their model is."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            for name, version in self._served.items():
                if version.takes_s is None and version.fleet.alive:
                    version.serve()
                if version.fleet.loading:
                    tell_loading(self._router, version.fleet, version.loaded)
                elif name not in self._tasks and name not in self._asked and version.is_idle(time.monotonic()):
                    self._fall_asleep(name, version)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Raises `NotReady` while the server shuts down, and `Conflict` while something is done about the model."""
        if self._router.draining:
            raise NotReady("the server is shutting down")
        if name in self._router.statuses and name not in self._router.models:
            raise Conflict(f"an upstream answers for '{name}', so no version of it is loaded here; choose another name", param="name")
        if name in self._router.adapters:
            raise Conflict(f"'{name}' is an adapter of '{self._router.adapters[name]}'; choose another name for the model", param="name")
        if name in self._router.aliases:
            raise Conflict(
                f"'{name}' is another name of '{self._router.aliases[name]}' (aliases in the settings); write that", param="name"
            )
        if name in self._asked or name in self._tasks:
            raise Conflict(
                f"a version of '{name}' is being loaded or unloaded at the moment; GET /admin/models says how far it is", code="model_busy"
            )
        self._asked.add(name)
        try:
            yield
        finally:
            self._asked.discard(name)
            self._wake_if_wanted(name)

    def _on_cuda(self, settings: ModelSettings) -> bool:
        """There the worker's own ledger decides: only it sees the device."""
        devices = {facts.device for facts in self._router.loaded_facts()}
        return settings.device.startswith("cuda") or (settings.device == "auto" and any(device.startswith("cuda") for device in devices))

    def _new_fleet(self, name: str, settings: ModelSettings) -> Fleet:
        numbers = range(self._next, self._next + settings.replicas)
        self._next += settings.replicas
        return Fleet(name, [Replica(number, name) for number in numbers], self._settings.queue)

    async def _swap(self, name: str, version: Version) -> None:
        self._router.add(version.fleet)
        old = self._served.get(name)
        try:
            tokenizer, detector = await self._in_pool(read, version.settings)
            await self._start(version)
        except SetupError as error:
            await self._give_up(name, version, error)
            return
        served = old if old is not None and not old.deleted else None
        same = served is not None and await self._in_pool(same_tokens, tokenizer, self._tokenizers[name])
        self._served[name], self._tokenizers[name], self._detectors[name] = version, tokenizer, detector
        self._beside.pop(name, None)
        self._router.install(version.fleet)
        version.serve()
        log.info("model", extra={"fields": {"model": name, "loaded_s": round(version.takes_s or 0, 1), "revision": version.revision}})
        if served is not None:
            self._beside[name] = served
            await self._retire(served, version if same else None, NotReady(REPLACED, code="model_replaced"))
            del self._beside[name]

    async def _give_up(self, name: str, version: Version, error: SetupError) -> None:
        await self._end(version)
        self._router.remove(version.fleet)
        version.status, version.message = "failed", error.message
        self._tell_absent(name)
        log.error("model", extra={"fields": {"model": name, "failed": error.message}})

    async def _retire(self, old: Version, new: Version | None = None, error: LitmusError | None = None) -> None:
        """Let a version that gets no new jobs finish those that it has, at most for the time that SIGTERM gives, and end it."""
        old.status, deadline_s = "draining", time.monotonic() + self._settings.server.drain_s
        while (old.fleet.load or old.fleet.pins) and old.fleet.wake is None and time.monotonic() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
        old.fleet.wake = None
        move_on(self._router, old.fleet, None if new is None else new.fleet, error or NotReady(GONE, code="model_unloaded"))
        await self._end(old)
        self._router.remove(old.fleet)
        old.status, old.message = "unloaded", DELETED

    def _fall_asleep(self, name: str, version: Version) -> None:
        version.status, version.message = "draining", f"no request for {version.settings.idle_unload_s:g} s; the next one loads it again"
        version.fleet.wake = partial(self._wake, name)
        release(self._router, version.fleet)  # now, as the next turn of the event loop may bring a job
        self._run(name, self._sleep(version))
        log.info("model", extra={"fields": {"model": name, "idle_s": version.settings.idle_unload_s}})

    async def _sleep(self, version: Version) -> None:
        await self._end(version)
        version.status = "unloaded"

    def _wake(self, name: str) -> None:
        self._served[name].wanted = True
        self._wake_if_wanted(name)

    def _wake_if_wanted(self, name: str) -> None:
        version = self._served.get(name)
        if version is None or not version.wanted or version.fleet.wake is None:
            return
        if name not in self._tasks and name not in self._asked:
            self._run(name, self._reload(version))

    async def _reload(self, version: Version) -> None:
        version.begin()
        fleet, fleet.loading = version.fleet, True
        try:
            await self._start(version)
        except SetupError as error:
            await self._give_up_reload(version, error)
        else:
            fleet.wake, fleet.used_s = None, time.monotonic()
            version.serve()
        finally:
            version.wanted = fleet.loading = False

    async def _give_up_reload(self, version: Version, error: SetupError) -> None:
        await self._end(version)
        version.status, version.message = "failed", error.message
        self._router.fail(self._router.unfinished(version.fleet), NotReady(NOT_LOADED, code="model_not_loaded"))

    async def _start(self, version: Version) -> None:
        """Raises `SetupError` when one of the workers cannot load the model."""
        name = version.fleet.model  # the version takes the place of the one that it replaces: both share a device for a short time only
        plan = {model: each.settings for model, each in self._served.items() if not each.deleted} | {name: version.settings}
        starts = [
            self._loads.start(replica, version.settings, assignment)
            for replica, assignment in zip(version.fleet.replicas, assignments(plan, name), strict=True)
        ]
        await asyncio.gather(*starts)
        if self.furnish is not None:
            await self.furnish(version.fleet)

    async def _end(self, version: Version) -> None:
        release(self._router, version.fleet)
        await asyncio.gather(*(self._loads.stop(replica) for replica in version.fleet.replicas))

    def _choose_default(self, name: str, default: str | None) -> None:
        """Raises `Conflict` if no model would be the default one, and `UnknownModel` for a successor that is not served."""
        if default is not None:
            if default == name:
                raise Conflict(f"'{name}' is to be unloaded: it cannot be the default model from now on", param="default")
            default = self._router.fleet(default).model
        elif name == self._router.default:
            raise Conflict(
                f"'{name}' is the default model, which answers requests that name none; say by ?default=NAME which one does from now on",
                param="default",
                code="default_model",
            )
        if default is not None:
            self._router.default = default
            for other in [other for other in self._tokenizers if other != default]:
                self._tokenizers[other] = self._tokenizers.pop(other)  # the default one stays first

    def _tell_absent(self, name: str) -> None:
        """What requests for a model get that is known but not served."""
        served, loading = self._served.get(name), self._beside.get(name)
        self._router.absent.pop(name, None)
        if loading is not None and loading.status == "loading":
            self._router.absent[name] = NotReady(f"the model '{name}' is being loaded; GET /v1/models lists it when it is served")
        elif served is not None and served.deleted:
            self._router.absent[name] = UnknownModel(f"model '{name}' was unloaded and is not served at the moment", param="model")

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[name] = task
        task.add_done_callback(partial(self._finish, name))

    def _finish(self, name: str, task: asyncio.Task[None]) -> None:
        del self._tasks[name]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a change of model %r ended by %s", name, type(error).__name__, exc_info=error)
            self._clear_away(name, SetupError(f"an unexpected {type(error).__name__}; the server's log says where"))
        self._wake_if_wanted(name)

    def _clear_away(self, name: str, error: SetupError) -> None:
        """End the workers of the version that was being loaded."""
        for of, give_up in ((self._served, self._give_up_reload), (self._beside, partial(self._give_up, name))):
            version = of.get(name)
            if version is not None and version.status == "loading":
                version.status = "failed"
                self._run(name, give_up(version, error))

    async def _in_pool(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Reading files takes a moment."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
