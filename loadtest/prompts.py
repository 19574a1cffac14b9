"""What the load is made of: chat and score requests from a built-in word list, the same for the same seed."""

import random
from typing import Any

from app.schemas import ChatRequest, Message, ScoreRequest, StreamOptions

WORDS = (
    "king queen fox crow river forest castle bridge mountain village farmer miller sister brother wolf golden ring apple garden "
    "winter summer night morning road door window fire water bread stone tree bird horse ship sea island star moon sun old young "
    "wise brave kind little great dark bright walked said found lost gave took came went saw heard asked answered lived slept"
).split()


def text(draw: random.Random, words: int) -> str:
    """Sentences of 6 to 14 words, `words` in all: no sense, but the length and the alphabet of a text."""
    chosen = draw.choices(WORDS, k=words)
    sentences = []
    while chosen:
        length = draw.randint(6, 14)
        sentences.append(" ".join(chosen[:length]).capitalize() + ".")
        del chosen[:length]
    return " ".join(sentences)


def chat(draw: random.Random, max_tokens: int) -> dict[str, Any]:
    """Body of a streamed chat that ends with `usage`."""
    wish = f"Tell me a story about a {draw.choice(WORDS)} and a {draw.choice(WORDS)}. {text(draw, draw.randint(5, 40))}"
    request = ChatRequest(
        messages=[Message(role="user", content=wish)],
        max_tokens=max_tokens,
        seed=draw.randrange(2**31),
        stream=True,
        stream_options=StreamOptions(include_usage=True),
    )
    return request.model_dump(mode="json", exclude_none=True)


def score(draw: random.Random, words: int) -> dict[str, Any]:
    """Body of a score of one text."""
    return ScoreRequest(text=text(draw, words)).model_dump(mode="json", include={"text"})
