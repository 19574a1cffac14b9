"""What a message asks of the bot: whether it is for the bot at all, and which text or file it is about. Pure."""

from dataclasses import dataclass

from telegram import Document, Message, MessageEntity, User
from telegram.constants import ChatType

from ui.telegram.pieces import units

CUT_UNITS = 4000  # an app cuts a longer text into several messages, of nearly 4,096 units each
LONG_HINT = "This message is as long as Telegram allows: a longer text comes in several messages. To score it as a whole, send a .txt file."


@dataclass(frozen=True, slots=True)
class Source:
    """A text, a file, or a file with the text beside it."""

    text: str = ""
    document: Document | None = None

    @property
    def is_empty(self) -> bool:
        return self.document is None and not self.text.strip()

    @property
    def hint(self) -> str | None:
        return LONG_HINT if self.document is None and units(self.text) >= CUT_UNITS else None


def is_private(message: Message) -> bool:
    return message.chat.type == ChatType.PRIVATE


def source_of(message: Message) -> Source:
    return Source(message.text or message.caption or "", message.document)


def source_for(message: Message, bot: User) -> Source | None:
    """What a message without a command is about; in a group, None unless it mentions the bot or replies to it."""
    source = source_of(message)
    if is_private(message):
        return source
    mentions = _mentions(message, bot)
    if not mentions and not _replies_to(message, bot):
        return None
    text = source.text
    for mention in mentions:
        text = text.replace(mention, " ")
    bare = Source(text.strip(), source.document)
    return replied(message) or bare if bare.is_empty else bare


def replied(message: Message) -> Source | None:
    """What a reply is about: the quoted part, else the message that it replies to. None if there is none that the bot is shown."""
    if message.quote is not None and message.quote.is_manual:
        return Source(message.quote.text)
    earlier = message.reply_to_message
    if earlier is None or earlier.forum_topic_created is not None:  # in a topic, every message "replies" to the topic's beginning
        return None
    source = source_of(earlier)
    return None if source.is_empty else source


def _mentions(message: Message, bot: User) -> list[str]:
    kinds: list[str | None] = [MessageEntity.MENTION, MessageEntity.TEXT_MENTION]
    found = message.parse_entities(kinds) if message.text else message.parse_caption_entities(kinds)
    name = f"@{bot.username}".lower()
    return [text for entity, text in found.items() if text.lower() == name or (entity.user is not None and entity.user.id == bot.id)]


def _replies_to(message: Message, bot: User) -> bool:
    earlier = message.reply_to_message
    return earlier is not None and earlier.from_user is not None and earlier.from_user.id == bot.id
