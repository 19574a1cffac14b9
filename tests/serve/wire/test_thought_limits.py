"""How long a model may think: by which fields, and where there is nothing to limit."""

from typing import Any

import pytest
from thinking import HELLO, QWEN, ask, prompt_of

IGNORED = "X-Litmus-Ignored"


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_token_budget": 5},
        {"thinking_budget_tokens": 5.0},
        {"reasoning_budget_tokens": 5},
        {"reasoning": {"max_tokens": 5}},
        {"reasoning": {"max_tokens": 5, "enabled": True, "exclude": False}, "thinking_token_budget": 5},
    ],
)
def test_a_thought_is_limited_by_any_name(thinking: Any, fields: dict[str, Any]) -> None:
    ask(thinking, n=2, **fields)
    for job in thinking.engine.submitted[-2:]:
        assert (job.thought.tokens, job.thought.open, job.thought.close, job.thought.opened) == (5, "<think>", "</think>", False)
        for written in range(len("</think>")):
            piece = thinking.tokenizer.decode([job.thought.closing_tokens[written]])
            assert piece and "</think>"[written:].startswith(piece)


def test_a_thought_is_limited_in_the_other_forms_of_a_chat(thinking: Any) -> None:
    thinking.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 3, "reasoning": {"max_tokens": 7}})
    assert thinking.engine.submitted[-1].thought.tokens == 7
    body = {"max_tokens": 3, "messages": HELLO, "thinking": {"type": "enabled", "budget_tokens": 9}}
    thinking.client.post("/v1/messages", json=body)
    assert thinking.engine.submitted[-1].thought.tokens == 9


def test_a_thought_that_a_continued_message_has_begun_is_limited(thinking: Any) -> None:
    for message, opened, begun in (
        ("<think>so", True, ""),
        ("<think>so\n</thi", True, "\n</thi"),
        ("<th", False, "<th"),
    ):
        turns = [*HELLO, {"role": "assistant", "content": message}]
        ask(thinking, messages=turns, continue_final_message=True, thinking_token_budget=5)
        limit = thinking.engine.submitted[-1].thought
        assert (limit.tokens, limit.opened, limit.begun) == (5, opened, begun)
    for message in ("It is", "<think>so</think>It is"):
        turns = [*HELLO, {"role": "assistant", "content": message}]
        ask(thinking, messages=turns, continue_final_message=True, thinking_token_budget=5)
        assert thinking.engine.submitted[-1].thought is None


def test_a_thought_without_a_limit_has_none(thinking: Any) -> None:
    for fields in ({}, {"thinking_token_budget": -1}, {"thinking_budget_tokens": None}, {"reasoning": {}}):
        ask(thinking, **fields)
        assert thinking.engine.submitted[-1].thought is None


def test_a_limit_of_no_tokens_is_no_thought(thinking: Any) -> None:
    ask(thinking, thinking_token_budget=0)
    assert prompt_of(thinking).endswith("a:<think></think>") and thinking.engine.submitted[-1].thought is None
    ask(thinking, thinking_token_budget=0, chat_template_kwargs={"enable_thinking": True})
    assert thinking.engine.submitted[-1].thought.tokens == 0
    thinking.tokenizer.base.chat_template = QWEN.replace("enable_thinking", "other") + "<think>"
    ask(thinking, thinking_token_budget=0)
    limit = thinking.engine.submitted[-1].thought
    assert (limit.tokens, limit.opened) == (0, True), "the template cannot say so, and the engine closes the thought"


def test_a_model_that_does_not_think_has_nothing_to_limit(served: Any) -> None:
    for fields in ({"thinking_token_budget": 5}, {"reasoning": {"max_tokens": 0}}, {"thinking_budget_tokens": 0}):
        answer = ask(served, **fields)
        assert served.engine.submitted[-1].thought is None and IGNORED not in answer.headers


def test_a_completion_has_no_thought_to_limit(thinking: Any) -> None:
    body = {"prompt": "hi", "max_tokens": 2}
    assert thinking.client.post("/v1/completions", json={**body, "thinking_token_budget": -1}).status_code == 200
    error = thinking.client.post("/v1/completions", json={**body, "thinking_token_budget": 5}).json()["error"]
    assert (error["param"], error["code"]) == ("thinking_token_budget", "unsupported_parameter")
