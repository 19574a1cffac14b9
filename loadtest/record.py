"""What one request came to: the timing of a stream, the outcome of an answer, and the row they leave in runs/.

Pure: lines and clock readings in, values out. Knows no socket, no clock and no file.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["chat", "score"]
Outcome = Literal["ok", "shed", "failed"]
SHED = (429, 503)


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times in milliseconds, `started_s` from the start of the run; `reason` says why it is not ok.

    `ttft_ms` is the wait for the first non-empty delta, `tpot_ms` = (e2e - ttft) / (n - 1) with n from the server's `usage`,
    `itl_ms` the gaps between deltas. They are None or empty where the request did not get that far.
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

    def line(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Start:
    """When a request left (`at_s` on the caller's clock, `run_s` the start of the run on the same clock) and among how many clients."""

    kind: Kind
    clients: int
    at_s: float
    run_s: float

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
            **measured,
        )


@dataclass(slots=True)
class Stream:
    """Follows the server-sent events of one chat: feed it the bytes with the time they arrived, then ask for the record.

    Bytes, because text would also be split at characters such as U+2028, which may stand inside an event.
    """

    start: Start
    rest: bytes = b""
    deltas_s: list[float] = field(default_factory=list)
    usage: dict[str, int] | None = None
    done: bool = False
    error: str | None = None
    text: str = ""

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
        self._event(event, at_s)

    def _event(self, event: dict[str, Any], at_s: float) -> None:
        if "error" in event:
            error = event["error"]
            self.error = f"error event: {error if isinstance(error, str) else error.get('code') or error.get('message')}"
        if event.get("usage"):
            self.usage = event["usage"]
        text = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
        if text:
            self.deltas_s.append(at_s)
            self.text += text

    def record(self, end_s: float) -> Record:
        deltas = self.deltas_s
        tokens = self.usage["completion_tokens"] if self.usage else None
        ttft_s = deltas[0] - self.start.at_s if deltas else None
        tpot_s = (end_s - deltas[0]) / (tokens - 1) if deltas and tokens is not None and tokens > 1 else None
        return self.start.record(
            end_s,
            200,
            self._reason(),
            ttft_ms=_ms(ttft_s),
            tpot_ms=_ms(tpot_s),
            itl_ms=tuple(_ms(later - earlier) for earlier, later in zip(deltas, deltas[1:], strict=False)),
            prompt_tokens=self.usage["prompt_tokens"] if self.usage else None,
            completion_tokens=tokens,
        )

    def _reason(self) -> str | None:
        if self.error:
            return self.error
        if not self.done:
            return "truncated: the stream ended without [DONE]"
        return None if self.usage else "no usage in the stream"


def score_record(start: Start, end_s: float, body: dict[str, Any], texts: int) -> Record:
    """A score answered with 200: failed all the same if a text is missing or came back as an error."""
    data = body.get("data", [])
    bad = [item.get("code") for item in data if item.get("object") != "score"]
    reason = f"{len(data)} scores for {texts} texts" if len(data) != texts else f"text failed: {bad[0]}" if bad else None
    return start.record(end_s, 200, reason, prompt_tokens=body.get("usage", {}).get("prompt_tokens"))


def _ms(seconds: float | None) -> Any:
    return None if seconds is None else round(1000 * seconds, 3)
