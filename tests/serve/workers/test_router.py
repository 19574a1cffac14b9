"""The router: limits, deadlines, cancellation, reports, and that the jobs of a dead worker go on in another one."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from fakes import CACHE, DEAD_PID, FACTS, FakeEngine, FakeWorker, answer_of
from prometheus_client import generate_latest

from app.engine.events import Delta, Failed, Report
from app.engine.notices import Interrupted, Waiting
from app.engine.request import ContrastiveSearchParams, Generate, Inspect, SamplingParams
from app.errors import InvalidRequest, NotReady, QueueFull, WorkerDied
from app.settings import QueueSettings
from serve.workers.adaptation import Adaptation
from serve.workers.loop import _handle_message
from serve.workers.messages import Beat, Events, Ready
from serve.workers.router import Router
from serve.workers.watch import watch


def job(name: str, max_tokens: int = 3) -> Generate:
    return Generate(name, (1, 2), max_tokens, SamplingParams(seed=1))


def create(waiting: int = 1, **queue: float | None) -> tuple[Router, FakeWorker]:
    router = Router([FACTS.name], QueueSettings.model_validate({"max_waiting": waiting, **queue}))
    worker = FakeWorker(router, FakeEngine())
    router.replicas[0].queue = worker
    router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
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


def test_while_no_worker_lives_new_requests_are_refused_and_the_next_worker_serves() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        router.append([Ready(process.pid, 0, FACTS), "OK"])
        watching = asyncio.create_task(watch(router))
        async with router.open([job("a"), job("b")]) as events:
            process.kill()
            event = await asyncio.wait_for(anext(aiter(events)), 5)
            assert event == Interrupted("a")
            assert not router.ready
            with pytest.raises(NotReady):
                async with router.open([job("c")]):
                    pass
        process.wait()
        router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
        worker.stalled = False
        async with router.open([job("d")]) as events:
            assert len(await _all(events)) == 3
        watching.cancel()

    asyncio.run(main())


def die(router: Router, worker: FakeWorker) -> None:
    """The worker's process dies with all its jobs."""
    worker.engine.jobs.clear()
    router.workers_died(router.replicas[:1])


def revive(router: Router) -> None:
    router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])


def test_an_answer_goes_on_in_the_next_worker_where_the_dead_one_stopped() -> None:
    async def main() -> None:
        router, worker = create()
        async with router.open([job("a", 5)]) as events:
            received = [await anext(reading := aiter(events)) for _ in range(1)]
            received.append(await anext(reading))
            die(router, worker)
            assert await anext(reading) == Interrupted("a")
            assert router.replicas[0].load == 1
            revive(router)
            received += [event async for event in reading]
        assert worker.engine.submitted[-1].sampled == (2, 3)
        assert "".join(event.text for event in received) == answer_of(job("a", 5))
        assert [event.finish for event in received] == [None] * 4 + ["length"]
        assert router.in_flight == router.replicas[0].load == 0
        assert b'litmus:interruptions_total{model="fake"} 1.0' in generate_latest(router.observer)

    asyncio.run(main())


def test_what_a_dead_worker_sent_too_late_is_not_delivered() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        async with router.open([job("a", 2)]) as events:
            die(router, worker)
            late = Events(DEAD_PID, [Delta("a", "late", (9,), "length")])
            router.append([late, "OK"])
            router.append([Events(psutil.Process().pid, late.events), "OK"])
            revive(router)
            router.append([late, "OK"])
            worker.stalled = False
            received = await _all(events)
        assert received[0] == Interrupted("a") and "".join(event.text for event in received[1:]) == answer_of(job("a", 2))

    asyncio.run(main())


def test_a_search_is_done_again_and_what_was_delivered_is_not_sent_twice() -> None:
    async def main() -> None:
        router, worker = create()
        search = replace(job("a", 4), search=ContrastiveSearchParams(2, 0.5))
        async with router.open([search]) as events:
            reading = aiter(events)
            first = [await anext(reading) for _ in range(3)]
            die(router, worker)
            revive(router)
            rest = [event async for event in reading]
        assert worker.engine.submitted == [search, search]
        assert "".join(event.text for event in [*first, *rest[1:]]) == answer_of(search)

    asyncio.run(main())


def test_a_job_that_two_workers_died_with_fails_and_others_do_not() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        async with router.open([job("early")]) as early:
            die(router, worker)
            revive(router)
            async with router.open([job("later")]) as later:
                die(router, worker)
                received = await _all(early)
                assert isinstance(received[-1], Failed) and isinstance(received[-1].error, WorkerDied)
                revive(router)
                worker.stalled = False
                assert [type(event) for event in await _all(later)] == [Interrupted] + [Delta] * 3
        assert worker.engine.cancelled == []

    asyncio.run(main())


def test_a_search_that_ends_earlier_when_it_is_done_again_ends() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        search = replace(job("a", 9), search=ContrastiveSearchParams(2, 0.5))
        async with router.open([search]) as events:
            pid = psutil.Process().pid
            router.append([Events(pid, [Delta("a", text, (5,)) for text in "xyz"]), "OK"])
            die(router, worker)
            revive(router)
            router.append([Events(pid, [Delta("a", "x", (5,)), Delta("a", "w", (6,), "stop")]), "OK"])
            received = await asyncio.wait_for(_all(events), 5)
        assert [event.text for event in received if isinstance(event, Delta)] == ["x", "y", "z", ""]
        assert received[-1].finish == "stop"

    asyncio.run(main())


def test_a_job_that_has_failed_is_not_sent_to_the_next_worker() -> None:
    async def main() -> None:
        router, worker = create(3)
        worker.stalled = True
        async with router.open([job("a")]) as events:
            die(router, worker)
            revive(router)
            die(router, worker)
            submitted = len(worker.engine.submitted)
            revive(router)
            assert len(worker.engine.submitted) == submitted
            assert isinstance((await _all(events))[-1], Failed)

    asyncio.run(main())


def test_a_client_that_leaves_while_no_worker_lives_is_forgotten() -> None:
    async def main() -> None:
        router, worker = create()
        async with router.open([job("a")]):
            die(router, worker)
        revive(router)
        assert router.in_flight == router.replicas[0].load == 0
        assert worker.engine.jobs == {} and worker.engine.cancelled == []

    asyncio.run(main())


def test_without_another_worker_in_time_a_job_fails() -> None:
    async def main() -> None:
        router, worker = create(resume_wait_s=0.01)
        worker.stalled = True
        async with router.open([job("a")]) as events:
            die(router, worker)
            router.fail_stranded()
            assert router.in_flight == 1 and events.queue.qsize() == 1
            await asyncio.sleep(0.02)
            router.fail_stranded()
            router.fail_stranded()
            received = await _all(events)
        assert [type(event) for event in received] == [Interrupted, Failed] and received[-1].error.code == "worker_died"

    asyncio.run(main())


def test_a_server_that_shuts_down_does_not_wait_for_another_worker() -> None:
    async def main() -> None:
        router, worker = create()
        async with router.open([job("a")]) as events:
            router.draining = True
            die(router, worker)
            router.fail_stranded()
            assert (await _all(events))[-1].error.code == "worker_died"

    asyncio.run(main())


@pytest.mark.parametrize(("own", "default"), [(0.02, None), (None, 0.02), (0.02, 60)])
def test_a_deadline_ends_a_job_in_the_queue_and_in_its_slot(own: float | None, default: float | None) -> None:
    async def main() -> None:
        router, worker = create(timeout_s=default)
        worker.stalled = True
        async with router.open([job("a"), job("b")], timeout_s=own) as events:
            received = await asyncio.wait_for(_all(events), 5)
            assert {event.id: event.error.code for event in received} == {"a": "deadline_exceeded", "b": "deadline_exceeded"}
            assert worker.engine.cancelled == ["a", "b"]
        assert worker.engine.cancelled == ["a", "b"] and router.replicas[0].load == 0

    asyncio.run(main())


def test_a_worker_without_a_sign_of_life_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has never sent a beat is left alone."""
    monkeypatch.setattr("serve.workers.watch.WATCH_INTERVAL_S", 0.001)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        router.append([Ready(process.pid, 0, FACTS), "OK"])
        watching = asyncio.create_task(watch(router))
        await asyncio.sleep(0.1)
        assert router.ready
        async with router.open([job("a")]) as events:
            router.append([Beat(process.pid), "OK"])
            assert await asyncio.wait_for(anext(aiter(events)), 5) == Interrupted("a")
        assert not router.ready
        watching.cancel()

    asyncio.run(main())
    assert process.wait(5) < 0


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
            router.append([Events(psutil.Process().pid, [Report("a", (), (), 0, (), CACHE)]), "OK"])
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
    adaptation = Adaptation(engine, 0, print, sent.append)  # type: ignore[arg-type]
    for content in (job("a"), Inspect("question"), "a"):
        _handle_message(engine, adaptation, (os.getpid(), content), sent.append)
        _handle_message(engine, adaptation, (DEAD_PID, content), sent.append)  # addressed to another worker
    assert sent == [Events(os.getpid(), [engine.report("question")])]
    assert [job.id for job in engine.submitted] == engine.cancelled == ["a"]


async def _all(events: object) -> list[object]:
    return [event async for event in events]  # type: ignore[attr-defined]
