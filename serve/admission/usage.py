"""How many tokens an answer may cost, read from its request, and how many it did, read from its bytes as they leave. Knows the names of the
counts, no other form.
"""

import re

from starlette.datastructures import Headers
from starlette.types import Scope

from serve.observe.record import RequestRecord

BYTES_PER_TOKEN = 4
LIMIT = re.compile(rb'"(?:max_(?:completion_|output_)?tokens|n_predict)"\s{0,8}:\s{0,8}(\d{1,9})')
OVERLAP = 64  # bytes of a piece that may be the beginning of such a field
COUNT = re.compile(rb'"(prompt_tokens|input_tokens|completion_tokens|output_tokens)":\s?(\d{1,9})\b')
USAGE = b'"usage":'  # in a text of the answer, the quotes of these names would have a backslash before them
EVENT = b"data: "


def estimated_tokens(scope: Scope) -> int:
    """What a request costs as far as its headers tell: the bytes of its body by `BYTES_PER_TOKEN`, at least one token."""
    length = Headers(scope=scope).get("content-length", "")
    return max(int(length) // BYTES_PER_TOKEN, 1) if length.isdecimal() and len(length) < 16 else 1


class AnswerLimit:
    """Finds in the pieces of a body how many tokens its answer may have; 0 where it does not say so, or the body is compressed."""

    def __init__(self) -> None:
        self.tokens = 0
        self._rest = b""

    def read(self, piece: bytes) -> None:
        for count in LIMIT.findall(self._rest + piece):
            self.tokens = max(self.tokens, int(count))
        self._rest = (self._rest + piece)[-OVERLAP:]


class Usage:
    """Adds up what the pieces of one answer say."""

    def __init__(self, estimate: int) -> None:
        self.estimate = estimate  # of the prompt, for an answer that does not say what it was
        self._counts: dict[bytes, int] = {}
        self._events = 0

    def read(self, piece: bytes) -> None:
        self._events += piece.count(EVENT)
        if USAGE in piece:
            for name, count in COUNT.findall(piece):
                self._counts[name] = max(self._counts.get(name, 0), int(count))

    def tokens(self, record: RequestRecord | None) -> int:
        """Of prompt and answer. `record` is what the server counted itself, which an answer that was left early does not say. Without
        both, the prompt is the estimate, and the answer a token an event.
        """
        prompt = self._largest(b"prompt_tokens", b"input_tokens")
        answer = self._largest(b"completion_tokens", b"output_tokens")
        if record is None or not record.jobs:
            return (self.estimate if prompt is None else prompt) + (self._events if answer is None else answer)
        # several answers to one prompt are several jobs, and the answer counts their prompt once
        prompt = (record.prompt_tokens or self.estimate) if prompt is None else max(prompt, record.prompt_tokens // record.jobs)
        return prompt + max(answer or 0, record.generated_tokens)

    def _largest(self, *names: bytes) -> int | None:
        return max((self._counts[name] for name in names if name in self._counts), default=None)
