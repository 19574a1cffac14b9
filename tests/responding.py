"""Requests to `/v1/responses`, for tests of the routes."""

from typing import Any

PATH, CHAT = "/v1/responses", "/v1/chat/completions"
RING = {"type": "function", "name": "ring", "parameters": {"type": "object", "properties": {"times": {"type": "integer"}}}}
SING = {"type": "function", "name": "sing"}
USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "aaaaaaaaa", "name": "ring", "arguments": '{"times": 2}'}
RESULT = {"type": "function_call_output", "call_id": "aaaaaaaaa", "output": "rung"}


def ask(served: Any, **fields: Any) -> Any:
    response = served.client.post(PATH, json={"input": "hi", "max_output_tokens": 3, "seed": 7, **fields})
    assert response.status_code == 200, response.text
    return response
