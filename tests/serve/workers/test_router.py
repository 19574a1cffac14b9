"""The router: limits, cancellation, reports, and that every job of a dead worker gets an error."""

import asyncio
import os
import subprocess
import sys

import psutil
import pytest
from fakes import DEAD_PID, FACTS, FakeEngine, FakeWorker

from app.engine.request import Delta, Failed, Generate, Inspect, Report, SamplingParams, Waiting
from app.errors import InvalidRequest, NotReady, QueueFull, WorkerDied
from serve.workers.loop import _handle_message
from serve.workers.router import Router


def job(name: str, max_tokens: int = 3) -> Generate:
    return Generate(name, (1, 2), max_tokens, SamplingParams(seed=1))


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
            async with router.open([job(name)]) as events:
                return [event.id async for event in events]

        received = await asyncio.gather(*(one(str(i)) for i in range(20)))
        assert received == [[str(i)] * 3 for i in range(20)]
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
        async with router.open([job("d")]) as events:
            assert len([event async for event in events]) == 3

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
        async with router.open([job("short", 1), job("long", 50)]) as events:
            async for event in events:
                if isinstance(event, Delta) and event.id == "long" and events.running == {"long"}:
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
        async with router.open([job("a"), job("b")]) as events:
            process.kill()
            received = await asyncio.wait_for(_all(events), 5)
        assert {event.id for event in received} == {"a", "b"}
        assert all(isinstance(event, Failed) and isinstance(event.error, WorkerDied) for event in received)
        assert not router.ready
        with pytest.raises(NotReady):
            async with router.open([job("c")]):
                pass
        process.wait()
        router.append([(psutil.Process().pid, 0, FACTS), "OK"])
        worker.stalled = False
        async with router.open([job("d")]) as events:
            assert len(await _all(events)) == 3
        watching.cancel()

    asyncio.run(main())


def test_events_of_requests_that_have_left_are_dropped() -> None:
    router, _ = create()
    router.append([[Delta("gone", "text", 1, None)], "OK"])
    assert router.in_flight == 0


def test_a_ready_message_of_a_dead_process_is_ignored() -> None:
    router, _ = create()
    router.append([(DEAD_PID, 0, FACTS), "OK"])
    assert not router.ready


def test_a_waiting_event_does_not_end_its_job() -> None:
    async def main() -> None:
        router, worker = create()
        worker.engine.queue_steps = 2
        async with router.open([job("a", 1)]) as events:
            received = await _all(events)
        assert received[:2] == [Waiting("a", 2, None), Waiting("a", 1, 0.25)]
        assert isinstance(received[2], Delta) and len(received) == 3
        assert worker.engine.cancelled == []

    asyncio.run(main())


def test_a_report_answers_only_its_own_inspect() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        async with router.open([job("a", 1)]) as events:
            router.append([[Report("a", (), (), 0, ())], "OK"])
            worker.stalled = False
            reports = await asyncio.gather(router.report(), router.report())
            assert len({report.id for report in reports}) == 2
            assert [type(event) for event in await _all(events)] == [Delta]

    asyncio.run(main())


def test_a_pending_report_fails_at_once_when_the_worker_dies() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        report = asyncio.create_task(router.report())
        await asyncio.sleep(0)
        router.fail_all(WorkerDied("gone"))
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(report, 1)

    asyncio.run(main())


def test_the_worker_reports_while_it_has_jobs() -> None:
    """Calls the message handler of `serve.workers.loop` directly."""
    engine, sent = FakeEngine(), []
    for content in (job("a"), Inspect("question"), "a"):
        _handle_message(engine, (os.getpid(), content), sent.append)
        _handle_message(engine, (DEAD_PID, content), sent.append)  # addressed to another worker
    assert sent == [[engine.report("question")]]
    assert [job.id for job in engine.submitted] == engine.cancelled == ["a"]


async def _all(events: object) -> list[object]:
    return [event async for event in events]  # type: ignore[attr-defined]
