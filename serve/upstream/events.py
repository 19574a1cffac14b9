"""A stream of server-sent events from an upstream as a stream of ours: event by event, comments as they come, and an end in any case.

Fed with bytes as they arrive. Knows no connection.
"""

from typing import Any

from app.errors import LitmusError, UpstreamFailed
from serve.observe.record import current_id
from serve.upstream.answer import NO_CHOICES, Naming, choices_of, count, dump, has_text, load
from serve.upstream.errors import error_in, stream_error
from serve.upstream.meter import Meter
from serve.upstream.wires import MESSAGES, Wire
from serve.wire.errors import error_body

MAX_EVENT_BYTES = 16 * 1024 * 1024
DONE = b"[DONE]"


class Events:
    """`hide_usage`: the client did not ask for the token counts, this server did."""

    def __init__(self, wire: Wire, naming: Naming, there: str, meter: Meter, hide_usage: bool = False) -> None:
        self.ended = False  # the upstream has said its last word
        self._wire, self._naming, self._there, self._meter = wire, naming, there, meter
        self._hide_usage = hide_usage
        self._rest = b""
        self._event = b""
        self._data: list[bytes] = []
        self._size = 0  # bytes of the event so far
        self._numbers = 0  # events of a response
        self._response: dict[str, Any] = {}  # as the latest event of /v1/responses has it
        self._open: dict[int, bool] = {}  # for each choice whether it goes on

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that are complete with this piece. Raises `UpstreamFailed` for what is no event, for an event of an error, and for an
        end without a choice.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        out: list[bytes] = []
        for line in lines:
            out += self._line(line.removesuffix(b"\r"))
        if self._size + len(self._rest) > MAX_EVENT_BYTES:
            raise UpstreamFailed(f"the model's server sent an event of more than {MAX_EVENT_BYTES} bytes")
        return out

    def _line(self, line: bytes) -> list[bytes]:
        if not line:
            data, self._data, self._size = b"\n".join(self._data), [], 0
            event, self._event = self._event, b""
            return self._dispatch(event, data) if data and not self.ended else []
        field, _, value = line.partition(b":")
        if not field:
            return [line + b"\n\n"]
        self._size += len(line)
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        elif field == b"event":
            self._event = value.strip()
        elif field == b"error":  # older llama-servers
            self._data.append(b'{"error":' + value + b"}")
        return []

    def _dispatch(self, name: bytes, data: bytes) -> list[bytes]:
        if data.strip() == DONE:
            if self._wire.has_choices and not self._open:
                raise UpstreamFailed(NO_CHOICES)
            self.ended = True
            return []
        event = load(data)
        told = event if event.get("type") == "error" and "error" not in event else error_in(event)
        if told:
            raise stream_error(told, (self._there, self._naming.model))
        self._note(event)
        if self._hide_usage and self._is_usage(event):
            return []
        self._naming.apply(event.get(self._wire.inner) if self._wire.inner else event, whole=self._wire.inner is None)
        return [(b"event: " + name + b"\n" if name else b"") + b"data: " + dump(event) + b"\n\n"]

    def _note(self, event: dict[str, Any]) -> None:
        count(event, self._wire, self._meter)
        if has_text(event):
            self._meter.text()
        for choice in choices_of(event):
            self._open[choice.get("index", 0)] = choice.get("finish_reason") is None
        if event.get("type") in self._wire.last:
            self.ended = True
        if isinstance(event.get("response"), dict):
            self._response = event["response"]
        self._numbers += 1

    def _is_usage(self, event: dict[str, Any]) -> bool:
        """Whether the event says nothing but the token counts. Nulls in the place of counts are taken out of the others."""
        if "usage" in event and (event["usage"] is None or event.get("choices")):
            del event["usage"]
        return "usage" in event and not event.get("choices")

    @property
    def complete(self) -> bool:
        """Whether the answer is, though the upstream may not have said so: not all of them send `[DONE]`."""
        return self.ended or (bool(self._open) and not any(self._open.values()))

    def finish(self) -> list[bytes]:
        return [b"data: [DONE]\n\n"] if self._wire.ends_with_done else []

    def fail(self, error: LitmusError) -> list[bytes]:
        """The error in the form of the route, and the end."""
        if self._wire.path == MESSAGES:
            return [b"event: error\ndata: " + dump(error_body(error, MESSAGES, current_id())) + b"\n\n"]
        if self._wire.last:
            return self._fail_response(error)
        return [b"data: " + dump(error.envelope()) + b"\n\n", *self.finish()]

    def _fail_response(self, error: LitmusError) -> list[bytes]:
        told: dict[str, Any] = {"type": "error", "code": error.envelope()["error"]["code"], "message": error.message, "param": error.param}
        response = {**self._response, "status": "failed", "error": {"code": "server_error", "message": error.message}}
        self._naming.apply(response)
        events = (told, {"type": "response.failed", "response": {"object": "response", **response}})
        return [
            b"event: " + event["type"].encode() + b"\ndata: " + dump({**event, "sequence_number": self._numbers + index}) + b"\n\n"
            for index, event in enumerate(events)
        ]
