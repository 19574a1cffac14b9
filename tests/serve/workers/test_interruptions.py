"""Workers that die: their jobs go on in the next one, and what cannot go on fails."""

import asyncio
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from fakes import DEAD_PID, FACTS, answer_of
from prometheus_client import generate_latest
from routing import all_of, create, die, job, revive

from app.engine.events import Delta, Failed
from app.engine.notices import Interrupted
from app.engine.request import ContrastiveSearchParams
from app.errors import NotReady, WorkerDied
from serve.workers.messages import Beat, Events, Ready
from serve.workers.watch import watch


def test_while_no_worker_lives_new_requests_are_refused_and_the_next_worker_serves() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        router.append([Ready(process.pid, 0, FACTS), "OK"])
        watching = asyncio.create_task(watch(router))
        async with router.open([job("a"), job("b")]) as events:
            process.kill()
            event = await asyncio.wait_for(anext(aiter(events)), 60)
            assert event == Interrupted("a")
            assert not router.ready
            with pytest.raises(NotReady):
                async with router.open([job("c")]):
                    pass
        process.wait()
        router.append([Ready(psutil.Process().pid, 0, FACTS), "OK"])
        worker.stalled = False
        async with router.open([job("d")]) as events:
            assert len(await all_of(events)) == 3
        watching.cancel()

    asyncio.run(main())


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
            received = await all_of(events)
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
                received = await all_of(early)
                assert isinstance(received[-1], Failed) and isinstance(received[-1].error, WorkerDied)
                revive(router)
                worker.stalled = False
                assert [type(event) for event in await all_of(later)] == [Interrupted] + [Delta] * 3
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
            received = await asyncio.wait_for(all_of(events), 60)
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
            assert isinstance((await all_of(events))[-1], Failed)

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


def test_without_another_worker_in_time_a_job_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        router, worker = create(resume_wait_s=120)
        worker.stalled = True
        loop = asyncio.get_running_loop()
        async with router.open([job("a")]) as events:
            die(router, worker)
            router.fail_stranded()
            assert router.in_flight == 1 and events.queue.qsize() == 1
            monkeypatch.setattr(loop, "time", lambda time=loop.time: time() + 121)
            router.fail_stranded()
            router.fail_stranded()
            received = await all_of(events)
        assert [type(event) for event in received] == [Interrupted, Failed] and received[-1].error.code == "worker_died"

    asyncio.run(main())


def test_a_server_that_shuts_down_waits_for_the_worker_that_takes_the_place_of_a_dead_one() -> None:
    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        async with router.open([job("a")]) as events:
            router.draining = True
            die(router, worker)
            router.fail_stranded()
            worker.stalled = False
            revive(router)
            received = await all_of(events)
        assert isinstance(received[0], Interrupted) and not any(isinstance(event, Failed) for event in received)

    asyncio.run(main())


@pytest.mark.parametrize("beats", [0, 1])
def test_a_worker_without_a_sign_of_life_is_killed(monkeypatch: pytest.MonkeyPatch, beats: int) -> None:
    """Being ready is a sign, too: a worker may hang before its first beat."""
    monkeypatch.setattr("serve.workers.watch.WATCH_INTERVAL_S", 0.001)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    async def main() -> None:
        router, worker = create()
        worker.stalled = True
        router.append([Ready(process.pid, 0, FACTS), "OK"])
        async with router.open([job("a")]) as events:
            for _ in range(beats):
                router.append([Beat(process.pid), "OK"])
            watching = asyncio.create_task(watch(router))
            assert await asyncio.wait_for(anext(aiter(events)), 60) == Interrupted("a")
        assert not router.ready
        watching.cancel()

    asyncio.run(main())
    assert process.wait(60) < 0
