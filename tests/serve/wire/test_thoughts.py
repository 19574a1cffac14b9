"""Reasoning models over the chat route: the thought apart from the answer, whole and streamed, with forms, tools and log-probabilities."""

import json
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher
from thinking import CHAT, HELLO, QWEN, RING, ask, prompt_of, say
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from app.forms.parser import overlap
from app.forms.reasoning import ReasoningFormat
from app.forms.splitter import Place
from app.forms.trial import byte_tokenizer
from app.schemas import ChatRequest
from app.tokenizer import Tokenizer
from serve.wire.thought import Thought, limit_of

IGNORED = "X-Litmus-Ignored"


def test_a_thought_stands_apart(thinking: Any) -> None:
    say(thinking, "<think>Two and two.</think>\n\nFour.")
    body = ask(thinking, logprobs=True).json()
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "Four."
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"] == "Two and two."
    used, logprobs = body["usage"], choice["logprobs"]
    thought_tokens = used["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < thought_tokens < used["completion_tokens"]
    assert len(logprobs["reasoning_content"]) == thought_tokens
    assert len(logprobs["content"]) + thought_tokens == used["completion_tokens"]


def test_a_streamed_thought_stands_apart(thinking: Any) -> None:
    say(thinking, "<think>Two and two.</think>\n\nFour.", 3)
    lines = ask(thinking, stream=True).text.splitlines()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Four."
    for name in ("reasoning_content", "reasoning"):
        assert "".join(delta.get(name, "") for delta in deltas) == "Two and two."
    assert not [delta for delta in deltas if delta.get("content") and delta.get("reasoning")]


def test_a_thought_is_an_item_of_a_response(thinking: Any) -> None:
    say(thinking, "<think>Two and two.</think>\n\nFour.", 3)
    body = thinking.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 40}).json()
    thought, message = body["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "Two and two."}])
    assert message["content"][0]["text"] == "Four." and body["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    say(thinking, "<think>Two and two.</think>\n\nFour.", 3)
    text = thinking.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 40, "stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    deltas = {
        kind: "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")
        for kind in ("reasoning_text", "output_text")
    }
    assert deltas == {"reasoning_text": "Two and two.", "output_text": "Four."}
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds.index("reasoning_text.done") < kinds.index("output_text.delta")
    off = thinking.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 3, "reasoning": {"effort": "none"}})
    assert off.status_code == 200 and prompt_of(thinking).endswith("a:<think></think>")


def test_a_thought_is_a_block_of_a_message(thinking: Any) -> None:
    say(thinking, "<think>Two and two.</think>\n\nFour.", 3)
    asked = {"max_tokens": 40, "messages": HELLO, "thinking": {"type": "enabled"}}
    body = thinking.client.post("/v1/messages", json=asked).json()
    assert body["content"] == [{"type": "thinking", "thinking": "Two and two.", "signature": ""}, {"type": "text", "text": "Four."}]
    say(thinking, "<think>Two and two.</think>\n\nFour.", 3)
    text = thinking.client.post("/v1/messages", json={**asked, "stream": True}).text
    deltas = [json.loads(line[6:])["delta"] for line in text.splitlines() if line.startswith('data: {"type":"content_block_delta"')]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "Two and two."
    assert "".join(delta.get("text", "") for delta in deltas) == "Four."
    turns = [*HELLO, {"role": "assistant", "content": [*body["content"]]}]
    thinking.client.post("/v1/messages", json={**asked, "messages": turns, "thinking": {"type": "disabled"}, "max_tokens": 2})
    assert prompt_of(thinking).startswith("u:hia:<think>Two and two.</think>Four.")


def test_an_answer_cut_in_its_thought_has_no_content(thinking: Any) -> None:
    say(thinking, "<think>Two and two")
    message = ask(thinking).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == ("", "Two and two")


def test_thinking_may_be_turned_off_in_two_ways(thinking: Any) -> None:
    for fields in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        say(thinking, "<think>")
        message = ask(thinking, **fields).json()["choices"][0]["message"]
        assert prompt_of(thinking).endswith("a:<think></think>")
        assert message["content"] == "<think>" and message["reasoning"] is None, "the prompt has closed the thought"


def test_the_switch_of_a_template_is_found_under_its_other_name(thinking: Any) -> None:
    thinking.tokenizer.base.chat_template = QWEN.replace("enable_thinking", "thinking")
    off: list[dict[str, Any]] = [{"chat_template_kwargs": {name: False}} for name in ("enable_thinking", "thinking")]
    for fields in (*off, {"reasoning_effort": "none"}, {"thinking_token_budget": 0}):
        ask(thinking, **fields)
        assert prompt_of(thinking).endswith("a:<think></think>"), fields
    ask(thinking, chat_template_kwargs={"enable_thinking": True})
    assert prompt_of(thinking).endswith("a:")


def test_variables_that_the_template_does_not_know_are_left_out_and_named(thinking: Any) -> None:
    variables = {"budget": 3, "role": "user", "enable_thinking": False}  # the template has the word role, but looks up no such variable
    answer = ask(thinking, chat_template_kwargs=variables)
    assert answer.headers[IGNORED] == "chat_template_kwargs.budget, chat_template_kwargs.role"
    assert prompt_of(thinking).endswith("a:<think></think>")
    error = thinking.client.post(CHAT, json={"messages": HELLO, "chat_template_kwargs": {"messages": []}}).json()["error"]
    assert (error["param"], error["code"]) == ("chat_template_kwargs.messages", "unsupported_parameter")


def test_effort_reaches_a_template_that_has_a_place_for_it(thinking: Any) -> None:
    thinking.tokenizer.base.chat_template = "{{ reasoning_effort | default('medium') }};" + QWEN
    for effort, end in (("max", "a:"), ("none", "a:<think></think>")):
        answer = ask(thinking, reasoning_effort=effort)
        assert prompt_of(thinking).startswith(f"{effort};") and prompt_of(thinking).endswith(end) and IGNORED not in answer.headers


def test_effort_turns_a_template_that_has_only_a_switch_on_and_off(thinking: Any) -> None:
    thinking.tokenizer.base.chat_template = QWEN.replace("is defined and not enable_thinking", "is not defined or not enable_thinking")
    ask(thinking)
    assert prompt_of(thinking).endswith("a:<think></think>"), "this template thinks when it is told to"
    for effort in ("minimal", "low", "medium", "high", "xhigh", "max"):
        assert IGNORED not in ask(thinking, reasoning_effort=effort).headers
        assert prompt_of(thinking).endswith("a:")
    ask(thinking, reasoning_effort="none")
    assert prompt_of(thinking).endswith("a:<think></think>")
    thinking.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 3, "reasoning": {"effort": "low"}})
    assert prompt_of(thinking).endswith("a:")


def test_a_model_that_always_thinks_does_so_with_any_effort(thinking: Any) -> None:
    thinking.tokenizer.base.chat_template = QWEN.replace("enable_thinking", "other")
    assert ask(thinking, reasoning_effort="high").headers[IGNORED] == "reasoning_effort"
    error = thinking.client.post(CHAT, json={"messages": HELLO, "reasoning_effort": "none"}).json()["error"]
    assert (error["param"], error["code"]) == ("reasoning_effort", "unsupported_parameter")


def test_a_model_that_does_not_think_does_what_no_thought_asks_for(served: Any) -> None:
    for fields in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        answer = ask(served, **fields)
        assert answer.json()["choices"][0]["message"]["reasoning"] is None and IGNORED not in answer.headers


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"reasoning": {"effort": "max"}}, "reasoning.effort"),
        ({"reasoning": {"enabled": True}}, "reasoning.enabled"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
    ],
)
def test_what_asks_a_model_that_does_not_think_for_a_thought_is_left_out(
    served: Any, strictly_served: Any, fields: dict[str, Any], name: str
) -> None:
    assert ask(served, **fields).headers[IGNORED] == name
    if "reasoning" in fields:
        body = {"input": "hi", "max_output_tokens": 3, **fields}
        assert served.client.post("/v1/responses", json=body).headers[IGNORED] == name
    refused = strictly_served.client.post(CHAT, json={"messages": HELLO, **fields})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)


def test_a_variable_that_is_no_unicode_is_refused(thinking: Any) -> None:
    thinking.tokenizer.base.chat_template = QWEN + "{{ tone }}"
    for path in (CHAT, "/apply-template"):
        for variables in ({"b\ud800": 1}, {"tone": "\ud800"}):
            content = json.dumps({"messages": HELLO, "chat_template_kwargs": variables})
            answer = thinking.client.post(path, content=content, headers={"Content-Type": "application/json"})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, "chat_template_kwargs"), error
            assert "is a lone surrogate" in error["message"]


def test_a_thought_that_comes_back_reaches_the_template(thinking: Any) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}]
    ask(thinking, messages=messages)
    assert prompt_of(thinking) == "u:hia:<think>Two and two.</think>Four.a:"


def test_a_form_and_a_call_come_after_the_thought(thinking: Any) -> None:
    say(thinking, '<think>{"a"</think>{"a": 1}')
    body = ask(thinking, response_format={"type": "json_object"}).json()
    assert body["choices"][0]["message"]["content"] == '{"a": 1}'
    assert "thought" in thinking.engine.submitted[-1].grammar
    say(thinking, '<think><tool_call></think>\n<tool_call>{"name": "ring", "arguments": {"times": 2}}</tool_call>')
    for choice in ("auto", "required"):
        message = ask(thinking, tools=[RING], tool_choice=choice).json()["choices"][0]["message"]
        assert message["reasoning"] == "<tool_call>" and message["tool_calls"][0]["function"]["name"] == "ring"


def test_fields_that_contradict_each_other_are_refused_by_name(thinking: Any) -> None:
    for fields, names in (
        ({"thinking_token_budget": 5, "reasoning": {"max_tokens": 6}}, "thinking_token_budget and reasoning.max_tokens"),
        ({"thinking_token_budget": 5, "thinking_budget_tokens": -1}, "thinking_token_budget and thinking_budget_tokens"),
        ({"reasoning_effort": "high", "reasoning": {"effort": "low"}}, "reasoning_effort and reasoning.effort"),
        ({"reasoning": {"effort": "low", "enabled": False}}, "reasoning.effort and reasoning.enabled"),
        ({"chat_template_kwargs": {"enable_thinking": True, "thinking": False}}, "enable_thinking and chat_template_kwargs.thinking"),
        ({"chat_template_kwargs": {"thinking": False}, "reasoning": {"enabled": True}}, "thinking and reasoning.enabled"),
        ({"chat_template_kwargs": {"thinking": True}, "reasoning_effort": "none"}, "thinking and reasoning_effort"),
        ({"reasoning": {"enabled": True, "effort": "none"}}, "reasoning.enabled and reasoning.effort"),
    ):
        answer = thinking.client.post(CHAT, json={"messages": HELLO, **fields})
        assert answer.status_code == 400 and names in answer.json()["error"]["message"]
    for fields, param in (
        ({"thinking_token_budget": -2}, "thinking_token_budget"),
        ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
        ({"reasoning": {"exclude": True}}, "reasoning.exclude"),
        ({"reasoning": {"effort": "deep"}}, "reasoning.effort"),
    ):
        assert thinking.client.post(CHAT, json={"messages": HELLO, **fields}).json()["error"]["param"] == param
    body = {"max_tokens": 3, "messages": HELLO, "thinking": {"type": "adaptive", "budget_tokens": 9}}
    answer = thinking.client.post("/v1/messages", json=body)
    assert answer.status_code == 400 and "budget_tokens is only for type 'enabled'" in answer.json()["error"]["message"]


def test_thinking_may_be_switched_in_openrouters_form(thinking: Any) -> None:
    ask(thinking, reasoning={"enabled": False})
    assert prompt_of(thinking).endswith("a:<think></think>")
    ask(thinking, reasoning={"enabled": True})
    assert prompt_of(thinking).endswith("a:")


def test_a_call_in_a_thought_is_thought(thinking: Any) -> None:
    """The grammar of text that may end in calls begins after the thought, so that the thought can be closed anywhere."""
    ask(thinking, tools=[RING], thinking_token_budget=5)
    grammar = LLMatcher(byte_tokenizer(), thinking.engine.submitted[-1].grammar, log_level=0)
    call = '<tool_call>{"name": "ring", "arguments": {}}</tool_call>'
    for text, is_whole in (
        (f"<think>so <tool_call></think>{call}", True),
        (f"<think>so <tool_call>{{</think>\n\nYes. {call}", True),
        ("<think>so <tool_call> and", True),
        (call, True),
        ("Yes.", True),
        ("<think>so</think><tool_call>sing", False),
    ):
        answer = grammar.deep_copy()
        taken = answer.try_consume_tokens(list(text.encode()))
        assert (taken == len(text.encode()) and answer.is_accepting()) == is_whole, text


def test_the_mark_is_written_without_a_space_by_a_tokenizer_that_begins_words_with_one(tmp_path: Path) -> None:
    """As Llama 2's does: the text `</think>` alone would be written ` </think>`."""
    pieces = ["<unk>", "▁", "▁</", "</", "▁think", "think", ">", *"<>/thinkabc▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw = RawTokenizer(models.BPE({piece: id for id, piece in enumerate(dict.fromkeys(pieces))}, [], unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<unk>").save_pretrained(tmp_path)
    tokenizer = Tokenizer(str(tmp_path))
    chat = ChatRequest(messages=[{"role": "user", "content": "a"}], thinking_token_budget=3)
    limit = limit_of(chat, Thought(ReasoningFormat("<think>", "</think>"), Place.IN_THOUGHT), tokenizer)
    assert limit is not None
    text = tokenizer.decode([*tokenizer.encode("a", "text")])
    while not text.endswith("</think>"):
        piece = tokenizer.piece(limit.closing_tokens[overlap(text, "</think>")]).data.decode()
        assert piece and "</think>".startswith(text[1:] + piece)
        text += piece


def test_a_step_of_several_tokens_may_end_the_thought(thinking: Any) -> None:
    """What a draft brings at once is told apart token by token."""
    pieces = ("<think>", "Two", " and", " two.", "</think>", "\n\n", "Four", ".")
    tokens = tuple(range(3, 3 + len(pieces)))
    thinking.engine.script = [(text, (token,)) for text, token in zip(pieces, tokens, strict=True)]
    one_by_one = ask(thinking, logprobs=True).json()
    thinking.engine.script, thinking.engine.texts = [("".join(pieces), tokens)], pieces
    at_once = ask(thinking, logprobs=True).json()
    assert at_once["choices"] == one_by_one["choices"] and at_once["usage"] == one_by_one["usage"]
    message = at_once["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Four.", "Two and two.")


OPENED = "<think>\nTwo and two"


def continued(message: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, {"role": "assistant", "content": message}], "continue_final_message": True, **fields}


@pytest.mark.parametrize(
    ("message", "text", "thought", "answer"),
    [
        (OPENED, ".</think>\n\nFour.", ".", "Four."),
        (f"{OPENED}.\n", "Done.</think>Four.", "Done.", "Four."),
        (f"{OPENED}.\n</think", ">\nFour.", None, "Four."),
        (f"{OPENED}.</think>\n\nIt is", " four.", None, " four."),
        ("It is", " <think>four.", None, " <think>four."),
    ],
)
def test_a_thought_that_a_continued_message_has_begun_goes_on(
    thinking: Any, message: str, text: str, thought: str | None, answer: str
) -> None:
    say(thinking, text, 2)
    body = ask(thinking, **continued(message, logprobs=True)).json()
    said, logprobs = body["choices"][0]["message"], body["choices"][0]["logprobs"]
    assert (said["reasoning_content"], said["content"]) == (thought, answer)
    counted = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert counted == len(logprobs["reasoning_content"] or ()) and bool(counted) == (
        message.startswith(OPENED) and "</think>" not in message
    )
    say(thinking, text, 2)
    turns = [*HELLO, {"role": "assistant", "content": message.rstrip()}]
    blocks = thinking.client.post("/v1/messages", json={"max_tokens": 40, "messages": turns}).json()["content"]
    assert {block["type"]: block.get("thinking") or block.get("text") for block in blocks} == {
        **({} if thought is None else {"thinking": thought}),
        "text": answer,
    }


def test_earlier_turns_open_no_thought(thinking: Any) -> None:
    say(thinking, " four.")
    turns = [{"role": "user", "content": "Write <think>"}, {"role": "assistant", "content": OPENED}, *continued("It is")["messages"]]
    message = ask(thinking, messages=turns, continue_final_message=True).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (None, " four.")


def test_an_empty_thought_that_the_template_writes_before_a_message_closes_none(thinking: Any) -> None:
    """As Qwen 3's does."""
    thinking.tokenizer.base.chat_template = QWEN.replace("{{ m['content']", "{% if loop.last %}<think></think>{% endif %}{{ m['content']")
    for message, thought, answer in ((OPENED, ".", "Four."), ("It is", None, ".</think>\n\nFour.")):
        say(thinking, ".</think>\n\nFour.")
        said = ask(thinking, **continued(message)).json()["choices"][0]["message"]
        assert (said["reasoning_content"], said["content"]) == (thought, answer)


PIECES = ("<", "b", ">hi", "</b>")
MARK = ("\n", "<", "think", ">", "so", "</", "think>", "\n\n", "Yes")


def streamed_entries(answer: Any) -> list[int]:
    """How many log-probabilities of the thought and of the answer a stream has."""
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    found = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice.get("logprobs")]
    return [sum(len(each.get(name) or ()) for each in found) for name in ("reasoning_content", "content")]


@pytest.mark.parametrize(
    ("pieces", "thought_tokens", "content"),
    [
        (PIECES, 0, "<b>hi</b>"),
        (("<", "th"), 0, "<th"),
        (("\n", "Yes"), 0, "\nYes"),
        (("", "", "\u732b", "!"), 0, "\u732b!"),
        (MARK, 8, "Yes"),
        ((*MARK[:-1], "", "", "\u732b"), 8, "\u732b"),
        (("", ""), 0, ""),
        (MARK[:4], 4, ""),
    ],
)
def test_what_is_held_back_at_the_beginning_is_counted_where_its_text_is(
    thinking: Any, pieces: tuple[str, ...], thought_tokens: int, content: str
) -> None:
    thinking.engine.script = [(text, (3 + place,)) for place, text in enumerate(pieces)]
    body = ask(thinking, logprobs=True).json()
    (choice,) = body["choices"]
    assert choice["message"]["content"] == content
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought_tokens
    assert len(choice["logprobs"]["reasoning_content"] or ()) == thought_tokens
    assert len(choice["logprobs"]["content"]) == len(pieces) - thought_tokens
    thinking.engine.script = [(text, (3 + place,)) for place, text in enumerate(pieces)]
    assert streamed_entries(ask(thinking, logprobs=True, stream=True)) == [thought_tokens, len(pieces) - thought_tokens]
