"""Service levels, goodput (the share of chats that met them), and the table of a load test with one row for each stage. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.load.stages import Stage
from loadtest.record import Outcome, Record
from loadtest.summary import format_number, percentile

COLUMNS = (
    *("load", "requests", "ok", "shed", "failed", "left", "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "TPOT p99 ms", "gap p99 ms"),
    *("chat p50 ms", "queue p99 ms", "score p50 ms", "ok/s", "tokens/s", "in time", "in time/s", "late p99 ms", "turns cached"),
)


@dataclass(frozen=True, slots=True)
class Slo:
    """Service levels: limits for a chat (None: no limit), and the `share` of chats that must meet them."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    share: float | None = None

    def is_met(self, record: Record) -> bool:
        """An answer of one token has no TPOT and therefore meets that limit."""
        ttft_met = self.ttft_ms is None or (record.ttft_ms is not None and record.ttft_ms <= self.ttft_ms)
        tpot_met = self.tpot_ms is None or record.tpot_ms is None or record.tpot_ms <= self.tpot_ms
        return record.outcome == "ok" and ttft_met and tpot_met


def goodput(records: Sequence[Record], slo: Slo) -> float:
    """Share of the chats within the limits. Shed and failed chats count as missed, chats that the client left do not count. NaN: none."""
    chats = [record for record in records if record.kind == "chat" and record.outcome != "left"]
    return sum(map(slo.is_met, chats)) / len(chats) if chats else math.nan


def missed_stages(records: Sequence[Record], stages: Sequence[Stage], slo: Slo) -> list[str]:
    """A message for each stage in which the goodput is below `slo.share`; none without such a share."""
    shares = [(stage.name, goodput(_measured(records, stage), slo)) for stage in stages]
    return [f"{name}: {share:.1%} in time" for name, share in shares if slo.share is not None and not share >= slo.share]


def table(records: Sequence[Record], stages: Sequence[Stage], slo: Slo) -> str:
    """A Markdown table. The warm-up is left out; a value that was never measured is a dash."""
    cells = [list(COLUMNS), ["---:"] * len(COLUMNS), *(row(stage, _measured(records, stage), slo) for stage in stages)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def row(stage: Stage, records: Sequence[Record], slo: Slo) -> list[str]:
    """The cells of one stage, in the order of `COLUMNS`."""
    ok = [record for record in records if record.outcome == "ok"]
    chats = [record for record in ok if record.kind == "chat"]
    ttft, tpot = _present([record.ttft_ms for record in chats]), _present([record.tpot_ms for record in chats])
    gaps = [gap for record in chats for gap in record.itl_ms]
    queue, late = _present([record.queue_ms for record in chats]), _present([record.late_ms for record in records])
    scores = [record.e2e_ms for record in ok if record.kind == "score"]
    seconds = span_s(records)
    tokens = _present([record.completion_tokens for record in chats])
    share = math.nan if slo.ttft_ms is None and slo.tpot_ms is None else goodput(records, slo)
    outcomes: tuple[Outcome, ...] = ("ok", "shed", "failed", "left")
    counts = [len(records), *(sum(record.outcome == outcome for record in records) for outcome in outcomes)]
    times = [percentile(ttft, 0.5), percentile(ttft, 0.99), percentile(tpot, 0.5), percentile(tpot, 0.99), percentile(gaps, 0.99)]
    times += [percentile([record.e2e_ms for record in chats], 0.5), percentile(queue, 0.99), percentile(scores, 0.5)]
    rates = [len(ok) / seconds, sum(tokens) / seconds if tokens else math.nan]
    in_time_per_s = math.nan if math.isnan(share) else sum(map(slo.is_met, chats)) / seconds
    return [
        stage.name,
        *map(str, counts),
        *map(format_number, [*times, *rates]),
        _share_cell(share),
        *map(format_number, [in_time_per_s, percentile(late, 0.99)]),
        _share_cell(continued_from_cache(chats)),
    ]


def continued_from_cache(chats: Sequence[Record]) -> float:
    """Share of the turns that continue a conversation of which the server had at least half of the prompt in its cache. NaN: none."""
    counts = [(chat.cached_tokens, chat.prompt_tokens) for chat in chats if chat.turn > 1]
    found = [2 * cached >= prompt for cached, prompt in counts if cached is not None and prompt is not None]
    return sum(found) / len(found) if found else math.nan


def _share_cell(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def span_s(records: Sequence[Record]) -> float:
    """Seconds from the start of the first request to the end of the last one. NaN for no records."""
    if not records:
        return math.nan
    return max(record.started_s + record.e2e_ms / 1000 for record in records) - min(record.started_s for record in records)


def _measured(records: Sequence[Record], stage: Stage) -> list[Record]:
    """The records of a stage without its warm-up."""
    return [record for record in records if record.stage == stage.number and not record.warm_up]


def _present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
