"""Several models behind one router: limits, dead workers and remembered prompts of one model do not affect the others."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import psutil
import pytest
from fakes import FACTS, FakeEngine, FakeWorker

from app.engine.events import Delta
from app.engine.notices import Interrupted
from app.engine.request import Embed, Generate, SamplingParams, Score
from app.errors import InvalidRequest, NotReady, QueueFull, UnknownModel
from app.settings import QueueSettings
from serve.workers.fleet import tokens_of
from serve.workers.messages import Ready
from serve.workers.router import Router
from serve.workers.watch import watch


def job(name: str, first: int = 0) -> Generate:
    return Generate(name, tuple(range(first, first + 64)), 3, SamplingParams(seed=1))


def create(models: Sequence[str], waiting: int = 1, loaded: Sequence[int] | None = None) -> tuple[Router, list[FakeWorker]]:
    """A router with stalled workers for the replicas in `loaded`, by default for all."""
    router = Router(models, QueueSettings(max_waiting=waiting))
    workers = [FakeWorker(router, FakeEngine()) for _ in models]
    for replica, worker in zip(router.replicas, workers, strict=True):
        replica.queue = worker
        worker.stalled = True
        if loaded is None or replica.number in loaded:
            greet(router, replica.number, psutil.Process().pid)
    return router, workers


def greet(router: Router, number: int, pid: int) -> None:
    router.append([Ready(pid, number, replace(FACTS, name=router.replicas[number].model, context=64 + number)), "OK"])


@pytest.mark.parametrize(
    ("max_waiting", "load", "lengths", "portion"),
    [
        (3, 0, [1] * 9, 2),  # half of two slots and three waiting places
        (3, 5, [1] * 9, 1),
        (300, 0, [1] * 9, 9),
        (300, 0, [1] * 2048, 64),
        (300, 250, [1] * 2048, 26),
        (300, 0, [100] * 2048, 10),  # a quarter of the tokens that may wait
        (300, 0, [2000, 1], 1),
    ],
)
def test_a_long_request_takes_portions_that_leave_room(max_waiting: int, load: int, lengths: list[int], portion: int) -> None:
    router = Router(["a"], QueueSettings(max_waiting=max_waiting, max_waiting_tokens=4096))
    greet(router, 0, psutil.Process().pid)
    router.replicas[0].load = load
    assert router.fleet("a").portion(lengths) == portion


@pytest.mark.parametrize(
    ("models", "full", "max_jobs"),
    [(["a", "b"], "a", {"a": 3, "b": 3}), (["a", "b"], "b", {"a": 3, "b": 3}), (["a", "a", "b"], "a", {"a": 5, "b": 3})],
)
def test_a_full_model_refuses_only_its_own_requests(models: list[str], full: str, max_jobs: dict[str, int]) -> None:
    async def main() -> None:
        router, _ = create(models)
        other = next(model for model in max_jobs if model != full)
        async with AsyncExitStack() as stack:
            for index in range(max_jobs[full]):
                await stack.enter_async_context(router.open([job(f"{full} {index}")], full))
            with pytest.raises(QueueFull, match=f"{max_jobs[full]} of at most {max_jobs[full]} answers and texts of '{full}'"):
                await stack.enter_async_context(router.open([job("more")], full))
            for index in range(max_jobs[other]):
                await stack.enter_async_context(router.open([job(f"{other} {index}")], other))
            assert router.in_flight == max_jobs[full] + max_jobs[other]
        with pytest.raises(InvalidRequest, match=f"at most {max_jobs[other]} may be in flight"):
            await stack.enter_async_context(router.open([job(str(index)) for index in range(max_jobs[other] + 1)], other))

    asyncio.run(main())


@pytest.mark.parametrize(("model", "number"), [(None, 0), ("a", 0), ("b", 1)])
def test_a_request_goes_to_the_model_it_names(model: str | None, number: int) -> None:
    async def main() -> None:
        router, workers = create(["a", "b"])
        async with router.open([job("x")], model):
            assert [list(worker.engine.jobs) for worker in workers] == [["x"] if place == number else [] for place in (0, 1)]
        assert router.facts(model).context == 64 + number

    asyncio.run(main())


def test_a_conversation_goes_back_to_its_replica_of_the_same_model() -> None:
    """A prompt that one model has read does not influence the choice of another model's replica."""

    async def main() -> None:
        router, workers = create(["a", "a", "b", "b"], waiting=100)
        async with AsyncExitStack() as stack:
            for name, model in (("0", "b"), ("1", "b"), ("2", "a")):
                await stack.enter_async_context(router.open([job(name, 1000 * int(name))], model))
            assert list(workers[3].engine.jobs) == ["1"]
            await stack.enter_async_context(router.open([job("the same to a", 1000)], "a"))
            await stack.enter_async_context(router.open([job("the same to b", 1000)], "b"))
            assert "the same to a" in workers[1].engine.jobs and "the same to b" in workers[3].engine.jobs

    asyncio.run(main())


def test_a_dead_worker_interrupts_only_the_requests_of_its_model() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    async def main() -> None:
        router, workers = create(["a", "b"])
        greet(router, 0, process.pid)
        watching = asyncio.create_task(watch(router))
        async with router.open([job("doomed")], "a") as doomed, router.open([job("kept")], "b") as kept:
            process.kill()
            assert await anext(aiter(doomed)) == Interrupted("doomed")
            assert ([bool(router.fleet(name).alive) for name in "ab"], router.ready) == ([False, True], False)
            workers[1].stalled = False
            assert [type(event) for event in [event async for event in kept]] == [Delta] * 3
            assert "doomed" not in workers[1].engine.jobs
        with pytest.raises(NotReady, match="'a' is not loaded at the moment"):
            await router.open([job("later")], "a").__aenter__()
        async with router.open([job("later")], "b"):
            pass
        greet(router, 0, psutil.Process().pid)
        assert router.ready
        watching.cancel()

    asyncio.run(main())
    process.wait()


def test_the_shortest_context_of_the_replicas_is_the_models() -> None:
    """Memory may hold less of it beside one that started earlier."""
    router, _ = create(["a", "a"])
    for number, context in ((0, 8192), (1, 4096)):
        router.append([Ready(psutil.Process().pid, number, replace(FACTS, name="a", context=context)), "OK"])
    assert router.facts("a").context == 4096


@pytest.mark.parametrize(("setting", "expected"), [(None, 8192), ("model.context", 4096)])
def test_what_memory_cut_may_be_the_models_own_when_it_is_loaded_again(setting: str | None, expected: int) -> None:
    router, _ = create(["a"])
    facts = replace(FACTS, name="a", context=4096, largest_context=8192, context_setting=setting)
    router.append([Ready(psutil.Process().pid, 0, facts), "OK"])
    fleet = router.fleet("a")
    fleet.wake = lambda: None
    assert fleet.facts.context == 4096
    fleet.replicas[0].worker = None
    assert fleet.facts.context == expected


def test_a_loading_model_is_reported_and_the_other_one_serves() -> None:
    router, _ = create(["a", "b"], loaded=[1])
    assert (router.ready, [bool(router.fleet(name).alive) for name in "ab"], router.models) == (False, [False, True], ["a", "b"])
    assert [facts.name for facts in router.loaded_facts()] == ["b"]
    assert router.facts("b").name == "b"
    for model in (None, "a"):
        with pytest.raises(NotReady, match="'a' is still loading"):
            router.facts(model)
    greet(router, 0, psutil.Process().pid)
    assert router.ready and [facts.name for facts in router.loaded_facts()] == ["a", "b"]


def test_a_model_is_ready_with_one_of_its_replicas() -> None:
    router, _ = create(["a", "a", "b"], loaded=[1, 2])
    assert router.ready


def test_an_unknown_model_or_replica_is_refused_with_the_known_ones() -> None:
    router, _ = create(["a", "b"])
    with pytest.raises(UnknownModel, match="'c' is not served here; this server has 'a', 'b'"):
        router.facts("c")
    with pytest.raises(InvalidRequest, match=r"'b' has no replica 1; its replicas are 0\.\.0"):
        asyncio.run(router.report("b", 1))


def test_the_tokens_that_wait_are_bounded_and_those_with_slots_do_not_count() -> None:
    """The fake model has two slots; each job has 64 tokens."""

    async def main() -> None:
        router, _ = create(["a"], waiting=100)
        router._fleets["a"].queue_settings = QueueSettings.model_construct(
            max_waiting=router.queue_settings.max_waiting, max_waiting_tokens=130
        )
        async with AsyncExitStack() as stack:
            for index in range(2):
                await stack.enter_async_context(router.open([job(f"running {index}")]))
            async with AsyncExitStack() as waiting:
                for index in range(2):
                    await waiting.enter_async_context(router.open([job(f"waiting {index}")]))
                refusal = r"192 tokens of prompts and texts of 'a' would wait, at most 130 may \(queue.max_waiting_tokens\)"
                with pytest.raises(QueueFull, match=refusal):
                    await waiting.enter_async_context(router.open([job("more")]))
                assert router.in_flight == 4
            with pytest.raises(QueueFull, match="192 tokens"):
                await stack.enter_async_context(router.open([job(str(index)) for index in range(3)]))
            await stack.enter_async_context(router.open([job(str(index)) for index in range(2)]))

    asyncio.run(main())


def test_a_request_that_nobody_waits_before_is_taken_however_long_it_is() -> None:
    async def main() -> None:
        router, _ = create(["a"], waiting=100)
        router._fleets["a"].queue_settings = QueueSettings.model_construct(
            max_waiting=router.queue_settings.max_waiting, max_waiting_tokens=130
        )
        async with router.open([job(str(index)) for index in range(10)]):
            pass
        async with router.open([job(str(index)) for index in range(10)]):
            with pytest.raises(QueueFull, match="576 tokens"):
                await router.open([job("more")]).__aenter__()

    asyncio.run(main())


def test_a_job_has_the_tokens_that_are_read_for_it() -> None:
    assert [tokens_of(job) for job in (job("a"), Score("b", (1, 2, 3), ()), Embed("c", (1, 2)))] == [64, 3, 2]


def test_the_capacity_is_that_of_all_models_and_known_before_they_have_loaded() -> None:
    router, _ = create(["a", "a", "b"], waiting=10, loaded=[0])
    assert router.capacity == (2 + 10) + 10
    greet(router, 1, psutil.Process().pid)
    greet(router, 2, psutil.Process().pid)
    assert router.capacity == (4 + 10) + (2 + 10)
    router.replicas[0].worker = None
    assert router.capacity == (2 + 10) + (2 + 10)
