"""What is bounded, what is lost when a worker dies (nothing silently), and what is cancelled."""

import asyncio
import os
import subprocess
import sys

import psutil
import pytest
from fakes import FACTS, WORKER, FakeEngine, FakeWorker

from app.engine.request import Delta, Failed, Generate, Inspect, Report, Sampling, Waiting
from app.errors import InvalidRequest, NotReady, QueueFull, WorkerDied
from serve.workers.loop import _obey
from serve.workers.router import Router


def job(name: str, most: int = 3) -> Generate:
    return Generate(name, (1, 2), most, Sampling(seed=1))


def create(waiting: int = 1) -> tuple[Router, FakeWorker]:
    router = Router(waiting, [FACTS.name])
    worker = FakeWorker(router, FakeEngine())
    router.replicas[0].queue = worker
    router.append([(psutil.Process().pid, 0, FACTS), "OK"])
    return router, worker


def test_events_reach_the_request_they_belong_to() -> None:
    async def main() -> None:
        router, _ = create(30)

        async def one(name: str) -> list[str]:
            async with router.open([job(name)]) as ticket:
                return [event.id async for event in ticket]

        found = await asyncio.gather(*(one(str(i)) for i in range(20)))
        assert found == [[str(i)] * 3 for i in range(20)]
        assert router.in_flight == 0

    asyncio.run(main())


def test_a_full_queue_is_refused_and_free_again_when_work_ends() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        async with router.open([job("a"), job("b")]), router.open([job("c")]):
            with pytest.raises(QueueFull, match="3 of at most 3"):
                async with router.open([job("d")]):
                    pass
        assert worker.engine.cancelled == ["c", "a", "b"]
        worker.stalled = False
        async with router.open([job("d")]) as ticket:
            assert len([event async for event in ticket]) == 3

    asyncio.run(main())


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    async def main() -> None:
        router, _ = create()
        with pytest.raises(InvalidRequest, match="4 answers or texts in one request, but at most 3"):
            async with router.open([job(str(i)) for i in range(4)]):
                pass

    asyncio.run(main())


def test_a_client_that_leaves_cancels_what_has_not_ended() -> None:
    async def main() -> None:
        router, worker = create()
        async with router.open([job("short", 1), job("long", 50)]) as ticket:
            async for event in ticket:
                if isinstance(event, Delta) and event.id == "long" and ticket.open == {"long"}:
                    break
        assert worker.engine.cancelled == ["long"]
        assert router.in_flight == 0

    asyncio.run(main())


def test_a_dead_worker_fails_everything_it_held_and_the_next_one_serves() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        router.append([(process.pid, 0, FACTS), "OK"])
        watching = asyncio.create_task(router.watch())
        async with router.open([job("a"), job("b")]) as ticket:
            process.kill()
            events = await asyncio.wait_for(_all(ticket), 5)
        assert {event.id for event in events} == {"a", "b"}
        assert all(isinstance(event, Failed) and isinstance(event.error, WorkerDied) for event in events)
        assert not router.ready
        with pytest.raises(NotReady):
            async with router.open([job("c")]):
                pass
        process.wait()
        router.append([(psutil.Process().pid, 0, FACTS), "OK"])
        worker.stalled = False
        async with router.open([job("d")]) as ticket:
            assert len(await _all(ticket)) == 3
        watching.cancel()

    asyncio.run(main())


def test_events_of_requests_that_have_left_are_dropped() -> None:
    router, _ = create()
    router.append([[Delta("gone", "text", 1, None)], "OK"])
    assert router.in_flight == 0


def test_a_hello_of_a_process_that_is_already_gone_does_not_end_the_server() -> None:
    router, _ = create()
    router.append([(WORKER, 0, FACTS), "OK"])
    assert not router.ready


def test_waiting_ends_no_job() -> None:
    async def main() -> None:
        router, worker = create()
        worker.engine.queue = 2
        async with router.open([job("a", 1)]) as ticket:
            events = await _all(ticket)
        assert events[:2] == [Waiting("a", 2, None), Waiting("a", 1, 0.25)]
        assert isinstance(events[2], Delta) and len(events) == 3
        assert worker.engine.cancelled == []

    asyncio.run(main())


def test_a_report_ends_its_question_only() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        async with router.open([job("a", 1)]) as ticket:
            router.append([[Report("a", (), (), 0, ())], "OK"])
            worker.stalled = False
            reports = await asyncio.gather(router.report(), router.report())
            assert len({report.id for report in reports}) == 2
            assert [type(event) for event in await _all(ticket)] == [Delta]

    asyncio.run(main())


def test_a_worker_that_dies_while_it_is_asked_answers_at_once() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        asked = asyncio.create_task(router.report())
        await asyncio.sleep(0)
        router.fail_all(WorkerDied("gone"))
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(asked, 1)

    asyncio.run(main())


def test_the_worker_answers_a_question_beside_its_jobs() -> None:
    """What `serve.workers.loop` does with each message."""
    engine, sent = FakeEngine(), []
    for content in (job("a"), Inspect("question"), "a"):
        _obey(engine, (os.getpid(), content), sent.append)
        _obey(engine, (WORKER, content), sent.append)  # meant for another
    assert sent == [[engine.report("question")]]
    assert [job.id for job in engine.seen] == engine.cancelled == ["a"]


async def _all(ticket: object) -> list[object]:
    return [event async for event in ticket]  # type: ignore[attr-defined]
