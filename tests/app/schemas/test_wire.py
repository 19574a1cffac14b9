"""Long lists of wrong elements: validation ends early, whatever list they are in."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.schemas.anthropic import CountTokensRequest, MessagesRequest
from app.schemas.batches import BatchRequest
from app.schemas.embeddings import EmbeddingRequest
from app.schemas.estimate import EstimateRequest
from app.schemas.generate import GenerateRequest
from app.schemas.generation import ChatRequest, CompletionRequest
from app.schemas.responses import ResponsesRequest
from app.schemas.scoring import Probability, ScoreRequest
from app.schemas.tokens import DetokenizeRequest, TokenizeRequest
from app.schemas.tuning import JobRequest
from app.schemas.wire import MAX_FIELDS, MAX_MISTAKES, Wire, few_mistakes

BODIES = (
    *(ChatRequest, CompletionRequest, ResponsesRequest, CountTokensRequest, MessagesRequest, EmbeddingRequest, GenerateRequest),
    *(ScoreRequest, TokenizeRequest, DetokenizeRequest, BatchRequest, JobRequest, EstimateRequest),
)
MANY = 5000
HELLO = {"role": "user", "content": "a"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def lists_of(schema: Any, definitions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas of all lists in one of pydantic."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        for name, part in schema.items():
            if name not in {"metadata", "serialization"}:
                yield from lists_of(part, definitions)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from lists_of(part, definitions)


@pytest.mark.parametrize("body", BODIES)
def test_every_list_has_a_bound_or_ends_with_its_first_mistake(body: type[Wire]) -> None:
    for found in lists_of(TypeAdapter(body).core_schema, {}):
        takes_anything = found.get("items_schema", {}).get("schema_ref", "").startswith("pydantic") or "JsonValue" in str(found)
        assert "max_length" in found or found.get("fail_fast") or takes_anything, found


def mistakes(body: type[Wire], content: dict[str, Any]) -> list[Any]:
    with pytest.raises(ValidationError) as found, few_mistakes():
        body.model_validate(content)
    return found.value.errors()


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (CompletionRequest, {"prompt": ["a", *[1] * MANY]}),
        (CompletionRequest, {"prompt": [["a"]] * MANY}),
        (CompletionRequest, {"prompt": [None] * MANY}),
        (EmbeddingRequest, {"input": [1.5] * MANY}),
        (EmbeddingRequest, {"input": [[-1] * MANY] * 2}),
        (DetokenizeRequest, {"tokens": ["a"] * MANY}),
        (ScoreRequest, {"text": "a", "methods": ["a"] * MANY}),
        (ChatRequest, {"messages": [user([5] * MANY)]}),
        (ChatRequest, {"messages": [user([{"type": "x"}] * MANY)]}),
        (ChatRequest, {"messages": [HELLO], "prediction": {"type": "content", "content": [5] * MANY}}),
        (ChatRequest, {"messages": [HELLO], "tools": [5] * MANY}),
        (ChatRequest, {"messages": [HELLO], "logit_bias": {str(key): "a" for key in range(MANY)}}),
        (ChatRequest, {"messages": [HELLO], "metadata": {str(key): 1 for key in range(MANY)}}),
        (ChatRequest, {"messages": [HELLO], "allowed_token_ids": ["a"] * MANY}),
        (ChatRequest, {"messages": [HELLO], "guided_choice": [1] * MANY}),
        (ChatRequest, {"messages": [HELLO], **{f"x{key}": 1 for key in range(MANY)}}),
        (ChatRequest, {"messages": [HELLO], "stream_options": {f"x{key}": 1 for key in range(MANY)}}),
        (ResponsesRequest, {"input": [user([5] * MANY)]}),
        (ResponsesRequest, {"input": [{"type": "function_call_output", "output": [5] * MANY}]}),
        (MessagesRequest, {"messages": [user([5] * MANY)], "max_tokens": 1}),
    ],
)
def test_a_long_list_of_wrong_elements_makes_a_few_errors(body: type[Wire], content: dict[str, Any]) -> None:
    assert len(mistakes(body, content)) <= 4


@pytest.mark.parametrize(
    ("body", "content", "size"),
    [
        (ChatRequest, {"messages": [user([5] * 500)] * 20}, MAX_MISTAKES + 500 + 20),
        (ChatRequest, {"messages": [*[user([5] * 500)] * 4, user([5] * 50_000)]}, 4 * 500 + 6),
        (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [5] * 128}] * 50}, MAX_MISTAKES + 128 + 50),
        (ResponsesRequest, {"input": "a", "tools": [{"type": "namespace", "name": "a", "tools": [5] * 512}] * 20}, MAX_MISTAKES + 512 + 20),
        (MessagesRequest, {"messages": [user([5] * 256)] * 40, "max_tokens": 1}, MAX_MISTAKES + 256 + 80),
        (TokenizeRequest, {"messages": [user([{"type": "text", "text": "", "x": 1}] * 60)] * 100}, MAX_MISTAKES + 60 + 200),
    ],
)
def test_lists_in_a_list_share_a_bound(body: type[Wire], content: dict[str, Any], size: int) -> None:
    assert len(mistakes(body, content)) <= size
    assert len(mistakes(body, content)) <= size, "the next body begins anew"


def test_an_object_has_as_many_fields_as_any_client_sends() -> None:
    known = {"messages": [HELLO], **{f"x{key}": 1 for key in range(MAX_FIELDS - 1)}}
    assert {error["type"] for error in mistakes(ChatRequest, known)} == {"extra_forbidden"}
    error, *rest = mistakes(ChatRequest, {**known, "one": 1})
    assert not rest and error["msg"] == f"Value error, an object of {MAX_FIELDS + 1} fields; at most {MAX_FIELDS} are supported"


def test_long_lists_are_taken() -> None:
    ids = [*range(100_000)]
    assert CompletionRequest(prompt=ids).prompt == ids == EmbeddingRequest(input=ids).input == DetokenizeRequest(tokens=ids).tokens
    assert len(EmbeddingRequest(input=["a"] * 2048).items) == 2048
    assert CompletionRequest(prompt=[[1, 2]] * 5000).prompt == [[1, 2]] * 5000
    parts = [{"type": "text", "text": "a"}] * 1024
    with few_mistakes():
        assert ChatRequest.model_validate({"messages": [user(parts)] * 3}).messages[2].text.count("a") == 1024


def test_answers_with_pairs_of_numbers_are_read_from_json() -> None:
    adapter = TypeAdapter(Probability)
    given = Probability(value=0.25, interval=(0.125, 0.5))
    assert adapter.validate_json(given.model_dump_json()) == given
