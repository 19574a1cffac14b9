"""Builds the request bodies of the load: chats and scores from a built-in word list. The same seed gives the same bodies."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.schemas import ChatRequest, Message, ScoreRequest, StreamOptions

WORDS = (
    "king queen fox crow river forest castle bridge mountain village farmer miller sister brother wolf golden ring apple garden "
    "winter summer night morning road door window fire water bread stone tree bird horse ship sea island star moon sun old young "
    "wise brave kind little great dark bright walked said found lost gave took came went saw heard asked answered lived slept"
).split()

LENGTHS = {"short": (5, 40), "medium": (80, 200), "long": (350, 500)}  # number of words: minimum, maximum
PREFIX_WORDS = 120  # length of a shared system message


@dataclass(frozen=True, slots=True)
class Mix:
    """Which prompts are drawn: the weight of each length class of `LENGTHS`, and the share of chats with a shared system message.

    `prefixes` is how many different shared system messages there are.
    """

    lengths: Mapping[str, float]
    prefixes: int
    prefix_share: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages of a chat, its length class, and the number of its shared system message (None: it has none)."""

    messages: tuple[Message, ...]
    length: str
    prefix: int | None


def random_text(rng: random.Random, words: int) -> str:
    """Meaningless sentences of 6 to 14 words each, `words` in all."""
    chosen = rng.choices(WORDS, k=words)
    sentences = []
    while chosen:
        length = rng.randint(6, 14)
        sentences.append(" ".join(chosen[:length]).capitalize() + ".")
        del chosen[:length]
    return " ".join(sentences)


def story_request(rng: random.Random, words: int) -> str:
    """The content of a first user message: a sentence of 10 words that asks for a story, then `words` random ones."""
    return f"Tell me a story about a {rng.choice(WORDS)} and a {rng.choice(WORDS)}. {random_text(rng, words)}"


def first_prompt(rng: random.Random, mix: Mix) -> Prompt:
    """Draws the prompt of a new conversation: a user message, preceded by a shared system message or by none."""
    length = rng.choices(list(mix.lengths), list(mix.lengths.values()))[0]
    prefix = rng.randrange(mix.prefixes) if mix.prefixes and rng.random() < mix.prefix_share else None
    user = Message(role="user", content=story_request(rng, rng.randint(*LENGTHS[length])))
    if prefix is None:
        return Prompt((user,), length, None)
    system = Message(role="system", content=random_text(random.Random(f"prefix/{prefix}"), PREFIX_WORDS))
    return Prompt((system, user), length, prefix)


def next_message(rng: random.Random) -> Message:
    """Draws the user message of a later turn of a conversation."""
    return Message(role="user", content=f"And then? {random_text(rng, rng.randint(3, 20))}")


def short_chat_body(rng: random.Random, max_tokens: int) -> dict[str, Any]:
    """Body of a streamed chat with one short user message."""
    return chat_body(rng, [Message(role="user", content=story_request(rng, rng.randint(*LENGTHS["short"])))], max_tokens)


def chat_body(rng: random.Random, messages: Sequence[Message], max_tokens: int, model: str | None = None) -> dict[str, Any]:
    """Body of a streamed chat whose last event carries `usage`."""
    request = ChatRequest(
        model=model,
        messages=list(messages),
        max_tokens=max_tokens,
        seed=rng.randrange(2**31),
        stream=True,
        stream_options=StreamOptions(include_usage=True),
    )
    return request.model_dump(mode="json", exclude_none=True)


def score_body(rng: random.Random, words: int, model: str | None = None) -> dict[str, Any]:
    """Body of a score request with one text of `words` words."""
    request = ScoreRequest(text=random_text(rng, words), model=model)
    return request.model_dump(mode="json", include={"text", "model"}, exclude_none=True)
