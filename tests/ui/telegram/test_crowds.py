"""Many users at once, and users who want more than their share."""

import asyncio

from tests.ui.telegram.botapi import Json, Refusal
from tests.ui.telegram.conftest import ANN, TEXT, World, enter_chat_mode, until
from ui.telegram.answers import Pace
from ui.telegram.commands import MODE_SET


def test_fifty_users_at_once_get_their_own_answers(world: World):
    """Half of them chat, half of them have texts scored; each asks twice, and each question is like no other."""
    users = list(range(1, 51))
    questions = {user: [f"This is question {number} of the user {user * 7919}." for number in range(2)] for user in users}
    world.litmus.wait_s = 0.002

    async def run() -> None:
        async with world.bot(Pace(0.5, 0.5, 10_000, 10_000), requests=16):
            await enter_chat_mode(world, *users[:25])
            for number in range(2):
                for user in users:
                    world.telegram.write(user, questions[user][number])
            for user in users[:25]:
                assert await world.replies(user, 3) == [MODE_SET["chat"], *(f"You said: {question}" for question in questions[user])]
            for user in users[25:]:
                replies = await world.replies(user, 2)
                assert [reply.splitlines()[2] for reply in replies] == [f"You sent: {question}" for question in questions[user]]
        assert 1 < world.litmus.most <= 16

    asyncio.run(run())
    for request in world.litmus.requests:
        said = [message["content"] for message in request.get("messages", [])]
        assert not said or len({user for user in users for word in said if f"user {user * 7919}." in word}) == 1, "a stranger's words"


def test_telegrams_429_are_waited_for_and_no_answer_is_lost(world: World):
    """Two of the answers are refused once."""
    refused: set[str] = set()

    def refuse(method: str, parameters: Json) -> None:
        text = parameters.get("text", "")
        if method == "sendMessage" and text.endswith(("2", "4")) and text not in refused:
            refused.add(text)
            raise Refusal(429, "Too Many Requests: retry after 0", retry_after=0)

    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, *range(1, 7))
            world.telegram.refuse = refuse
            for user in range(1, 7):
                world.telegram.write(user, f"I am {user}")
            for user in range(1, 7):
                assert (await world.replies(user, 2))[1] == f"You said: I am {user}"
        assert len(refused) == 2

    asyncio.run(run())


def test_a_flood_has_no_echo_and_others_do_not_notice(world: World):
    async def run() -> None:
        async with world.bot(messages_per_minute=3):
            for number in range(30):
                world.telegram.write(ANN, f"{TEXT} {number}")
            world.telegram.write(8, TEXT)
            await world.replies(8, 1)
            replies = await world.replies(ANN, 4)
        assert len(replies) == 4 and len(world.litmus.requests) == 4
        assert [reply for reply in replies if "3 messages a minute" in reply]

    asyncio.run(run())


def test_one_user_does_not_wait_for_too_many_answers(world: World):
    async def run() -> None:
        async with world.bot(requests_per_user=2):
            await enter_chat_mode(world, ANN)
            for number in range(3):
                world.telegram.write(ANN, f"HOLD {number}")
            assert "still busy" in (await world.replies(ANN, 2))[1]
            world.litmus.release = True
            assert set((await world.replies(ANN, 4))[2:]) == {"You said: HOLD 0", "You said: HOLD 1"}

    asyncio.run(run())


def test_too_many_users_at_once_are_told_so(world: World):
    async def run() -> None:
        async with world.bot(max_waiting=2):
            await enter_chat_mode(world, 1, 2, 3)
            for user in (1, 2, 3):
                world.telegram.write(user, "HOLD")
            assert "Too many people" in (await world.replies(3, 2))[1]
            world.litmus.release = True
            await world.replies(1, 2)

    asyncio.run(run())


def test_commands_are_heard_while_answers_are_written(world: World):
    async def run() -> None:
        async with world.bot(requests=1):
            await enter_chat_mode(world, ANN, 8)
            world.telegram.write(ANN, "HOLD")
            world.telegram.write(8, "HOLD")
            await until(lambda: len(world.litmus.requests) == 1)
            world.telegram.write(8, "/help")
            assert "/forget" in (await world.replies(8, 2))[1]
            assert world.litmus.running == 1
            world.litmus.release = True
            await world.replies(8, 3)

    asyncio.run(run())
