"""What the bot says to a message, and to whom."""

import asyncio
import logging

import pytest

from app.errors import SetupError
from app.settings import TelegramSettings
from tests.ui.telegram.conftest import ANN, GROUP, QUICK, TEXT, World, enter_chat_mode, until
from ui.client import ServerError
from ui.telegram.bot import create_application
from ui.telegram.commands import HOW_TO_SCORE, MODE_SET, NOTHING
from ui.telegram.failures import CLOSED, UNREACHABLE, is_shut_out
from ui.telegram.verdict import CAVEAT


def test_a_text_gets_a_verdict_in_words_then_numbers_then_limits(world: World):
    async def run() -> None:
        async with world.bot():
            world.telegram.write(ANN, TEXT)
            (reply,) = await world.replies(ANN, 1)
            assert reply.startswith(f"Reads like machine text.\n\nYou sent: {TEXT}\n\nBinoculars score: 0.742")
            assert reply.endswith(CAVEAT)
        assert world.litmus.requests[0]["text"] == TEXT and "user" not in world.litmus.requests[0]

    asyncio.run(run())


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


@pytest.mark.parametrize(
    ("code", "shut_out"),
    [("missing_api_key", True), ("invalid_api_key", True), ("key_banned", True), ("forbidden", True), ("timeout", False)],
)
def test_what_the_owner_has_to_mend(code: str, shut_out: bool):
    assert is_shut_out(ServerError("no", code=code)) is shut_out


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


def test_without_a_token_there_is_no_bot():
    with pytest.raises(SetupError, match="LITMUS_TELEGRAM__TOKEN"):
        create_application(TelegramSettings(), QUICK)
