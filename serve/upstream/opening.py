"""The beginning of a conversation as words, by which a later turn finds the upstream that has read it. Knows the bodies' fields only."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from serve.workers.affinity import STRIDE_TOKENS

WORD = 4  # bytes
STRIDE = STRIDE_TOKENS * WORD
MAX_BYTES = 64 * 1024  # what follows makes no difference


def words_of(body: Mapping[str, Any]) -> Sequence[int]:
    """Of a chat its messages up to the first one by the user, which every turn repeats; of a text the text. Empty for other bodies."""
    if "prompt" in body:
        return _words(body["prompt"])
    turns = body.get("messages", body.get("input"))
    if isinstance(turns, str):
        return _words([body.get("instructions"), turns])
    if not isinstance(turns, list):
        return ()
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    end = roles.index("user") + 1 if "user" in roles else len(turns)
    return _words([body.get("system"), body.get("instructions"), turns[:end]])


def _words(content: Any) -> Sequence[int]:
    """Filled up to whole strides: a shorter text would have no prefix that is remembered."""
    text = json.dumps(content).encode()[:MAX_BYTES]
    return memoryview(text.ljust(-(-len(text) // STRIDE) * STRIDE)).cast("I")
