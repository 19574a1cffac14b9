"""What becomes of the jobs of a version when the time to finish them is over."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import psutil
import pytest
from fakes import FACTS, FakeEngine, FakeWorker

from app.engine.events import Delta, Failed
from app.engine.notices import Interrupted
from app.engine.request import ContrastiveSearchParams, Generate, Job, SamplingParams, Score, Window
from app.errors import NotReady
from app.settings import QueueSettings
from serve.wire.sse import comments
from serve.workers.fleet import Fleet, Replica
from serve.workers.handover import can_go_on, move_on, release, tell_loading
from serve.workers.messages import Ready
from serve.workers.router import Router

SETTINGS = QueueSettings(max_waiting=9)
REPLACED = NotReady("replaced")


def job(name: str, **fields: object) -> Generate:
    return replace(Generate(name, (1, 2), 5, SamplingParams(seed=1)), **fields)


def create() -> tuple[Router, FakeWorker]:
    router = Router([FACTS.name], SETTINGS)
    return router, add(router, router.fleet(None), "fp_old")


def add(router: Router, fleet: Fleet, fingerprint: str) -> FakeWorker:
    """Give a version a worker."""
    worker = FakeWorker(router, FakeEngine())
    worker.stalled = True
    fleet.replicas[0].queue = worker
    router.append([Ready(psutil.Process().pid, fleet.replicas[0].number, replace(FACTS, fingerprint=fingerprint)), "OK"])
    return worker


def renew(router: Router) -> tuple[Fleet, Fleet, FakeWorker]:
    """Swap a new version in; returns old, new, and the new one's worker."""
    new = Fleet(FACTS.name, [Replica(1, FACTS.name)], SETTINGS)
    router.add(new)
    worker = add(router, new, "fp_new")
    old = router.install(new)
    assert old is not None
    return old, new, worker


def test_new_jobs_go_to_the_new_version_and_those_that_were_made_for_the_old_one_to_that() -> None:
    async def main() -> None:
        router, worker = create()
        old, new, later = renew(router)
        async with router.open([job("a")]), router.open([job("b")], old):
            assert (list(later.engine.jobs), list(worker.engine.jobs)) == (["a"], ["b"])
            assert (router.facts().fingerprint, router.capacity) == ("fp_new", new.max_jobs + 1)
        release(router, old)
        router.remove(old)
        with pytest.raises(NotReady):
            await router.open([job("c")], old).__aenter__()
        assert [replica.number for replica in router.replicas] == [1]

    asyncio.run(main())


def test_a_sampled_answer_goes_on_in_the_new_version_and_says_so() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = False
        async with router.open([job("a")]) as events:
            reading = aiter(events)
            received = [await anext(reading) for _ in range(2)]
            worker.stalled = True
            old, new, later = renew(router)
            later.stalled = False
            move_on(router, old, new, REPLACED)
            received += [event async for event in reading]
        moved = next(event for event in received if isinstance(event, Interrupted))
        assert moved.fingerprint == "fp_new" and "was replaced" in comments(moved, True)[0]
        deltas = [event for event in received if isinstance(event, Delta)]
        assert [event.tokens for event in deltas] == [(2,), (3,), (4,), (5,), (6,)] and deltas[-1].finish == "length"
        assert worker.engine.cancelled == ["a"] and later.engine.cancelled == []
        assert old.load == new.load == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("left", "same_tokens"),
    [
        (job("a"), False),
        (job("a", search=ContrastiveSearchParams(2, 0.5)), True),
        (job("a", max_tokens=FACTS.context), True),
        (Score("a", (1, 2), (Window(0, 2, 1),)), True),
    ],
)
def test_what_the_new_version_cannot_go_on_with_fails(left: Job, same_tokens: bool) -> None:
    async def main() -> None:
        router, worker = create()
        async with AsyncExitStack() as stack:
            events = await stack.enter_async_context(router.open([left]))
            old, new, later = renew(router)
            move_on(router, old, new if same_tokens else None, REPLACED)
            (failed,) = [event async for event in events]
        assert isinstance(failed, Failed) and failed.error is REPLACED
        assert later.engine.submitted == [] and worker.engine.cancelled == ["a"]

    asyncio.run(main())


def test_jobs_wait_for_a_model_that_is_loaded_on_demand_and_are_told() -> None:
    async def main() -> None:
        router, worker = create()
        fleet, woken = router.fleet(None), []
        fleet.wake = lambda: woken.append(True)
        release(router, fleet)
        assert (router.ready, dict(router.statuses)) == (True, {FACTS.name: "unloaded"})
        async with router.open([job("a", max_tokens=1)]) as events:
            assert woken == [True]
            router.fail_stranded()
            fleet.loading = True
            tell_loading(router, fleet, 0.25)
            tell_loading(router, fleet, None)
            worker.stalled = False
            fleet.replicas[0].queue = worker
            router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
            received = [event async for event in events]
        assert [comments(event, False) for event in received[:2]] == [[": loading 25%\n\n"], [": loading\n\n"]]
        assert isinstance(received[2], Delta) and len(received) == 3

    asyncio.run(main())


def test_a_server_that_shuts_down_does_not_wait_for_a_model_to_be_loaded() -> None:
    async def main() -> None:
        router, _ = create()
        fleet = router.fleet(None)
        fleet.wake = lambda: None
        release(router, fleet)
        async with router.open([job("a")]) as events:
            router.draining = True
            router.fail_stranded()
            (failed,) = [event async for event in events]
        assert isinstance(failed, Failed)

    asyncio.run(main())


def test_an_answer_without_a_limit_goes_on_in_a_version_with_a_shorter_context_if_what_it_has_fits() -> None:
    new = Fleet(FACTS.name, [Replica(1, FACTS.name, facts=replace(FACTS, context=20))], SETTINGS)
    open_ended = job("a", max_tokens=62, unlimited=True)
    assert can_go_on(open_ended, new, 17) and not can_go_on(open_ended, new, 18)
    assert not can_go_on(job("b", max_tokens=62), new, 1) and can_go_on(job("c", max_tokens=18), new, 1)
