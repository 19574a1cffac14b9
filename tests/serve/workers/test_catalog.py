"""What becomes of the jobs of a model that is loaded on demand, where one of its replicas cannot be loaded."""

import asyncio
from typing import Any

import psutil
import pytest
from fakes import FACTS, FakeEngine, FakeWorker
from routing import all_of, job

from app.errors import Conflict, LitmusError
from app.settings import ModelSettings, QueueSettings, Settings
from serve.workers.catalog import Catalog
from serve.workers.fleet import Fleet
from serve.workers.messages import Ended, LoadFailed, Order, Ready, Start
from serve.workers.router import Router
from serve.workers.version import Version


def test_no_job_waits_for_ever_where_only_one_of_two_replicas_is_loaded() -> None:
    """The jobs of the replica that was there have no worker any more, either."""

    async def main() -> None:
        router = Router([FACTS.name] * 2, QueueSettings(max_waiting=9))

        def obey(order: Order) -> None:
            """The first replica is loaded, the second one is not; what is stopped ends."""
            me = psutil.Process().pid
            first: Any = Ready(me, 0, FACTS) if order.worker == 0 else LoadFailed(1, "layers are missing")
            loop.call_soon(router.append, [first if isinstance(order, Start) else Ended(order.worker, 0), "OK"])

        loop = asyncio.get_running_loop()
        settings = Settings(model=ModelSettings(name=FACTS.name, replicas=2, idle_unload_s=1))
        catalog = Catalog(router, settings, obey, {}, {})
        for replica in router.replicas:
            replica.queue, replica.facts = FakeWorker(router, FakeEngine()), FACTS
            replica.queue.stalled = True
        version = catalog._served[FACTS.name]
        catalog._fall_asleep(FACTS.name, version)
        await asyncio.sleep(0.01)
        assert version.status == "unloaded"
        async with router.open([job("a")]) as one, router.open([job("b")]) as other:
            for events in (one, other):
                (failed,) = await asyncio.wait_for(all_of(events), 60)
                assert isinstance(failed.error, LitmusError) and failed.error.code == "model_not_loaded"  # type: ignore[attr-defined]
        assert version.status == "failed" and router.in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize("change", ["a swap", "a load on demand"])
def test_a_load_that_ends_by_a_mistake_of_ours_leaves_no_worker_and_no_job_behind(
    change: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serve.workers.catalog.read", lambda settings: (None, None))

    async def main() -> None:
        router, running = Router([FACTS.name], QueueSettings()), set[int]()

        def obey(order: Order) -> None:
            (running.add if isinstance(order, Start) else running.discard)(order.worker)
            message: Any = Ready(psutil.Process().pid, order.worker, FACTS) if isinstance(order, Start) else Ended(order.worker, 0)
            loop.call_soon(router.append, [message, "OK"])

        async def furnish(fleet: Fleet) -> None:
            raise KeyError("added_tokens")

        async def settled() -> None:
            while catalog._tasks:
                await asyncio.sleep(0.01)

        loop = asyncio.get_running_loop()
        catalog = Catalog(router, Settings(model=ModelSettings(name=FACTS.name, idle_unload_s=1)), obey, {}, {})
        version = catalog._served[FACTS.name]
        router.replicas[0].queue, router.replicas[0].facts = FakeWorker(router, FakeEngine()), FACTS
        catalog.furnish = furnish
        if change == "a swap":
            version = await catalog.load(FACTS.name, lambda present: present or ModelSettings())
            await settled()
            assert len(router.fleets) == len(router.replicas) == 1
        else:
            catalog._fall_asleep(FACTS.name, version)
            await settled()
            async with router.open([job("a")]) as events:
                *_, failed = await asyncio.wait_for(all_of(events), 60)  # perhaps told before that it is being loaded
                assert failed.error.code == "model_not_loaded"  # type: ignore[attr-defined]
            await settled()
        assert (version.status, version.message) == ("failed", "an unexpected KeyError; the server's log says where") and not running
        assert "ended by KeyError" in caplog.text

    asyncio.run(main())


def test_another_name_of_a_model_is_no_name_of_a_new_one() -> None:
    async def main() -> None:
        router = Router([FACTS.name], QueueSettings())
        router.aliases = {"gpt-4o": FACTS.name}
        model = ModelSettings(name=FACTS.name, aliases=("gpt-4o",))
        catalog = Catalog(router, Settings(model=model), lambda order: None, {}, {})
        with pytest.raises(Conflict, match="'gpt-4o' is another name of 'fake'"):
            await catalog.load("gpt-4o", lambda present: model)
        assert catalog.settings_of("gpt-4o") == model and catalog.settings_of("gpt-4") is None
        assert catalog.paths() == {FACTS.name: model.path, "gpt-4o": model.path}
        newer = model.model_copy(update={"path": "newer"})
        catalog._served[FACTS.name] = Version(newer, router.fleet(None))
        assert catalog.paths()["gpt-4o"] == "newer"
        catalog._served[FACTS.name].deleted = True
        assert catalog.paths() == {}

    asyncio.run(main())
