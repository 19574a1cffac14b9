"""Models whose answers have marks or channels of their own, over all routes: what was thought, said and called stands apart."""

import json
from typing import Any

import pytest
from thinking import HELLO, RING, ask, prompt_of, say

COMMAND = (
    "{# <|END_THINKING|><|END_RESPONSE|> #}{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
    "c:{% if not enable_thinking %}<|START_THINKING|><|END_THINKING|>{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}m:{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}"
)


HARMONY = (  # of GPT-OSS
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|>{% endif %}<|start|>assistant{% if m.tool_calls %}{% set c = m.tool_calls[0].function %} to=functions."
    "{{ c.name }}<|channel|>commentary json<|message|>{{ c.arguments | tojson }}"
    "{% else %}<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}{% if loop.first %}{{ tools | tojson if tools }}{% endif %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
ENABLED = "{% set enable_thinking = true %}"


@pytest.mark.parametrize(
    ("template", "text", "thought"),
    [
        (ENABLED + COMMAND, "<|START_THINKING|>Two and two.<|END_THINKING|><|START_RESPONSE|>Four.<|END_RESPONSE|>", "Two and two."),
        (COMMAND, "<|START_RESPONSE|>Four.<|END_RESPONSE|>", ""),
        (ENABLED + GEMMA, "<|channel>thought\nTwo and two.\n<channel|>Four.", "Two and two."),
        (GEMMA, "Four.", ""),
        (
            HARMONY,
            "<|channel|>analysis<|message|>Two and two.<|end|><|start|>assistant<|channel|>final<|message|>Four.",
            "Two and two.",
        ),
    ],
)
def test_marks_of_known_models_stand_in_no_answer(thinking: Any, template: str, text: str, thought: str) -> None:
    """In a chat, whole and streamed, in a response and in a message."""
    thinking.tokenizer.base.chat_template = template
    say(thinking, text)
    body = ask(thinking).json()
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Four.", thought or None)
    assert (body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0) == bool(thought)
    say(thinking, text, 3)
    lines = ask(thinking, stream=True).text.splitlines()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Four."
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == thought
    say(thinking, text)
    output = thinking.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 40}).json()["output"]
    assert [item["content"][0]["text"] for item in output] == [thought, "Four."][not thought :]
    say(thinking, text)
    blocks = thinking.client.post("/v1/messages", json={"max_tokens": 40, "messages": HELLO}).json()["content"]
    assert [block.get("thinking") or block["text"] for block in blocks] == [thought, "Four."][not thought :]


def test_a_call_in_a_channel_is_a_call_on_every_route(thinking: Any) -> None:
    thinking.tokenizer.base.chat_template = HARMONY
    call = '<|channel|>commentary to=functions.ring <|constrain|>json<|message|>{"times": 2}'
    text = f"<|channel|>analysis<|message|>Two.<|end|><|start|>assistant{call}"
    for choice in ("auto", "required"):
        say(thinking, text, 3)
        (answered,) = ask(thinking, tools=[RING], tool_choice=choice).json()["choices"]
        message, (told,) = answered["message"], answered["message"]["tool_calls"]
        assert (message["content"], message["reasoning"], answered["finish_reason"]) == (None, "Two.", "tool_calls")
        assert told["function"] == {"name": "ring", "arguments": '{"times": 2}'}
        assert ("(final" in thinking.engine.submitted[-1].grammar) == (choice == "auto")
    say(thinking, text, 3)
    lines = ask(thinking, tools=[RING], stream=True).text.splitlines()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or []]
    assert "".join(call["arguments"] for call in calls) == '{"times": 2}' and calls[0]["name"] == "ring"
    say(thinking, text, 3)
    tool = {"type": "function", **RING["function"]}
    output = thinking.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 60, "tools": [tool]}).json()["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"] and output[1]["arguments"] == '{"times": 2}'
    say(thinking, text, 3)
    tool = {"name": "ring", "input_schema": RING["function"]["parameters"]}
    content = thinking.client.post("/v1/messages", json={"max_tokens": 60, "messages": HELLO, "tools": [tool]}).json()["content"]
    assert [block["type"] for block in content] == ["thinking", "tool_use"] and content[1]["input"] == {"times": 2}
    turns = [*HELLO, {**message, "content": "So."}, {"role": "tool", "tool_call_id": told["id"], "content": "rung"}]
    ask(thinking, messages=turns, tools=[RING])
    assert "<|channel|>analysis<|message|>Two.\n\nSo.<|end|><|start|>assistant to=functions.ring<" in prompt_of(thinking)


def test_a_limited_thought_in_a_channel_goes_on_to_the_answer(thinking: Any) -> None:
    thinking.tokenizer.base.chat_template = HARMONY
    ask(thinking, thinking_token_budget=5)
    limit = thinking.engine.submitted[-1].thought
    assert (limit.open, limit.close) == ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")
    assert len(limit.closing_tokens) == len(limit.close)
    ask(thinking, thinking_token_budget=5, tools=[RING])
    assert thinking.engine.submitted[-1].thought.close == "<|end|>", "a call may follow, or another thought"
