from typing import Any

import pytest
from telegram import Message, User

from tests.ui.telegram.botapi import BOT, chat_of, entities
from ui.telegram.messages import LONG_HINT, Source, replied, source_for

ME = User(BOT["id"], BOT["first_name"], is_bot=True, username=BOT["username"])
GROUP = -100


def message(text: str = "", chat: int = GROUP, **fields: Any) -> Message:
    content = {"text": text, "entities": entities(text)} if text else {}
    sender = {"id": 7, "is_bot": False, "first_name": "Ann"}
    found = Message.de_json({"message_id": 1, "date": 1, "chat": chat_of(chat), "from": sender, **content, **fields}, None)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("@litmusbot A fox.", "A fox."),
        ("@LITMUSBOT A fox.", "A fox."),
        ("A fox. @litmusbot", "A fox."),
        ("@otherbot A fox.", None),
        ("A fox, said litmusbot.", None),
    ],
)
def test_a_mention_is_heard_and_left_out(text: str, heard: str | None):
    assert source_for(message(text), ME) == (None if heard is None else Source(heard))
    assert source_for(message(text, chat=7), ME) == Source(text), "in a private chat all is said to the bot"


def test_a_bot_is_mentioned_by_its_id_too():
    mention = {"type": "text_mention", "offset": 0, "length": 6, "user": BOT}
    assert source_for(message("Litmus: a fox.", entities=[mention]), ME) == Source(": a fox.")


def test_a_file_is_for_the_bot_if_its_caption_says_so():
    document = {"file_id": "1", "file_unique_id": "1", "file_name": "a.txt"}
    mention = {"caption": "@litmusbot", "caption_entities": entities("@litmusbot")}
    found = source_for(message(document=document, **mention), ME)
    assert found is not None and found.document is not None and not found.is_empty
    assert source_for(message(document=document), ME) is None


def test_what_a_reply_is_about():
    earlier = {"message_id": 2, "date": 1, "chat": chat_of(GROUP)}
    assert replied(message("/score")) is None
    assert replied(message("/score", reply_to_message={**earlier, "text": "A fox."})) == Source("A fox.")
    assert replied(message("/score", reply_to_message={**earlier, "caption": "A crow."})) == Source("A crow.")
    assert replied(message("/score", reply_to_message=earlier)) is None, "a picture without words"
    assert replied(message("/score", quote={"text": "fox", "position": 2, "is_manual": True})) == Source("fox")
    topic = {**earlier, "forum_topic_created": {"name": "A topic", "icon_color": 1}}
    assert replied(message("/score", reply_to_message={**topic, "text": "x"})) is None


def test_a_message_of_full_length_may_be_a_part_only():
    assert Source("a" * 4000).hint == LONG_HINT
    assert Source("a" * 3999).hint is None
