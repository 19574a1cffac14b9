"""The arguments of a tool call in the history of a chat, as templates take them: any text becomes an object.

Clients send back what a server answered, also where a limit of tokens cut it. Knows no template.
"""

import json
import re
from typing import Any

PIECE = re.compile(
    r'"(?:[^"\\]+|\\u[0-9a-fA-F]{4}|\\[^u])*("?)|[\[\]{},]', re.DOTALL
)  # a string, perhaps without its end, or a bracket or comma
HALF_CHARACTER = re.compile(r"(?<!\\)((?:\\\\)*)\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
CLOSERS = {"{": "}", "[": "]"}
WRONG = "arguments"  # the property that holds a text which is no object


def object_of(text: str) -> dict[str, Any]:
    """The arguments. Of a JSON object that breaks off, what it has up to there; any other text is the only property."""
    if not text.strip():  # so some servers write a call without arguments
        return {}
    for candidate in (text, *_closed(text)):
        try:
            value = json.loads(candidate, strict=False)
            json.dumps(value)
        except (
            ValueError,
            RecursionError,
        ):  # ValueError: not JSON, or a number of thousands of digits; the other: brackets within brackets
            continue
        if isinstance(value, dict):
            return value
    return {WRONG: text}


def _closed(text: str) -> list[str]:
    """The text with all closed that it has opened: as it is, and without its last property or item."""
    whole, complete = _scan(text)
    return [whole, _scan(text[:complete])[0]]


def _scan(text: str) -> tuple[str, int]:
    """The text with all closed, and the length of what comes before its last property or item. Wrong brackets stay wrong."""
    closers: list[str] = []
    string_end, complete = "", 0
    for match in PIECE.finditer(text):
        piece = match[0]
        if piece.startswith('"'):
            if not match[1]:
                text, string_end = HALF_CHARACTER.sub(r"\1", text[: match.end()]), '"'
                break
        elif piece in CLOSERS:
            closers.append(CLOSERS[piece])
            complete = match.end()
        elif piece == ",":
            complete = match.start()
        else:
            complete = match.end()
            del closers[-1:]
    return text + string_end + "".join(reversed(closers)), complete
