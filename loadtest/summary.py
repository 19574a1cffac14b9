"""Turns records into the table that the closed loop prints. Pure.

The notebooks compute their own numbers, with intervals, from the same records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.record import Record

COLUMNS = ("clients", "requests", "ok", "shed", "failed", "TTFT p50 ms", "TTFT p95 ms", "TPOT p50 ms", "tokens/s in all", "scores/s")


@dataclass(frozen=True, slots=True)
class Round:
    """All records measured with one number of clients, and the duration of its chat phase and of its score phase."""

    clients: int
    records: Sequence[Record]
    chat_s: float
    score_s: float


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest values, as numpy's and the notebooks' are. NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = ordered[math.floor(position)]
    return below + (ordered[math.ceil(position)] - below) * (position % 1)


def row(measured: Round) -> list[str]:
    """The cells of one number of clients, in the order of `COLUMNS`."""
    records = measured.records
    ok = [record for record in records if record.outcome == "ok"]
    ttft = [record.ttft_ms for record in ok if record.ttft_ms is not None]
    tpot = [record.tpot_ms for record in ok if record.tpot_ms is not None]
    tokens = sum(record.completion_tokens or 0 for record in ok)
    scores = sum(record.kind == "score" for record in ok)
    counts = [measured.clients, len(records), len(ok), _count(records, "shed"), _count(records, "failed")]
    times = [percentile(ttft, 0.5), percentile(ttft, 0.95), percentile(tpot, 0.5)]
    return [*map(str, counts), *map(format_number, [*times, _rate(tokens, measured.chat_s), _rate(scores, measured.score_s)])]


def table(rounds: Sequence[Round]) -> str:
    """A Markdown table with one row for each number of clients."""
    cells = [list(COLUMNS), ["---:"] * len(COLUMNS), *map(row, rounds)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _count(records: Sequence[Record], outcome: str) -> int:
    return sum(record.outcome == outcome for record in records)


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else math.nan


def format_number(value: float) -> str:
    """One decimal below 100, none above, and a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.1f}" if value < 100 else f"{value:.0f}"
