"""Measures one request: the timing of a stream, the outcome of a response, and the `Record` of both that is written to runs/.

Pure: lines and clock readings in, values out. Knows no socket, no clock and no file.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Kind = Literal["chat", "score"]
Outcome = Literal["ok", "shed", "failed", "left"]
SHED_STATUSES = (429, 503)


@dataclass(frozen=True, slots=True)
class Record:
    """The result of one request; its field names are the keys of a line in runs/*.jsonl.

    Times are in milliseconds, `started_s` in seconds from the start of the run. `reason` says why the outcome is not ok.

    `ttft_ms` is the time to the first non-empty delta. `tpot_ms` = (e2e - ttft) / (n - 1), with n from the server's `usage`.
    `itl_ms` are the gaps between deltas. `queue_ms` is the time the request waited for a slot, as the server reports it. A time is None
    (or empty) if the request did not get that far or the server does not report it. Outcome "left": the client disconnected on purpose.

    In an open loop all times count from the planned arrival, `late_ms` is the part of them by which the load generator sent too late,
    `rate` is the arrival rate of the `stage` per second, and `clients` is 0.
    """

    kind: Kind
    clients: int
    started_s: float
    status: int
    outcome: Outcome
    e2e_ms: float
    reason: str | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    itl_ms: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    queue_ms: float | None = None
    late_ms: float | None = None
    user: str | None = None
    stage: int = 0
    rate: float | None = None
    warm_up: bool = False
    turn: int = 1
    length: str | None = None
    prefix: int | None = None
    request: str | None = None
    retry_after_s: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Start:
    """When a request was sent, and among how many clients.

    `at_s` is the time of sending on the caller's clock, `run_s` the start of the run on the same clock. `known_fields` are fields of the
    record that are known before the response.
    """

    kind: Kind
    clients: int
    at_s: float
    run_s: float
    known_fields: Mapping[str, Any] = field(default_factory=dict)

    def record(self, end_s: float, status: int, reason: str | None, **measured: Any) -> Record:
        """Builds the record of the request. `status` 0: there was no response.

        429 and 503 count as shed, not as failed: the server refused in time.
        """
        outcome: Outcome = "shed" if status in SHED_STATUSES else "failed" if reason or status != 200 else "ok"
        return Record(
            kind=self.kind,
            clients=self.clients,
            started_s=round(self.at_s - self.run_s, 6),
            status=status,
            outcome=outcome,
            e2e_ms=_ms(end_s - self.at_s),
            reason=reason if status == 200 or reason else f"HTTP {status}",
            **{**self.known_fields, **measured},
        )


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a complete stream must contain. Not every server sends `usage` or `[DONE]`; without `[DONE]` a stream ends with a finish_reason.

    `max_tokens` is the limit that the request set; None leaves the length of the answer unchecked.
    """

    max_tokens: int | None = None
    has_usage: bool = True
    has_done: bool = True


@dataclass(slots=True)
class Stream:
    """Parses the server-sent events of one chat. Feed it bytes with the time they arrived, then call `record`.

    It takes bytes and splits them itself: str.splitlines, and clients that use it, also split at U+2028, which may occur inside an event.
    `done`: [DONE] arrived. `client_left`: the client disconnected on purpose.
    """

    start: Start
    expected: Expectations = Expectations()
    unparsed: bytes = b""
    deltas_s: list[float] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    done: bool = False
    client_left: bool = False
    error: str | None = None
    text: str = ""
    id: str | None = None
    finish_reason: str | None = None
    prompt_ms: float | None = None

    def feed(self, data: bytes, at_s: float) -> None:
        *lines, self.unparsed = (self.unparsed + data).split(b"\n")
        for line in lines:
            self._read_line(line.decode("utf-8", "replace"), at_s)

    def _read_line(self, line: str, at_s: float) -> None:
        """Ignores lines other than `data:` (comments, blank lines): they carry no token."""
        if not line.startswith("data:"):
            return
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except json.JSONDecodeError:
            self.error = "an event is not JSON"
            return
        try:
            self._read_event(event, at_s)
        except (AttributeError, KeyError, TypeError, ValueError):
            self.error = "an event is not a chat completion chunk"

    def _read_event(self, event: dict[str, Any], at_s: float) -> None:
        if "error" in event:
            error = event["error"]
            self.error = f"error event: {error if isinstance(error, str) else error.get('code') or error.get('type')}"
        self.id = self.id or event.get("id")
        if event.get("usage"):
            self.usage = {**event["usage"], "completion_tokens": int(event["usage"]["completion_tokens"])}
        if "timings" in event:  # llama-server: duration of the prefill, without the wait for a slot
            self.prompt_ms = event["timings"]["prompt_ms"]
        choices = event.get("choices", ())
        self.finish_reason = next((choice["finish_reason"] for choice in choices if choice.get("finish_reason")), self.finish_reason)
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        if text or any(choice["delta"].get(name) for choice in choices for name in ("reasoning_content", "reasoning", "tool_calls")):
            self.deltas_s.append(at_s)
            self.text += text

    def record(self, end_s: float) -> Record:
        """The record of the stream, which ended at `end_s`."""
        deltas, usage = self.deltas_s, self.usage or {}
        tokens = usage.get("completion_tokens")
        ttft_s = deltas[0] - self.start.at_s if deltas else None
        tpot_s = (end_s - deltas[0]) / (tokens - 1) if deltas and tokens is not None and tokens > 1 else None
        record = self.start.record(
            end_s,
            200,
            None if self.client_left else self._failure(),
            ttft_ms=_ms(ttft_s),
            tpot_ms=_ms(tpot_s),
            itl_ms=tuple(_ms(later - earlier) for earlier, later in zip(deltas, deltas[1:], strict=False)),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=tokens,
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            queue_ms=None if ttft_s is None or self.prompt_ms is None else max(0.0, _ms(ttft_s) - self.prompt_ms),
            request=self.id,
        )
        return replace(record, outcome="left") if self.client_left else record

    def _failure(self) -> str | None:
        """Why the stream is not complete or not right; None if it is both."""
        if self.error:
            return self.error
        if not self.done and self.expected.has_done:
            return "truncated: the stream ended without [DONE]"
        if self.finish_reason is None and (self.expected.max_tokens is not None or not self.expected.has_done):
            return "truncated: the stream ended without a finish_reason"
        if not self.usage:
            return "no usage in the stream" if self.expected.has_usage else None
        return self._length_error(self.usage["completion_tokens"])

    def _length_error(self, tokens: int) -> str | None:
        """Compares the number of tokens with the limit of the request, if that is known."""
        limit = self.expected.max_tokens
        if limit is None:
            return None
        if tokens > limit or (self.finish_reason == "length" and tokens != limit):
            return f"wrong: the server sent {tokens} tokens for max_tokens {limit}, finish_reason {self.finish_reason}"
        return "wrong: usage counts tokens, but no text arrived" if self.finish_reason == "length" and not self.deltas_s else None


def score_record(start: Start, end_s: float, body: Any, texts: int) -> Record:
    """The record of a score request that was answered with 200. It failed if a text has no score or an error instead of one."""
    try:
        data = body["data"]
        errors = [item.get("code") for item in data if item["object"] != "score"]
        tokens = body.get("usage", {}).get("prompt_tokens")
    except (AttributeError, KeyError, TypeError):
        return start.record(end_s, 200, "wrong: the body is not a list of scores")
    reason = f"{len(data)} scores for {texts} texts" if len(data) != texts else f"text failed: {errors[0]}" if errors else None
    return start.record(end_s, 200, reason, prompt_tokens=tokens)


def _ms(seconds: float | None) -> Any:
    return None if seconds is None else round(1000 * seconds, 3)
