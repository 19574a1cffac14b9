"""What a browser may send to the page's functions: texts and numbers, never a file, an address or a component. Knows no Gradio.

A chat message may name a file or a component of Gradio's, with its arguments; Gradio then opens that file, fetches that address or builds
that component before any function of the page sees the message.
"""

import json
from collections.abc import Iterator

from starlette.requests import ClientDisconnect, Request

MAX_BYTES = 2_000_000
CALL = frozenset({"data", "event_data", "fn_index", "trigger_id", "session_hash", "event_id"})
MESSAGE = frozenset({"role", "content", "metadata", "options", "type", "text"})
CHOICE = frozenset({"index", "value", "sample", "selected"})  # what was chosen in a list
FIELDS = CALL | MESSAGE | CHOICE


async def read_body(request: Request, limit: int) -> bytes | None:
    """None if it is longer than `limit`, or the client left."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                return None
    except ClientDisconnect:
        return None
    return body


def is_plain(body: bytes) -> bool:
    """Whether every object in this JSON has fields of a call, a message of text, or a choice in a list, and no other."""
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(call, dict) and all(FIELDS.issuperset(item) and item.get("type", "text") == "text" for item in _objects(call))


def _objects(value: object) -> Iterator[dict[str, object]]:
    """Every object in a JSON value, itself included."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            yield item
            rest += item.values()
        elif isinstance(item, list):
            rest += item
