"""What the bot remembers of chats, in memory only: the mode, and the conversation, bounded in number, length and age.

Pure: callers pass the time. Knows neither Telegram nor HTTP.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Mode = Literal["score", "chat"]
MODES: tuple[Mode, ...] = get_args(Mode)
MAX_MODES = 100_000  # a mode is a word: more of them are kept than conversations
Turn = dict[str, str]  # of a request's `messages`: role and content


@dataclass(frozen=True, slots=True)
class Bounds:
    chats: int
    messages: int
    chars: int
    age_s: float


@dataclass(slots=True)
class Conversation:
    turns: list[Turn] = field(default_factory=list)
    used_s: float = 0.0

    def add(self, question: str, answer: str, bounds: Bounds) -> None:
        """Adds the two turns and drops the oldest two while there are too many, or while they are too long."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        while self.turns and (len(self.turns) > bounds.messages or sum(len(turn["content"]) for turn in self.turns) > bounds.chars):
            del self.turns[:2]


class Chats:
    """By the id of the chat. In a group all who talk to the bot share one conversation."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._conversations: OrderedDict[int, Conversation] = OrderedDict()  # the one that rested longest is first
        self._modes: OrderedDict[int, Mode] = OrderedDict()

    def __len__(self) -> int:
        return len(self._conversations)

    def mode(self, chat: int) -> Mode:
        return self._modes.get(chat, "score")

    def set_mode(self, chat: int, mode: Mode) -> None:
        self._modes.pop(chat, None)
        if mode != "score":
            self._modes[chat] = mode
        while len(self._modes) > MAX_MODES:
            self._modes.popitem(last=False)

    def turns(self, chat: int, now_s: float) -> Sequence[Turn]:
        self.expire(now_s)
        found = self._conversations.get(chat)
        return list(found.turns) if found else []

    def add(self, chat: int, question: str, answer: str, now_s: float) -> None:
        self.expire(now_s)
        conversation = self._conversations.setdefault(chat, Conversation())
        conversation.add(question, answer, self._bounds)
        conversation.used_s = now_s
        self._conversations.move_to_end(chat)
        while len(self._conversations) > self._bounds.chats:
            self._conversations.popitem(last=False)

    def forget(self, chat: int) -> bool:
        """Whether there was a conversation."""
        return self._conversations.pop(chat, None) is not None

    def leave(self, chat: int) -> None:
        """Nothing of this chat is kept."""
        self.forget(chat)
        self._modes.pop(chat, None)

    def expire(self, now_s: float) -> None:
        """Deletes the conversations that rested too long."""
        while self._conversations:
            chat, oldest = next(iter(self._conversations.items()))
            if now_s - oldest.used_s < self._bounds.age_s:
                return
            del self._conversations[chat]
