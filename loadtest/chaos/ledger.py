"""The books of a run: every request ends as exactly one of answered, refused, failed, lost. Pure: times come in, counts go out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from loadtest.chaos.reply import Reply, readable, same

Outcome = Literal["answered", "refused", "failed", "lost"]
OUTCOMES: tuple[Outcome, ...] = ("answered", "refused", "failed", "lost")
REFUSALS = (429, 503)
BEGUN = {"worker_died", "engine_failed"}  # codes of a 503 that ends a request which the server had accepted
DEADLINE = "deadline"  # `Reply.broken` of a request that had no end in time
REFUSED = "connection refused"  # `Reply.broken` of a request that found nobody listening


@dataclass(frozen=True, slots=True)
class Ending:
    """`equal`: whether the answer is that of the undisturbed run; None if there is none to compare."""

    outcome: Outcome
    why: str = ""
    equal: bool | None = None
    server_error: bool = False  # a 500, as a status or as an error event


def judge(reply: Reply, expected: Mapping[str, Any] | None, down: bool) -> Ending:
    """`down`: the server was being restarted on purpose when the request was sent or ended, so nobody had to listen."""
    if reply.broken == REFUSED:
        return Ending("refused" if down else "lost", REFUSED)
    if reply.fault or reply.broken == DEADLINE or (reply.broken and reply.error is None):
        return Ending("lost", _why_lost(reply), server_error=reply.status == 500)
    if reply.status != 200:
        return _judge_status(reply)
    if reply.error is not None:
        return _judge_event(reply.error)
    if not reply.complete:
        return Ending("lost", "an answer without its end")
    return Ending("answered", equal=None if expected is None else same(reply.answer, expected))


def _why_lost(reply: Reply) -> str:
    if reply.broken == DEADLINE:
        return "no end within its deadline"
    return f"connection broken: {reply.broken}" if reply.broken else reply.fault or ""


def _judge_event(error: Mapping[str, Any]) -> Ending:
    if not readable(error):
        return Ending("lost", "an error event without message or code")
    return Ending("failed", f"error event {error['code']}", server_error=error.get("type") == "server_error")


def _judge_status(reply: Reply) -> Ending:
    server_error = reply.status == 500
    if not readable(reply.error) or reply.error is None:
        return Ending("lost", f"status {reply.status} without a readable error", server_error=server_error)
    said = f"{reply.status} {reply.error['code']}"
    if reply.status not in REFUSALS or reply.error["code"] in BEGUN:
        return Ending("failed", said, server_error=server_error)
    if reply.retry_after is None or not reply.retry_after.isdigit():
        return Ending("failed", f"{said} without Retry-After")
    return Ending("refused", said)


@dataclass(frozen=True, slots=True)
class Line:
    """One request that ended. `disturbances`: numbers of those that happened while it was in flight."""

    kind: str
    name: str
    sent_s: float
    ended_s: float
    ending: Ending
    disturbances: tuple[int, ...] = ()


@dataclass(slots=True)
class Disturbance:
    """Something that was done to the server. Times in seconds after it; None: it did not happen, or was not looked at."""

    number: int
    kind: str
    at_s: float
    not_ready_s: float | None = None
    served_again_s: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Ledger:
    """Who is in flight, and how all others ended."""

    lines: list[Line] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    sent: int = 0
    answered: int = 0
    left: int = 0  # clients that left on purpose: nobody waited for their end
    _open: dict[int, tuple[str, str, float, list[int]]] = field(default_factory=dict)

    def begin(self, kind: str, name: str, at_s: float) -> int:
        self.sent += 1
        self._open[self.sent] = kind, name, at_s, []
        return self.sent

    def end(self, number: int, at_s: float, ending: Ending) -> None:
        kind, name, sent_s, disturbances = self._open.pop(number)
        self.answered += ending.outcome == "answered"
        self.lines.append(Line(kind, name, sent_s, at_s, ending, tuple(disturbances)))

    def disturb(self, kind: str, at_s: float) -> Disturbance:
        """Begin a disturbance, and mark all requests in flight with it."""
        disturbance = Disturbance(len(self.disturbances), kind, at_s)
        self.disturbances.append(disturbance)
        for *_, disturbances in self._open.values():
            disturbances.append(disturbance.number)
        return disturbance

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def touched(self, disturbance: Disturbance) -> bool:
        """Whether a request that was in flight at the disturbance still is."""
        return any(disturbance.number in disturbances for *_, disturbances in self._open.values())


def counts(lines: Iterable[Line]) -> dict[str, int]:
    """How many ended how, and how many of the answers are equal to the undisturbed ones, or different."""
    lines = list(lines)
    by_outcome = Counter(line.ending.outcome for line in lines)
    equal = Counter(line.ending.equal for line in lines if line.ending.outcome == "answered")
    return {"sent": len(lines), **{outcome: by_outcome[outcome] for outcome in OUTCOMES}, "equal": equal[True], "different": equal[False]}


def in_flight_at(lines: Iterable[Line], disturbance: Disturbance) -> dict[str, int]:
    """Counts of the requests that were in flight. One that a full queue refused was not: the server had never taken it."""
    return counts(
        line
        for line in lines
        if disturbance.number in line.disturbances and not (line.ending.outcome == "refused" and line.ending.why.startswith("429"))
    )


def reasons(lines: Iterable[Line], *outcomes: Outcome) -> dict[str, int]:
    """Why requests were refused, failed or were lost, the most frequent reason first."""
    return dict(Counter(f"{line.ending.outcome}: {line.ending.why}" for line in lines if line.ending.outcome in outcomes).most_common())


def longest_wait_s(lines: Sequence[Line]) -> float:
    return max((line.ended_s - line.sent_s for line in lines), default=0.0)
