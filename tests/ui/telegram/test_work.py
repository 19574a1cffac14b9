import asyncio

import pytest

from ui.telegram.work import Busy, End, Job, Work


async def nothing() -> None:
    """What is told to somebody whose answer does not begin: not looked at here."""


def test_one_answer_at_a_time_in_a_chat_in_order_and_others_beside_it():
    steps: list[str] = []

    async def run() -> None:
        work, gate = Work(9, 9, 9), asyncio.Event()

        async def write(job: Job, name: str) -> None:
            steps.append(f"{name} begins")
            await gate.wait()
            steps.append(f"{name} ends")

        for chat, name in ((1, "a"), (1, "b"), (2, "c")):
            work.begin(chat, 1, lambda job, name=name: write(job, name), nothing)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert steps == ["a begins", "c begins"]
        gate.set()
        assert await work.drain(5) == 0
        assert len(work) == 0

    asyncio.run(run())
    assert steps.index("a ends") < steps.index("b begins")


def test_the_bounds_of_a_user_and_of_all():
    async def run() -> None:
        work = Work(9, per_user=2, in_all=3)
        for chat, user in ((1, 1), (2, 1), (3, 2)):
            work.begin(chat, user, lambda job: asyncio.sleep(60), nothing)
        with pytest.raises(Busy, match="last messages"):
            work.begin(4, 1, lambda job: asyncio.sleep(60), nothing)
        with pytest.raises(Busy, match="Too many people"):
            work.begin(5, 3, lambda job: asyncio.sleep(60), nothing)
        assert (await work.stop(1, None, End.STOPPED), await work.stop(1, None, End.STOPPED)) == (1, 0)
        work.begin(1, 1, lambda job: asyncio.sleep(60), nothing)

    asyncio.run(run())


def test_stop_ends_the_answers_of_one_user_of_a_chat():
    async def run() -> None:
        work = Work(9, 9, 9)
        tasks = [work.begin(chat, user, lambda job: asyncio.sleep(60), nothing) for chat, user in ((1, 1), (1, 2), (1, 1), (2, 1))]
        await asyncio.sleep(0)
        assert await work.stop(1, 1, End.STOPPED) == 2
        assert [task.done() for task in tasks] == [True, False, True, False]

    asyncio.run(run())


def test_what_did_not_begin_before_the_end_is_told():
    told: list[str] = []

    async def sorry() -> None:
        told.append("sorry")

    async def run() -> None:
        work = Work(9, 9, 9)
        for _ in range(3):
            work.begin(1, 1, lambda job: asyncio.sleep(60), sorry)
        await asyncio.sleep(0)
        assert await work.drain(0) == 3

    asyncio.run(run())
    assert told == ["sorry"] * 2


def test_an_answer_whose_last_messages_are_on_their_way_is_not_cancelled():
    async def run() -> None:
        work, gate = Work(9, 9, 9), asyncio.Event()

        async def write(job: Job) -> None:
            job.is_closing = True
            await gate.wait()

        task = work.begin(1, 1, write, nothing)
        await asyncio.sleep(0)
        stopping = asyncio.create_task(work.stop(1, None, End.STOPPED))
        await asyncio.sleep(0)
        gate.set()
        assert await stopping == 1 and not task.cancelled()

    asyncio.run(run())
