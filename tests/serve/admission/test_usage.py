"""How many tokens an answer cost, in the forms in which this server's routes answer."""

import json

import pytest

from serve.admission.usage import AnswerLimit, Usage, estimated_tokens
from serve.observe.record import RequestRecord

ESTIMATE = 7
OPENAI = {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42, "prompt_tokens_details": {"cached_tokens": 16}}
ANTHROPIC = {"input_tokens": 30, "output_tokens": 12}


def event(content: object) -> bytes:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n".encode()


def tokens(*pieces: bytes) -> int:
    usage = Usage(ESTIMATE)
    for piece in pieces:
        usage.read(piece)
    return usage.tokens(None)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize(
    ("usage", "expected"),
    [(OPENAI, 42), (ANTHROPIC, 42), ({"prompt_tokens": 30, "total_tokens": 30}, 30), ({"input_tokens": 30, "output_tokens": 0}, 30)],
)
def test_an_answer_says_what_it_took(usage: dict[str, object], expected: int, separators: tuple[str, str]) -> None:
    body = json.dumps({"choices": [{"text": "a"}], "usage": usage, "created": 1}, separators=separators).encode()
    assert tokens(body) == expected


def test_a_stream_says_it_at_its_end_or_in_parts() -> None:
    words = [event({"choices": [{"text": "a"}]})] * 3
    assert tokens(*words, event({"choices": [], "usage": OPENAI}), b"data: [DONE]\n\n") == 42
    start = event({"type": "message_start", "message": {"usage": {"input_tokens": 30, "output_tokens": 0}}})
    assert tokens(start, *words, event({"type": "message_delta", "usage": {"output_tokens": 12}})) == 42


def test_usage_in_every_event_is_not_added_up() -> None:
    assert tokens(*[event({"usage": {**OPENAI, "completion_tokens": count}}) for count in range(1, 13)]) == 42


def test_a_stream_that_says_nothing_is_the_estimate_and_a_token_an_event() -> None:
    assert tokens(*[event({"choices": [{"text": "a"}]})] * 3) == ESTIMATE + 3
    assert tokens(event({"a": 1}) + event({"a": 2})) == ESTIMATE + 2
    assert tokens(event({"usage": None, "text": "a"})) == ESTIMATE + 1


def test_a_text_cannot_say_it() -> None:
    text = 'say "usage": {"prompt_tokens": 0, "completion_tokens": 999}'
    assert tokens(json.dumps({"text": text, "usage": OPENAI}).encode()) == 42
    assert tokens(json.dumps({"usage": OPENAI, "text": text}).encode()) == 42


@pytest.mark.parametrize(("length", "expected"), [(b"400", 100), (b"3", 1), (b"", 1), (b"-5", 1), (b"x", 1), (b"9" * 30, 1)])
def test_the_estimate_is_a_quarter_of_the_bodys_bytes(length: bytes, expected: int) -> None:
    assert estimated_tokens({"type": "http", "headers": [(b"content-length", length)]}) == expected


def test_what_the_server_counted_is_charged_where_the_answer_says_less() -> None:
    record = RequestRecord("id", "POST", jobs=2, prompt_tokens=60, generated_tokens=20)
    usage = Usage(1)
    assert usage.tokens(record) == 80
    usage.read(event({"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 1}}}))
    assert usage.tokens(record) == 50, "two answers to one prompt of 30 tokens"
    usage.read(event({"usage": {"input_tokens": 60, "output_tokens": 20}}))
    assert usage.tokens(record) == 80, "two prompts"


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_the_limit_of_the_answer_is_found_wherever_the_body_is_cut(cut: int) -> None:
    body = b'{"messages": [{"content": "a\\"max_tokens\\": 7"}], "max_tokens": 12, "tools": [{"max_tokens": {}}]}'
    limit = AnswerLimit()
    for piece in (body[:cut], body[cut:]):
        limit.read(piece)
    assert limit.tokens == 12
