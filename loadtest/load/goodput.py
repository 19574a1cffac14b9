"""How much came in time: service levels, and a load test's records as a table with one row for each stage. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.load.stages import Stage
from loadtest.record import Outcome, Record
from loadtest.summary import number, percentile

COLUMNS = (
    *("load", "requests", "ok", "shed", "failed", "left", "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "TPOT p99 ms", "gap p99 ms"),
    *("chat p50 ms", "queue p99 ms", "score p50 ms", "ok/s", "tokens/s", "in time", "in time/s", "late p99 ms"),
)


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits of a chat, and the `share` of chats that has to keep them. A limit of None is none."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    share: float | None = None

    def kept(self, record: Record) -> bool:
        """An answer of one token has no time per token and cannot miss that limit."""
        first = self.ttft_ms is None or (record.ttft_ms is not None and record.ttft_ms <= self.ttft_ms)
        each = self.tpot_ms is None or record.tpot_ms is None or record.tpot_ms <= self.tpot_ms
        return record.outcome == "ok" and first and each


def goodput(records: Sequence[Record], slo: Slo) -> float:
    """Share of the chats asked for that were answered in time: shed and failed ones count, those a client left do not. NaN for none."""
    asked = [record for record in records if record.kind == "chat" and record.outcome != "left"]
    return sum(map(slo.kept, asked)) / len(asked) if asked else math.nan


def missed(records: Sequence[Record], stages: Sequence[Stage], slo: Slo) -> list[str]:
    """The stages in which less than the wanted share came in time."""
    shares = [(stage.name, goodput(_of(records, stage), slo)) for stage in stages]
    return [f"{name}: {share:.1%} in time" for name, share in shares if slo.share is not None and not share >= slo.share]


def table(records: Sequence[Record], stages: Sequence[Stage], slo: Slo) -> str:
    """Markdown. Warm-up is left out, and so is what was never measured: a dash."""
    cells = [list(COLUMNS), ["---:"] * len(COLUMNS), *(row(stage, _of(records, stage), slo) for stage in stages)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def row(stage: Stage, records: Sequence[Record], slo: Slo) -> list[str]:
    ok = [record for record in records if record.outcome == "ok"]
    chats = [record for record in ok if record.kind == "chat"]
    ttft, tpot = _values([record.ttft_ms for record in chats]), _values([record.tpot_ms for record in chats])
    gaps = [gap for record in chats for gap in record.itl_ms]
    queue, late = _values([record.queue_ms for record in chats]), _values([record.late_ms for record in records])
    scores = [record.e2e_ms for record in ok if record.kind == "score"]
    seconds = span_s(records)
    tokens = _values([record.completion_tokens for record in chats])
    share = math.nan if slo.ttft_ms is None and slo.tpot_ms is None else goodput(records, slo)
    outcomes: tuple[Outcome, ...] = ("ok", "shed", "failed", "left")
    counts = [len(records), *(sum(record.outcome == outcome for record in records) for outcome in outcomes)]
    times = [percentile(ttft, 0.5), percentile(ttft, 0.99), percentile(tpot, 0.5), percentile(tpot, 0.99), percentile(gaps, 0.99)]
    times += [percentile([record.e2e_ms for record in chats], 0.5), percentile(queue, 0.99), percentile(scores, 0.5)]
    rates = [len(ok) / seconds, sum(tokens) / seconds if tokens else math.nan]
    in_time = math.nan if math.isnan(share) else sum(map(slo.kept, chats)) / seconds
    shown = "-" if math.isnan(share) else f"{share:.1%}"
    return [stage.name, *map(str, counts), *map(number, [*times, *rates]), shown, number(in_time), number(percentile(late, 0.99))]


def span_s(records: Sequence[Record]) -> float:
    """From the first request's start to the last one's end. NaN for none."""
    if not records:
        return math.nan
    return max(record.started_s + record.e2e_ms / 1000 for record in records) - min(record.started_s for record in records)


def _of(records: Sequence[Record], stage: Stage) -> list[Record]:
    return [record for record in records if record.stage == stage.number and not record.warm_up]


def _values(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
