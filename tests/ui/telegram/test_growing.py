"""An answer grows while it is written, is cut where it must be, and comes whole."""

import asyncio

import pytest

from tests.ui.telegram.botapi import Json, Refusal
from tests.ui.telegram.conftest import ANN, GROUP, TEXT, World, enter_chat_mode, until
from ui.telegram.answers import CUT, Pace
from ui.telegram.commands import MODE_SET
from ui.telegram.failures import LOST


def test_an_answer_grows_in_drafts_and_comes_as_one_message(world: World):
    world.litmus.comment = ": queued position=2 eta_s=4"

    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            world.telegram.write(ANN, "HOLD the line")
            await until(lambda: "You said:" in world.telegram.frames(ANN))
            assert world.telegram.sent(ANN) == [MODE_SET["chat"]], "a draft is no message"
            world.litmus.release = True
            assert await world.replies(ANN, 2) == [MODE_SET["chat"], "You said: HOLD the line"]
        assert len({call.parameters["draft_id"] for call in world.telegram.of("sendMessageDraft")}) == 1
        others = {text for text in world.telegram.frames(ANN) if not "You said: HOLD the line".startswith(text)}
        assert others <= {"Waiting: place 2 in the queue, about 4 s"}

    asyncio.run(run())


def test_in_a_group_and_where_drafts_are_refused_a_message_is_edited(world: World):
    world.telegram.has_drafts = False

    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            world.telegram.write(GROUP, "/mode@litmusbot chat", user=ANN)
            await world.replies(GROUP, 1)
            world.telegram.write(ANN, "HOLD one")
            world.telegram.write(GROUP, "@litmusbot HOLD two", user=ANN)
            await until(lambda: all("You said:" in world.telegram.sent(chat) for chat in (ANN, GROUP)))
            world.litmus.release = True
            await until(lambda: "You said: HOLD one" in world.telegram.sent(ANN) and "You said: HOLD two" in world.telegram.sent(GROUP))
            assert len(world.telegram.sent(ANN)) == len(world.telegram.sent(GROUP)) == 2
        assert not world.telegram.frames(GROUP)
        edits = world.telegram.of("editMessageText")
        assert all(call.answered for call in edits), "no edit without a change"

    asyncio.run(run())


def test_frames_are_left_out_rather_than_sent_too_often(world: World):
    """With an hour between two frames there is one, whatever the number of words; the whole answer comes all the same."""
    world.litmus.wait_s = 0.001
    question = "word " * 100 + "end"

    async def run() -> None:
        async with world.bot(Pace(3600, 3600, 10_000, 10_000)):
            await enter_chat_mode(world, ANN)
            world.telegram.write(ANN, question)
            assert (await world.replies(ANN, 2))[1] == f"You said: {question}"
        assert len(world.telegram.frames(ANN)) == 1

    asyncio.run(run())


def test_a_long_answer_comes_in_several_messages(world: World):
    world.litmus.answer = "\n".join(f"{line}: " + "🦊" * 100 for line in range(60))  # 60 lines of 205 units

    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            world.telegram.write(ANN, "tell me")
            pieces = (await world.replies(ANN, 5))[1:]
            assert "\n".join(pieces) == world.litmus.answer and len(pieces) == 4

    asyncio.run(run())


def test_an_answer_that_was_cut_or_is_empty_says_so(world: World):
    async def run() -> None:
        async with world.bot(max_tokens=5):
            await enter_chat_mode(world, ANN)
            world.litmus.finish_reason = "length"
            world.telegram.write(ANN, "tell me")
            assert "5 tokens" in (await world.replies(ANN, 2))[1]
            world.litmus.answer, world.litmus.finish_reason = " ", "stop"
            world.telegram.write(ANN, "tell me more")
            assert (await world.replies(ANN, 3))[2] == "The model gave an empty answer."
        assert world.litmus.requests[0]["max_tokens"] == 5

    asyncio.run(run())


def test_stop_closes_the_request_and_keeps_what_there_is(world: World):
    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            world.telegram.write(ANN, "HOLD this")
            await until(lambda: "You said:" in world.telegram.frames(ANN))
            world.telegram.write(ANN, "/stop")
            assert (await world.replies(ANN, 3))[1:] == ["You said:\n\n…", "Stopped."]
            await until(lambda: world.litmus.left == ["HOLD this"])
            world.telegram.write(ANN, "/stop")
            assert (await world.replies(ANN, 4))[3] == "There is nothing to stop."

    asyncio.run(run())


@pytest.mark.parametrize("how", ["block", "leave"])
def test_an_answer_to_somebody_who_left_is_not_computed(world: World, how: str):
    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            world.litmus.wait_s = 0.1
            world.telegram.write(ANN, "HOLD me" if how == "leave" else "word " * 500)
            await until(lambda: any(world.telegram.frames(ANN)))
            if how == "block":
                world.telegram.blocked.add(ANN)
            else:
                world.telegram.leave(ANN)
            await until(lambda: world.litmus.left)
            world.telegram.write(8, TEXT)
            assert len(await world.replies(8, 1)) == 1, "the bot goes on"
        assert world.telegram.sent(ANN) == [MODE_SET["chat"]]

    asyncio.run(run())


def test_a_frame_that_telegram_refuses_costs_the_frame_only(world: World):
    def refuse(method: str, parameters: Json) -> None:
        if method == "sendMessageDraft":
            raise Refusal(500, "Internal Server Error")

    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            world.telegram.refuse = refuse
            world.telegram.write(ANN, "Good evening")
            assert (await world.replies(ANN, 2))[1] == "You said: Good evening"

    asyncio.run(run())


def test_the_end_lets_answers_finish_and_says_which_it_cut(world: World):
    async def run() -> None:
        async with world.bot(drain_s=0) as application:
            await enter_chat_mode(world, ANN, 8)
            world.telegram.write(ANN, "HOLD the first")
            world.telegram.write(ANN, "the second")
            world.litmus.wait_s = 0.02
            world.telegram.write(8, "quick")
            await until(lambda: "You said:" in world.telegram.frames(ANN) and not application.update_queue.qsize())
            await world.replies(8, 2)
        assert sorted(world.telegram.sent(ANN)[1:]) == sorted([f"You said:\n\n{CUT}", CUT])
        assert world.telegram.sent(8)[1] == "You said: quick"

    asyncio.run(run())


def test_a_stream_that_breaks_keeps_what_came(world: World):
    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            world.litmus.answer = "first words"
            world.litmus.finish_reason = "\udc00"  # no such character can be sent: the server breaks off
            world.telegram.write(ANN, "tell me")
            assert (await world.replies(ANN, 2))[1] == f"first words\n\n{LOST}"

    asyncio.run(run())
