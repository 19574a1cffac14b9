import asyncio
import logging

import pytest

from app.errors import SetupError
from app.settings import TelegramSettings
from tests.ui.telegram.botapi import Json, Refusal
from tests.ui.telegram.conftest import QUICK, World, until
from ui.telegram.answers import CUT, Pace
from ui.telegram.bot import create_application
from ui.telegram.commands import HOW_TO_SCORE, MODE_SET, NOTHING
from ui.telegram.failures import CLOSED, LOST, UNREACHABLE
from ui.telegram.verdict import CAVEAT

ANN, GROUP = 7, -100
TEXT = "A fox met a crow."


async def enter_chat_mode(world: World, *users: int) -> None:
    for user in users:
        world.telegram.write(user, "/mode chat")
    for user in users:
        assert await world.replies(user, 1) == [MODE_SET["chat"]]


def test_a_text_gets_a_verdict_in_words_then_numbers_then_limits(world: World):
    async def run() -> None:
        async with world.bot():
            world.telegram.write(ANN, TEXT)
            (reply,) = await world.replies(ANN, 1)
            assert reply.startswith(f"Reads like machine text.\n\nYou sent: {TEXT}\n\nBinoculars score: 0.742")
            assert reply.endswith(CAVEAT)
        assert world.litmus.requests[0]["text"] == TEXT and "user" not in world.litmus.requests[0]

    asyncio.run(run())


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


def test_a_conversation_goes_on_until_it_is_forgotten(world: World):
    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            for number, text in enumerate(("one", "two", "/forget", "three"), 2):
                world.telegram.write(ANN, text)
                await world.replies(ANN, number)
        sent = [[message["content"] for message in request["messages"]] for request in world.litmus.requests]
        assert sent == [["one"], ["one", "You said: one", "two"], ["three"]]
        assert "Our conversation is deleted." in world.telegram.sent(ANN)

    asyncio.run(run())


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
            world.litmus.wait_s = 0.02
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


def test_a_server_that_fails_is_a_sentence_and_the_bot_goes_on(world: World):
    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            world.litmus.refuse(429, "256 requests wait already", "queue_full")
            world.telegram.write(ANN, "one")
            assert (await world.replies(ANN, 2))[1] == "256 requests wait already. Try again in 7 s."
            world.litmus.refuse(401, "this server needs a key", "invalid_api_key")
            world.telegram.write(ANN, "/score two")
            assert (await world.replies(ANN, 3))[2] == CLOSED
            world.telegram.write(ANN, "three")
            assert (await world.replies(ANN, 4))[3] == "You said: three"
        assert [len(request["messages"]) for request in world.litmus.requests if "messages" in request] == [1, 1], (
            "no turn without an answer"
        )

    asyncio.run(run())


def test_a_server_that_is_down_is_a_sentence_without_its_address(world: World):
    async def run() -> None:
        async with world.bot(server="http://127.0.0.1:9"):
            await enter_chat_mode(world, ANN)
            world.telegram.write(ANN, "one")
            assert (await world.replies(ANN, 2))[1] == UNREACHABLE
            world.telegram.write(ANN, "/score two")
            assert (await world.replies(ANN, 3))[2] == UNREACHABLE

    asyncio.run(run())


def test_a_conversation_that_is_too_long_for_the_model_loses_its_beginning(world: World):
    async def run() -> None:
        async with world.bot():
            await enter_chat_mode(world, ANN)
            for number in range(4):
                world.telegram.write(ANN, f"number {number}")
                await world.replies(ANN, number + 2)
            world.litmus.refuse(400, "the prompt has 9,000 tokens", "context_length_exceeded")
            world.telegram.write(ANN, "number 4")
            assert (await world.replies(ANN, 6))[5] == "You said: number 4"
        first = [request["messages"][0]["content"] for request in world.litmus.requests[-2:]]
        assert first == ["number 0", "number 2"]

    asyncio.run(run())


def test_a_file_is_scored_or_refused_in_a_sentence(world: World):
    async def run() -> None:
        async with world.bot(max_file_bytes=100):
            world.telegram.send_file(ANN, "Story.TXT", "Ein Füchslein.".encode("utf-16"))
            assert "You sent: Ein Füchslein." in (await world.replies(ANN, 1))[0]
            world.telegram.send_file(ANN, "story.pdf", b"%PDF")
            assert ".txt files only" in (await world.replies(ANN, 2))[1]
            world.telegram.send_file(ANN, "story.txt", b"a" * 101)
            assert "too large: 101 bytes" in (await world.replies(ANN, 3))[2]
            world.telegram.write(ANN, photo=[{"file_id": "1", "file_unique_id": "1", "width": 1, "height": 1}])
            assert (await world.replies(ANN, 4))[3] == NOTHING
        assert len(world.litmus.requests) == 1

    asyncio.run(run())


def test_a_reply_with_score_scores_that_message_or_the_part_it_quotes(world: World):
    earlier = {"message_id": 1, "date": 1, "chat": {"id": ANN, "type": "private"}, "text": TEXT}

    async def run() -> None:
        async with world.bot():
            world.telegram.write(ANN, "/score", reply_to_message=earlier)
            world.telegram.write(ANN, "/score", reply_to_message=earlier, quote={"text": "a crow", "position": 10, "is_manual": True})
            world.telegram.write(ANN, "/score My own words.")
            world.telegram.write(ANN, "/score")
            assert HOW_TO_SCORE in await world.replies(ANN, 4)
        assert sorted(request["text"] for request in world.litmus.requests) == [TEXT, "My own words.", "a crow"]

    asyncio.run(run())


def test_in_a_group_only_what_is_said_to_the_bot_is_heard(world: World):
    mine = {
        "message_id": 1,
        "date": 1,
        "chat": {"id": GROUP, "type": "supergroup"},
        "from": {"id": 4242, "is_bot": True, "first_name": "L"},
    }
    theirs = {**mine, "from": {"id": 9, "is_bot": False, "first_name": "B"}, "text": "What they said."}

    async def run() -> None:
        async with world.bot():
            for text in ("Good morning.", "@otherbot hear me", "/unknown", "/score@otherbot this"):
                world.telegram.write(GROUP, text, user=ANN)
            world.telegram.write(GROUP, "A reply to them.", user=ANN, reply_to_message=theirs)
            world.telegram.write(GROUP, "@litmusbot To you.", user=ANN)
            world.telegram.write(GROUP, "A reply to you.", user=ANN, reply_to_message={**mine, "text": "x"})
            world.telegram.write(GROUP, "@LitmusBot", user=ANN, reply_to_message=theirs)
            await world.replies(GROUP, 3)
        assert sorted(request["text"] for request in world.litmus.requests) == ["A reply to you.", "To you.", "What they said."]
        assert all("reply_parameters" in call.parameters for call in world.telegram.of("sendMessage")), "in a group it says whom it answers"

    asyncio.run(run())


def test_only_the_users_of_the_list_are_answered(world: World):
    async def run() -> None:
        async with world.bot(users=(ANN,)):
            world.telegram.write(8, TEXT)
            assert "8" in (await world.replies(8, 1))[0]
            world.telegram.write(GROUP, "@litmusbot hello", user=8)
            world.telegram.write(8, "/stop")
            world.telegram.write(ANN, TEXT)
            await world.replies(ANN, 1)
        assert len(world.litmus.requests) == 1 and not world.telegram.sent(GROUP)

    asyncio.run(run())


def test_the_buttons_of_mode(world: World):
    async def run() -> None:
        async with world.bot():
            world.telegram.write(ANN, "/mode")
            assert MODE_SET["score"] in (await world.replies(ANN, 1))[0]
            world.telegram.press(ANN, "mode:chat")
            await until(lambda: world.telegram.sent(ANN) == [MODE_SET["chat"]])
            world.telegram.press(ANN, "mode:chat")
            await until(lambda: len(world.telegram.of("answerCallbackQuery")) == 2)
            world.telegram.write(ANN, "Hello")
            assert (await world.replies(ANN, 2))[1] == "You said: Hello"

    asyncio.run(run())


def test_what_the_bot_says_of_itself(world: World):
    async def run() -> None:
        async with world.bot(messages_per_minute=123, conversation_minutes=45):
            for number, command in enumerate(("/start", "/help", "/privacy", "/what"), 1):
                world.telegram.write(ANN, command)
                await world.replies(ANN, number)
        start, words, privacy, unknown = world.telegram.sent(ANN)
        assert "/privacy" in start and "123 messages a minute" in words
        assert "Telegram itself sees everything" in privacy and "45 minutes" in privacy
        assert "/help" in unknown
        commands = world.telegram.of("setMyCommands")[0].parameters["commands"]
        assert all(f'"{name}"' in commands for name in ("score", "mode", "stop", "forget", "privacy", "help"))

    asyncio.run(run())


def test_a_message_of_long_ago_and_one_of_another_bot_are_left_alone(world: World):
    async def run() -> None:
        async with world.bot():
            world.telegram.write(ANN, TEXT, date=1)
            world.telegram.write(GROUP, "@litmusbot hello", **{"from": {"id": 5, "is_bot": True, "first_name": "Other"}})
            world.telegram.write(ANN, "/score now")
            await world.replies(ANN, 1)
        assert [request["text"] for request in world.litmus.requests] == ["now"] and not world.telegram.sent(GROUP)

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


def test_an_error_that_nobody_foresaw_is_told_and_logged_without_its_words(world: World, monkeypatch, caplog):
    monkeypatch.setattr("ui.telegram.answers.verdict_text", lambda *_: 1 / 0)

    async def run() -> None:
        async with world.bot():
            world.telegram.write(ANN, TEXT)
            assert "Something went wrong" in (await world.replies(ANN, 1))[0]

    with caplog.at_level(logging.INFO, "ui"):
        asyncio.run(run())
    assert "a message could not be answered" in caplog.text and TEXT not in caplog.text


def test_the_key_goes_to_the_server(world: World):
    async def run() -> None:
        async with world.bot(key="the-key-of-the-bot", model="base"):
            world.telegram.write(ANN, TEXT)
            await world.replies(ANN, 1)
        assert world.litmus.keys == ["Bearer the-key-of-the-bot"] and world.litmus.requests[0]["model"] == "base"

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


def test_without_a_token_there_is_no_bot():
    with pytest.raises(SetupError, match="LITMUS_TELEGRAM__TOKEN"):
        create_application(TelegramSettings(), QUICK)
