"""Several replicas of one model behind one router."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from fakes import FACTS, FakeEngine, FakeWorker
from routing import all_of
from serving import RunningServer, serving, wait_for

from app.engine.events import Delta
from app.engine.notices import Interrupted
from app.engine.request import Generate, SamplingParams
from app.errors import InvalidRequest, QueueFull
from app.settings import QueueSettings
from serve.workers.handover import release
from serve.workers.messages import Ready
from serve.workers.router import Router
from serve.workers.watch import watch


def job(name: str, first: int = 0, length: int = 64) -> Generate:
    return Generate(name, tuple(range(first, first + length)), 3, SamplingParams(seed=1))


def create(waiting: int = 100, pids: tuple[int, int] | None = None) -> tuple[Router, list[FakeWorker]]:
    router = Router([FACTS.name] * 2, QueueSettings(max_waiting=waiting))
    workers = [FakeWorker(router, FakeEngine()) for _ in router.replicas]
    for replica, worker, pid in zip(router.replicas, workers, pids or (psutil.Process().pid,) * 2, strict=True):
        replica.queue = worker
        worker.stalled = True
        router.append([Ready(pid, replica.number, FACTS), "OK"])
    return router, workers


def test_jobs_are_spread_and_a_conversation_returns_to_its_replica() -> None:
    async def main() -> None:
        router, workers = create()
        async with AsyncExitStack() as stack:
            for index in range(6):
                await stack.enter_async_context(router.open([job(f"new {index}", 1000 * index)]))
            assert [len(worker.engine.jobs) for worker in workers] == [3, 3]
            home = next(number for number, worker in enumerate(workers) if "new 3" in worker.engine.jobs)
            await stack.enter_async_context(router.open([job("goes on", 3000, 90)]))
            assert "goes on" in workers[home].engine.jobs
            for index in range(4):
                await stack.enter_async_context(router.open([job(f"same {index}", 3000, 64)]))
            assert max(replica.load for replica in router.replicas) - min(replica.load for replica in router.replicas) <= FACTS.slots + 1
        assert [replica.load for replica in router.replicas] == [0, 0]

    asyncio.run(main())


def test_the_limit_counts_the_slots_of_all_replicas() -> None:
    async def main() -> None:
        router, _ = create(waiting=1)
        async with AsyncExitStack() as stack:
            for index in range(2 * FACTS.slots + 1):
                await stack.enter_async_context(router.open([job(str(index), 1000 * index)]))
            with pytest.raises(QueueFull, match="5 of at most 5"):
                await stack.enter_async_context(router.open([job("more", 9000)]))

    asyncio.run(main())


def test_two_replicas_that_die_together_are_one_death_for_each_job() -> None:
    async def main() -> None:
        router, workers = create()
        async with router.open([job("a")]) as one, router.open([job("b", 1000)]) as other:
            for worker in workers:
                worker.engine.jobs.clear()
            router.workers_died(router.replicas)
            assert [replica.worker for replica in router.replicas] == [None, None]
            router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
            workers[0].stalled = False
            for events in (one, other):
                assert [type(event) async for event in events] == [Interrupted] + [Delta] * 3
        assert [replica.load for replica in router.replicas] == [0, 0]

    asyncio.run(main())


def test_the_jobs_of_a_dead_worker_go_on_in_the_other_replica() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    async def main() -> None:
        router, workers = create(pids=(process.pid, psutil.Process().pid))
        watching = asyncio.create_task(watch(router))
        async with router.open([job("doomed")]) as doomed, router.open([job("kept", 1000)]) as kept:
            process.kill()
            workers[1].stalled = False
            assert [type(event) for event in [event async for event in doomed]] == [Interrupted] + [Delta] * 3
            assert [type(event) for event in [event async for event in kept]] == [Delta] * 3
        assert router.ready
        async with router.open([job("later", 2000)]):
            assert "later" in workers[1].engine.jobs
        watching.cancel()

    asyncio.run(main())
    process.wait()


async def one(router: Router, wanted: Generate) -> list[object]:
    async with router.open([wanted]) as events:
        return await all_of(events)


def load(router: Router, slots: int, number: int) -> None:
    router.append([Ready(psutil.Process().pid, number, replace(FACTS, slots=slots)), "OK"])


@pytest.mark.parametrize(("slots", "first", "both"), [(4, 20, [20, 20]), (20, 20, [20, 20]), (24, 24, [24, 16]), (64, 40, [40, 0])])
def test_jobs_that_wait_for_two_replicas_fill_the_slots_of_the_first_and_keep_the_second(slots: int, first: int, both: list[int]) -> None:
    async def main() -> None:
        router, workers = create()
        (fleet,) = router.fleets
        fleet.wake = lambda: None
        release(router, fleet)  # it was idle
        async with AsyncExitStack() as stack:
            for index in range(40):
                await stack.enter_async_context(router.open([job(str(index), 1000 * index)]))
            assert [replica.load for replica in router.replicas] == [20, 20] and len(router.waiting(fleet)) == 40
            load(router, slots, 0)
            assert [len(worker.engine.jobs) for worker in workers] == [first, 0]
            load(router, slots, 1)
            assert [len(worker.engine.jobs) for worker in workers] == both == [replica.load for replica in router.replicas]
            assert router.waiting(fleet) == []

    asyncio.run(main())


def test_no_slot_is_free_while_a_job_waits_for_a_replica_that_loads() -> None:
    """The first replica has done its part, and the second one is not there yet."""

    async def main() -> None:
        router, workers = create()
        (fleet,) = router.fleets
        fleet.wake = lambda: None
        release(router, fleet)
        asked = [asyncio.create_task(one(router, job(str(index), 1000 * index))) for index in range(8)]
        await asyncio.sleep(0)
        load(router, 2, 0)
        assert [len(worker.engine.jobs) for worker in workers] == [4, 0] and len(router.waiting(fleet)) == 4
        workers[0].stalled = False
        watching = asyncio.create_task(watch(router))
        assert {len(events) for events in await asyncio.wait_for(asyncio.gather(*asked), 60)} == {3}
        watching.cancel()

    asyncio.run(main())


def test_a_replica_that_does_not_exist_is_refused() -> None:
    router, _ = create()
    with pytest.raises(InvalidRequest, match=r"'fake' has no replica 2; its replicas are 0\.\.1"):
        asyncio.run(router.report(replica=2))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("replicas")
    with serving(folder, "--model", str(tiny_folder), "--model.replicas", "2", "--model.slots", "2") as running:
        yield running


def test_two_processes_serve_one_model_and_one_may_die(running: RunningServer) -> None:
    def is_loaded(number: int) -> bool:
        return httpx.get(f"{running.url}/slots", params={"replica": number}).status_code == 200

    wait_for(lambda: is_loaded(0) and is_loaded(1))
    body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0.9, "seed": 3, "ignore_eos": True}

    def ask(_: int = 0) -> str:
        return httpx.post(f"{running.url}/v1/completions", json=body, timeout=60).raise_for_status().json()["choices"][0]["text"]

    with ThreadPoolExecutor(12) as pool:
        assert len(set(pool.map(ask, range(24)))) == 1
    assert all(running.slots(replica=number)["decisions"] for number in (0, 1))
    with running.no_new_workers():
        running.worker().kill()
        wait_for(lambda: not (is_loaded(0) and is_loaded(1)))
        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(ask, range(8)))) == 1
    wait_for(lambda: is_loaded(0) and is_loaded(1))
    assert httpx.get(f"{running.url}/slots", params={"replica": 2}).status_code == 400


def test_a_killed_api_process_ends_the_server(running: RunningServer) -> None:
    """The last test of this server: it ends it."""
    processes = running.children()
    forked = [process for process in processes if process.cmdline() == psutil.Process(running.process.pid).cmdline()]
    max(forked, key=lambda process: process.create_time()).kill()  # the other one holds the queues
    assert running.process.wait(60) == 2
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    lines = [
        line for line in running.log.read_text().splitlines() if "resource_tracker" not in line
    ]  # of the worker that was killed before
    assert lines[-1].startswith("litmus: the process that answers requests was ended by signal 9 (Killed)")
