"""Requests to Anthropic's Messages API, for tests of the routes."""

from typing import Any

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HELLO = [{"role": "user", "content": "hi"}]
RING = {"name": "ring", "description": "Ring it.", "input_schema": {"type": "object", "properties": {"times": {"type": "integer"}}}}
SING = {"name": "sing", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}


def post(served: Any, path: str = MESSAGES, **fields: Any) -> Any:
    defaults = {"messages": HELLO, **({"max_tokens": 3} if path == MESSAGES else {})}
    return served.client.post(path, json={**defaults, **fields})
