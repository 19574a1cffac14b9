import random

from app.schemas import ChatRequest, ScoreRequest
from loadtest import prompts


def test_same_seed_same_load():
    assert prompts.chat(random.Random("a/1"), 8) == prompts.chat(random.Random("a/1"), 8)
    assert prompts.chat(random.Random("a/1"), 8) != prompts.chat(random.Random("a/2"), 8)


def test_bodies_keep_to_the_wire():
    chat = ChatRequest.model_validate(prompts.chat(random.Random(1), 8))
    assert chat.stream and chat.stream_options.include_usage and chat.max_tokens == 8
    body = prompts.score(random.Random(1), 150)
    assert list(body) == ["text"]
    assert len(ScoreRequest.model_validate(body).all[0].split()) == 150
