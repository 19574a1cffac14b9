"""What the load is made of: chat and score requests from a built-in word list, the same for the same seed."""

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

LENGTHS = {"short": (5, 40), "medium": (80, 200), "long": (350, 500)}  # words
PREFIX_WORDS = 120


@dataclass(frozen=True, slots=True)
class Mix:
    """How long prompts are (weight of each of `LENGTHS`), and which share of them begins with one of so many `prefixes`."""

    lengths: Mapping[str, float]
    prefixes: int
    prefix_share: float


@dataclass(frozen=True, slots=True)
class Prompt:
    messages: tuple[Message, ...]
    length: str
    prefix: int | None


def text(draw: random.Random, words: int) -> str:
    """Sentences of 6 to 14 words, `words` in all: no sense, but the length and the alphabet of a text."""
    chosen = draw.choices(WORDS, k=words)
    sentences = []
    while chosen:
        length = draw.randint(6, 14)
        sentences.append(" ".join(chosen[:length]).capitalize() + ".")
        del chosen[:length]
    return " ".join(sentences)


def wish(draw: random.Random, words: int) -> str:
    return f"Tell me a story about a {draw.choice(WORDS)} and a {draw.choice(WORDS)}. {text(draw, words)}"


def prompt(draw: random.Random, mix: Mix) -> Prompt:
    """A first message, behind a system message that others share or behind none."""
    length = draw.choices(list(mix.lengths), list(mix.lengths.values()))[0]
    prefix = draw.randrange(mix.prefixes) if mix.prefixes and draw.random() < mix.prefix_share else None
    asked = Message(role="user", content=wish(draw, draw.randint(*LENGTHS[length])))
    if prefix is None:
        return Prompt((asked,), length, None)
    shared = Message(role="system", content=text(random.Random(f"prefix/{prefix}"), PREFIX_WORDS))
    return Prompt((shared, asked), length, prefix)


def turn(draw: random.Random) -> Message:
    """What is said next in a conversation."""
    return Message(role="user", content=f"And then? {text(draw, draw.randint(3, 20))}")


def chat(draw: random.Random, max_tokens: int) -> dict[str, Any]:
    """Body of a streamed chat with a short message."""
    return body(draw, [Message(role="user", content=wish(draw, draw.randint(*LENGTHS["short"])))], max_tokens)


def body(draw: random.Random, messages: Sequence[Message], max_tokens: int, model: str | None = None) -> dict[str, Any]:
    """Body of a streamed chat that ends with `usage`."""
    request = ChatRequest(
        model=model,
        messages=list(messages),
        max_tokens=max_tokens,
        seed=draw.randrange(2**31),
        stream=True,
        stream_options=StreamOptions(include_usage=True),
    )
    return request.model_dump(mode="json", exclude_none=True)


def score(draw: random.Random, words: int, model: str | None = None) -> dict[str, Any]:
    """Body of a score of one text."""
    return ScoreRequest(text=text(draw, words), model=model).model_dump(mode="json", include={"text", "model"}, exclude_none=True)
