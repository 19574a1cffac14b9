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


MIX = prompts.Mix({"short": 1, "long": 1}, prefixes=3, prefix_share=0.5)


def test_prompts_of_a_mix():
    found = [prompts.prompt(random.Random(f"x/{number}"), MIX) for number in range(300)]
    assert found[:20] == [prompts.prompt(random.Random(f"x/{number}"), MIX) for number in range(20)]
    assert {one.length for one in found} == {"short", "long"} and {one.prefix for one in found} == {None, 0, 1, 2}
    assert 110 < sum(one.prefix is None for one in found) < 190
    for one in found:
        low, high = prompts.LENGTHS[one.length]
        assert low <= len(one.messages[-1].content.split()) - 10 <= high
    shared = {one.prefix: one.messages[0].content for one in found if one.prefix is not None}
    assert len(set(shared.values())) == 3
    assert all(one.messages[0].content == shared[one.prefix] and len(one.messages) == 2 for one in found if one.prefix is not None)


def test_no_prefixes():
    mix = prompts.Mix({"short": 1}, prefixes=0, prefix_share=1.0)
    assert all(len(prompts.prompt(random.Random(number), mix).messages) == 1 for number in range(20))


def test_a_named_model_is_asked():
    draw = random.Random(1)
    assert prompts.body(draw, [prompts.turn(draw)], 8, "m")["model"] == "m" == prompts.score(draw, 9, "m")["model"]
