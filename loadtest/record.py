"""What one request came to: the timing of a stream, the outcome of an answer, and the row they leave in runs/.

Pure: lines and clock readings in, values out. Knows no socket, no clock and no file.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Kind = Literal["chat", "score"]
Outcome = Literal["ok", "shed", "failed", "left"]
SHED = (429, 503)


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times in milliseconds, `started_s` from the start of the run; `reason` says why it is not ok.

    `ttft_ms` is the wait for the first non-empty delta, `tpot_ms` = (e2e - ttft) / (n - 1) with n from the server's `usage`,
    `itl_ms` the gaps between deltas, `queue_ms` the wait for a slot as the server tells it. They are None or empty where the request
    did not get that far, or the server does not say. "left": the client went away on purpose.

    In an open loop all times count from the planned arrival, `late_ms` of them is the load generator's own doing, `rate` is the
    arrivals a second of its `stage`, and `clients` is 0.
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

    def line(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Start:
    """When a request left (`at_s` on the caller's clock, `run_s` the start of the run on the same clock) and among how many clients.

    `traits` are further fields of its record that are known beforehand.
    """

    kind: Kind
    clients: int
    at_s: float
    run_s: float
    traits: Mapping[str, Any] = field(default_factory=dict)

    def record(self, end_s: float, status: int, reason: str | None, **measured: Any) -> Record:
        """`status` 0: no answer came. 429 and 503 are shed: the server said no in time, which is not a failure."""
        outcome: Outcome = "shed" if status in SHED else "failed" if reason or status != 200 else "ok"
        return Record(
            kind=self.kind,
            clients=self.clients,
            started_s=round(self.at_s - self.run_s, 6),
            status=status,
            outcome=outcome,
            e2e_ms=_ms(end_s - self.at_s),
            reason=reason if status == 200 or reason else f"HTTP {status}",
            **{**self.traits, **measured},
        )


@dataclass(frozen=True, slots=True)
class Wants:
    """What a whole answer has. Not every server sends `usage` or `[DONE]`; one without `[DONE]` is whole with its finish_reason.

    `tokens` is the most that were asked for; None leaves an answer's length unchecked.
    """

    tokens: int | None = None
    usage: bool = True
    done: bool = True


@dataclass(slots=True)
class Stream:
    """Follows the server-sent events of one chat: feed it the bytes with the time they arrived, then ask for the record.

    Bytes, because text would also be split at characters such as U+2028, which may stand inside an event.
    """

    start: Start
    wants: Wants = Wants()
    rest: bytes = b""
    deltas_s: list[float] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    done: bool = False
    left: bool = False
    error: str | None = None
    text: str = ""
    id: str | None = None
    finish: str | None = None
    prompt_ms: float | None = None

    def feed(self, data: bytes, at_s: float) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self._line(line.decode("utf-8", "replace"), at_s)

    def _line(self, text: str, at_s: float) -> None:
        """Anything but a `data:` line (comments, blank lines) carries no token and is passed over."""
        if not text.startswith("data:"):
            return
        data = text.removeprefix("data:").strip()
        if data == "[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
        except json.JSONDecodeError:
            self.error = "an event is not JSON"
            return
        try:
            self._event(event, at_s)
        except (AttributeError, KeyError, TypeError, ValueError):
            self.error = "an event is no chat completion chunk"

    def _event(self, event: dict[str, Any], at_s: float) -> None:
        if "error" in event:
            error = event["error"]
            self.error = f"error event: {error if isinstance(error, str) else error.get('code') or error.get('type')}"
        self.id = self.id or event.get("id")
        if event.get("usage"):
            self.usage = {**event["usage"], "completion_tokens": int(event["usage"]["completion_tokens"])}
        if "timings" in event:  # llama-server: how long it took to read the prompt, once it had a slot
            self.prompt_ms = event["timings"]["prompt_ms"]
        choices = event.get("choices", ())
        self.finish = next((choice["finish_reason"] for choice in choices if choice.get("finish_reason")), self.finish)
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        if text or any(choice["delta"].get(name) for choice in choices for name in ("reasoning_content", "reasoning", "tool_calls")):
            self.deltas_s.append(at_s)
            self.text += text

    def record(self, end_s: float) -> Record:
        deltas, usage = self.deltas_s, self.usage or {}
        tokens = usage.get("completion_tokens")
        ttft_s = deltas[0] - self.start.at_s if deltas else None
        tpot_s = (end_s - deltas[0]) / (tokens - 1) if deltas and tokens is not None and tokens > 1 else None
        record = self.start.record(
            end_s,
            200,
            None if self.left else self._reason(),
            ttft_ms=_ms(ttft_s),
            tpot_ms=_ms(tpot_s),
            itl_ms=tuple(_ms(later - earlier) for earlier, later in zip(deltas, deltas[1:], strict=False)),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=tokens,
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            queue_ms=None if ttft_s is None or self.prompt_ms is None else max(0.0, _ms(ttft_s) - self.prompt_ms),
            request=self.id,
        )
        return replace(record, outcome="left") if self.left else record

    def _reason(self) -> str | None:
        if self.error:
            return self.error
        if not self.done and self.wants.done:
            return "truncated: the stream ended without [DONE]"
        if self.finish is None and (self.wants.tokens is not None or not self.wants.done):
            return "truncated: the stream ended without a finish_reason"
        if not self.usage:
            return "no usage in the stream" if self.wants.usage else None
        return self._wrong(self.usage["completion_tokens"])

    def _wrong(self, tokens: int) -> str | None:
        """Only where it is known what was asked for."""
        asked = self.wants.tokens
        if asked is None:
            return None
        if tokens > asked or (self.finish == "length" and tokens != asked):
            return f"wrong: {tokens} tokens came, {asked} were asked for, finish_reason {self.finish}"
        return "wrong: tokens were counted, and no text came" if self.finish == "length" and not self.deltas_s else None


def score_record(start: Start, end_s: float, body: Any, texts: int) -> Record:
    """A score answered with 200: failed all the same if a text is missing or came back as an error."""
    try:
        data = body["data"]
        bad = [item.get("code") for item in data if item["object"] != "score"]
        tokens = body.get("usage", {}).get("prompt_tokens")
    except (AttributeError, KeyError, TypeError):
        return start.record(end_s, 200, "wrong: the body is no list of scores")
    reason = f"{len(data)} scores for {texts} texts" if len(data) != texts else f"text failed: {bad[0]}" if bad else None
    return start.record(end_s, 200, reason, prompt_tokens=tokens)


def _ms(seconds: float | None) -> Any:
    return None if seconds is None else round(1000 * seconds, 3)
