"""Runs on disk to tables with honest intervals: read runs/*.jsonl, percentiles with bootstrap intervals, goodput, one figure.

Knows the files and nothing of the product. Times are milliseconds unless the name says otherwise.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True, slots=True)
class Run:
    """`requests` has a row per request, with the columns of loadtest's records."""

    path: Path
    manifest: dict[str, Any]
    requests: pd.DataFrame

    def title(self) -> str:
        """What was measured, on what, and when: every number belongs to these."""
        model, machine = self.manifest["model"], self.manifest["machine"]
        served = f"{model['id']} ({model['dtype']}, quantize {model['quantize']}, {model['slots']} slots) on {model['device']}"
        return f"{served}; {machine['cpus']} x {machine['processor']}; {self.manifest['time']}; {self.path.name}"


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its confidence interval; all NaN where there was nothing to estimate from."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]" if self.n else "-"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def read_run(path: Path) -> Run:
    """Raises ValueError, naming file and line, for a line that is not JSON; the last line may be cut short (a run that was killed)."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    if not rows or rows[0].get("kind") != "manifest":
        raise ValueError(f"{path}: the first line is not a manifest")
    return Run(path, rows[0], pd.DataFrame(rows[1:]))


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error


def latest(folder: Path, tool: str) -> Run | None:
    """The newest run of `tool` (bench, load) that has a request in it; None if there is none."""
    runs = (read_run(path) for path in sorted(folder.glob(f"{tool}-*.jsonl"), reverse=True))
    return next((run for run in runs if len(run.requests)), None)


def percentile(share: float) -> Statistic:
    """The statistic `percentile(0.95)`; linear between the two nearest values."""
    return lambda values: float(np.quantile(values, share))


def bootstrap(values: Iterable[float], statistic: Statistic, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
    """Percentile bootstrap: the statistic of samples drawn with replacement. Few values give a wide interval, or one too narrow to
    believe: under about 20 values the tail of a p95 was hardly ever seen, whatever the interval says.
    """
    kept = np.asarray([value for value in values if value is not None and not np.isnan(value)], dtype=float)
    if not len(kept):
        return Interval(np.nan, np.nan, np.nan, 0)
    draws = np.random.default_rng(seed).choice(kept, size=(resamples, len(kept)))  # [resamples, n]
    low, high = np.quantile([statistic(draw) for draw in draws], [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistic(kept), float(low), float(high), len(kept))


def chats(run: Run) -> pd.DataFrame:
    return run.requests[run.requests["kind"] == "chat"]


def finished(requests: pd.DataFrame) -> pd.DataFrame:
    return requests[requests["outcome"] == "ok"]


def outcomes(requests: pd.DataFrame) -> pd.DataFrame:
    """Requests by clients and outcome; ok, shed and failed always have a column."""
    counts = pd.crosstab(requests["clients"], requests["outcome"])
    return counts.reindex(columns=["ok", "shed", "failed"], fill_value=0).rename_axis(columns=None)


def span_s(requests: pd.DataFrame) -> float:
    """From the first request's start to the last one's end."""
    ends_s = requests["started_s"] + requests["e2e_ms"] / 1000
    return float(ends_s.max() - requests["started_s"].min())


def waits(requests: pd.DataFrame) -> pd.DataFrame:
    """Chats by clients: TTFT, TPOT and end to end as `Interval`s, and the tokens/s all clients got together."""
    rows = {}
    for clients, group in requests.groupby("clients"):
        ok = finished(group)
        rows[clients] = {
            "n": len(ok),
            "TTFT p50 ms": bootstrap(ok["ttft_ms"], percentile(0.5)),
            "TTFT p95 ms": bootstrap(ok["ttft_ms"], percentile(0.95)),
            "TPOT p50 ms": bootstrap(ok["tpot_ms"], percentile(0.5)),
            "end to end p50 ms": bootstrap(ok["e2e_ms"], percentile(0.5)),
            "tokens/s in all": round(float(ok["completion_tokens"].sum()) / span_s(group), 1),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("clients")


def goodput(requests: pd.DataFrame, *, ttft_ms: float, tpot_ms: float) -> pd.DataFrame:
    """Chats by clients that came in time: first token within `ttft_ms`, further ones within `tpot_ms` each on average.

    The share is of all that were asked for, shed and failed ones too. A one-token answer has no TPOT and cannot miss it.
    """
    rows = {}
    for clients, group in requests.groupby("clients"):
        in_time = (group["outcome"] == "ok") & (group["ttft_ms"] <= ttft_ms) & ~(group["tpot_ms"] > tpot_ms)
        rows[clients] = {"share in time": float(in_time.mean()), "chats/s in time": float(in_time.sum()) / span_s(group)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("clients")


def second_client(requests: pd.DataFrame) -> tuple[int, int] | None:
    """The two smallest numbers of clients with a finished chat, to compare; None if there are not two."""
    counts = sorted(finished(requests)["clients"].unique())
    return (int(counts[0]), int(counts[1])) if len(counts) > 1 else None


def draw_waits(table: pd.DataFrame) -> Figure:
    """TTFT and TPOT medians over clients, with their intervals as bars."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2), ("TTFT p50 ms", "TPOT p50 ms"), strict=True):
        shown = table[column][[interval.n > 0 for interval in table[column]]]
        values = np.array([interval.value for interval in shown])
        below = values - [interval.low for interval in shown]
        above = [interval.high for interval in shown] - values
        axes.errorbar(shown.index, values, yerr=[below, above], marker="o", capsize=4)
        axes.set(xlabel="clients at once", ylabel=column, xticks=list(table.index), ylim=(0, None))
    return figure
