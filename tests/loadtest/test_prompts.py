import random

from app.schemas import ChatRequest, ScoreRequest
from loadtest import prompts


def test_same_seed_same_load():
    assert prompts.short_chat_body(random.Random("a/1"), 8) == prompts.short_chat_body(random.Random("a/1"), 8)
    assert prompts.short_chat_body(random.Random("a/1"), 8) != prompts.short_chat_body(random.Random("a/2"), 8)


def test_bodies_are_valid_requests():
    chat = ChatRequest.model_validate(prompts.short_chat_body(random.Random(1), 8))
    assert chat.stream and chat.stream_options.include_usage and chat.max_tokens == 8
    body = prompts.score_body(random.Random(1), 150)
    assert list(body) == ["text"]
    assert len(ScoreRequest.model_validate(body).all[0].split()) == 150


MIX = prompts.Mix({"short": 1, "long": 1}, prefixes=3, prefix_share=0.5)


def test_first_prompts_follow_the_mix():
    drawn = [prompts.first_prompt(random.Random(f"x/{number}"), MIX) for number in range(300)]
    assert drawn[:20] == [prompts.first_prompt(random.Random(f"x/{number}"), MIX) for number in range(20)]
    assert {prompt.length for prompt in drawn} == {"short", "long"} and {prompt.prefix for prompt in drawn} == {None, 0, 1, 2}
    assert 110 < sum(prompt.prefix is None for prompt in drawn) < 190
    for prompt in drawn:
        low, high = prompts.LENGTHS[prompt.length]
        assert low <= len(prompt.messages[-1].content.split()) - 10 <= high
    shared = {prompt.prefix: prompt.messages[0].content for prompt in drawn if prompt.prefix is not None}
    assert len(set(shared.values())) == 3
    assert all(
        prompt.messages[0].content == shared[prompt.prefix] and len(prompt.messages) == 2 for prompt in drawn if prompt.prefix is not None
    )


def test_no_prefixes():
    mix = prompts.Mix({"short": 1}, prefixes=0, prefix_share=1.0)
    assert all(len(prompts.first_prompt(random.Random(number), mix).messages) == 1 for number in range(20))


def test_a_body_names_the_model():
    rng = random.Random(1)
    assert prompts.chat_body(rng, [prompts.next_message(rng)], 8, "m")["model"] == "m" == prompts.score_body(rng, 9, "m")["model"]
