"""Requests with a secret in every place that a client fills. No log, trace or metric may hold it."""

from typing import Any

from observing import LIMIT, POISON

SECRET = "Zz-planted-9"
CHAT, TEXT, SCORE = "/v1/chat/completions", "/v1/completions", "/v1/score"
KEY = {"Authorization": f"Bearer {SECRET}", "X-Api-Key": SECRET, "Cookie": SECRET, "User-Agent": SECRET}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "a", "schema": {"type": "object", "properties": {SECRET: {"pattern": SECRET + "("}}}},
}
HELLO = [{"role": "user", "content": "a"}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 2}),
    (CHAT, {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 2, "stream": True, "stop": [SECRET]}),
    (CHAT, {"messages": [{"role": SECRET, "content": SECRET}], "max_tokens": 2}),
    (CHAT, {"messages": [{"role": "user", "content": SECRET * 400}], "max_tokens": 2}),  # longer than the context
    (CHAT, {"messages": HELLO, "max_tokens": 2, "response_format": SCHEMA}),
    (
        CHAT,
        {"messages": HELLO, "max_tokens": 2, "tools": [{"type": "function", "function": {"name": SECRET, "parameters": {}}}]},
    ),
    (TEXT, {"prompt": SECRET, "max_tokens": 1, "user": SECRET, SECRET: SECRET, "metadata": {SECRET: SECRET}}),
    (TEXT, {"prompt": SECRET, "max_tokens": SECRET}),
    (TEXT, {"prompt": SECRET, "max_tokens": 2, "model": SECRET}),
    (TEXT, {"prompt": POISON + SECRET, "max_tokens": 2}),
    (TEXT, {"prompt": SECRET, "stream": True, "max_tokens": 3, "logit_bias": {SECRET: 1}}),
    (SCORE, {"texts": [SECRET, POISON + SECRET], "methods": [SECRET]}),
    (SCORE, {"text": SECRET + POISON}),
    ("/v1/embeddings", {"input": [SECRET, POISON + SECRET]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 1, "system": SECRET}),
    ("/v1/responses", {"input": SECRET, "instructions": SECRET, "max_output_tokens": 1}),
    ("/generate", {"prompt": [SECRET], "max_length": 2}),
    ("/tokenize", {"prompt": SECRET}),
    ("/detokenize", {"tokens": [SECRET]}),
    (f"/{SECRET}", {SECRET: SECRET}),
]


def ask_everything(client: Any) -> list[int]:
    """Requests with the secret in every place that a client fills; the statuses of their answers."""
    statuses = [client.post(path, json=body, params={SECRET: SECRET}, headers=KEY).status_code for path, body in BODIES]
    raw = {"Content-Type": "application/json", **KEY}
    damaged: list[tuple[bytes, dict[str, str]]] = [
        (f'{{"prompt": "{SECRET}"'.encode(), raw),
        (f'["{SECRET}"]'.encode(), raw),
        (SECRET.encode(), {"Content-Type": SECRET}),
        (SECRET.encode(), {**raw, "Content-Encoding": SECRET}),
        (SECRET.encode(), {"Content-Type": f"application/json; charset={SECRET}"}),
        (SECRET.encode() * LIMIT, raw),
    ]
    statuses += [client.post(TEXT, content=content, headers=headers).status_code for content, headers in damaged]
    return [*statuses, client.request(SECRET, TEXT).status_code, client.get(f"/v1/models/{SECRET}").status_code]
