"""The router: limits, deadlines, cancellation and reports."""

import asyncio
import os

import psutil
import pytest
from fakes import CACHE, DEAD_PID, FACTS, FakeEngine
from routing import all_of, create, job

from app.engine.events import Delta, Report
from app.engine.notices import Waiting
from app.engine.request import Inspect
from app.errors import InvalidRequest, QueueFull, WorkerDied
from serve.workers.adaptation import Adaptation
from serve.workers.loop import _handle_message
from serve.workers.messages import Events, Ready


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


@pytest.mark.parametrize(("own", "default"), [(0.02, None), (None, 0.02), (0.02, 60)])
def test_a_deadline_ends_a_job_in_the_queue_and_in_its_slot(own: float | None, default: float | None) -> None:
    async def main() -> None:
        router, worker = create(timeout_s=default)
        worker.stalled = True
        async with router.open([job("a"), job("b")], timeout_s=own) as events:
            received = await asyncio.wait_for(all_of(events), 60)
            assert {event.id: event.error.code for event in received} == {"a": "deadline_exceeded", "b": "deadline_exceeded"}
            assert worker.engine.cancelled == ["a", "b"]
        assert worker.engine.cancelled == ["a", "b"] and router.replicas[0].load == 0

    asyncio.run(main())


def test_events_of_requests_that_have_left_are_dropped() -> None:
    router, _ = create()
    router.append([Events(psutil.Process().pid, [Delta("gone", "text", (5,), None)]), "OK"])
    assert router.in_flight == 0


def test_a_ready_message_of_a_dead_process_is_ignored() -> None:
    router, _ = create()
    router.append([Ready(DEAD_PID, 0, FACTS), "OK"])
    assert not router.ready


def test_a_waiting_event_does_not_end_its_job() -> None:
    async def main() -> None:
        router, worker = create()
        worker.engine.queue_steps = 2
        async with router.open([job("a", 1)]) as events:
            received = await all_of(events)
        assert received[:2] == [Waiting("a", 2, None), Waiting("a", 1, 0.25)]
        assert isinstance(received[2], Delta) and len(received) == 3
        assert worker.engine.cancelled == []

    asyncio.run(main())


def test_a_report_answers_only_its_own_inspect() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        async with router.open([job("a", 1)]) as events:
            router.append([Events(psutil.Process().pid, [Report("a", (), (), 0, (), CACHE)]), "OK"])
            worker.stalled = False
            reports = await asyncio.gather(router.report(), router.report())
            assert len({report.id for report in reports}) == 2
            assert [type(event) for event in await all_of(events)] == [Delta]

    asyncio.run(main())


def test_a_pending_report_fails_at_once_when_the_worker_dies() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        report = asyncio.create_task(router.report())
        await asyncio.sleep(0)
        router.fail_all(WorkerDied("gone"))
        with pytest.raises(WorkerDied):
            await asyncio.wait_for(report, 60)

    asyncio.run(main())


def test_the_worker_reports_while_it_has_jobs() -> None:
    """Calls the message handler of `serve.workers.loop` directly."""
    engine, sent = FakeEngine(), []
    adaptation = Adaptation(engine, 0, print, sent.append)  # type: ignore[arg-type]
    for content in (job("a"), Inspect("question"), "a"):
        _handle_message(engine, adaptation, (os.getpid(), content), sent.append)
        _handle_message(engine, adaptation, (DEAD_PID, content), sent.append)  # addressed to another worker
    assert sent == [Events(os.getpid(), [engine.report("question")])]
    assert [job.id for job in engine.submitted] == engine.cancelled == ["a"]
