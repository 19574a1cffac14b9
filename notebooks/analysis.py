"""Reads runs/*.jsonl, estimates statistics with confidence intervals, and draws plots. Also computes the tables of load tests.

Knows the files and nothing of the product. Times are in milliseconds unless a name says otherwise.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RUN_FOLDERS = (Path("../runs"), Path("recorded"))  # relative to notebooks/: new runs, else the recorded ones
# lines and fills differ in shape or pattern, not in colour alone
LINE_STYLES = (("o-", "black"), ("s--", "0.35"), ("^:", "0.5"), ("D-.", "0.2"), ("v-", "0.65"), ("P--", "0.1"))
BAR_FILLS = (("0.25", ""), ("0.75", ""), ("white", "////"), ("0.5", ""), ("white", ".."), ("0.9", "xx"), ("0.6", "\\\\"), ("white", ""))
SERVER_NAMES = {"litmus": "Litmus", "llamacpp": "llama-server"}  # by what they name as the owner of a model
Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True, slots=True)
class Run:
    """A file of one run: its manifest (the first line), and a row for each further line."""

    path: Path
    manifest: dict[str, Any]
    rows: pd.DataFrame

    def title(self) -> str:
        """Describes what was measured, on which machine, when, and by which code."""
        machine, commit = self.manifest["machine"], self.manifest.get("commit")
        when = self.manifest["time"].replace("T", " ").replace("+00:00", " UTC")
        code = f"; commit {commit[:12]}{'+' * commit.endswith('+')}" if commit else ""
        place = f"`{self.path.resolve().parent.name}/{self.path.name}`"
        quick = "; made with --quick, so its numbers are no measurement" if self.quick else ""
        return f"{_subject(self.manifest)}; {machine['cpus']} x {machine['processor']}; {when}{code}; {place}{quick}"

    @property
    def quick(self) -> bool:
        """Whether the run was made with --quick, by the manifest or by a command line in it or in a row."""
        commands = [self.manifest.get("command"), *self.rows.get("command", ())]
        return bool(self.manifest.get("quick")) or any("--quick" in command for command in commands if isinstance(command, str))

    def of(self, kind: str) -> pd.DataFrame:
        """Returns the rows of one kind, without warm-up requests."""
        rows = self.rows[self.rows["kind"] == kind]
        return rows[rows["warm_up"].ne(True)] if "warm_up" in rows else rows


def _subject(manifest: dict[str, Any]) -> str:
    """Names the models, with dtype, quantization, slots and device if the manifest has them."""
    model = manifest.get("model")
    if isinstance(model, dict):
        known = {**model, "quantize": model.get("quantize", manifest.get("quantization"))}
        details = [known.get("dtype"), f"quantize {known['quantize']}", f"{known.get('slots')} slots", known.get("device")]
        shown = ", ".join(detail for detail in details if detail and not detail.startswith(("None", "quantize None")))
        return f"{Path(known['id']).name} ({shown})" if shown else Path(known["id"]).name
    names = [model] if model else manifest.get("models") or manifest.get("plan", {}).get("models") or ["no model"]
    return ", ".join(Path(name).name for name in names)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate from `n` values and the ends of its confidence interval, not shown for n = 1; all NaN if there were no values."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:
            return format_number(self.value) if self.n else "-"
        return f"{format_number(self.value)} [{format_number(self.low)}, {format_number(self.high)}]"


def format_number(value: float) -> str:
    """Formats a number with three digits, or with all digits before the decimal point."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def read_run(path: Path) -> Run:
    """Reads a file of runs/ without a last line that was cut short. Raises `ValueError`, naming the line, for one that is not JSON."""
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


def runs(tool: str, matches: Callable[[Run], bool] = lambda run: True, folders: Sequence[Path] = RUN_FOLDERS) -> list[Run]:
    """Returns the runs of `tool` with rows that match, of one folder; the newest first, quick ones last.

    It is the first folder with one that is not quick, so that a quick run never takes the place of a recorded measurement; if all are
    quick, the first with any.
    """
    found = [[run for run in _newest_first(folder, tool) if matches(run)] for folder in folders]
    measured = [one for one in found if not all(run.quick for run in one)]
    return sorted(next(iter(measured or filter(None, found)), []), key=lambda run: run.quick)


def _newest_first(folder: Path, tool: str) -> list[Run]:
    """The runs of a folder that have rows."""
    return [run for path in sorted(folder.glob(f"{tool}-*.jsonl"), reverse=True) if len((run := read_run(path)).rows)]


def latest(tool: str, matches: Callable[[Run], bool] = lambda run: True, folders: Sequence[Path] = RUN_FOLDERS) -> Run | None:
    """Returns the newest run that matches, a quick one only if there is no other; None if there is none."""
    return next(iter(runs(tool, matches, folders)), None)


def missing_run_message(tool: str, command: str) -> str:
    """Returns the text that a notebook shows if there is no run to read."""
    return f"There is no run to read: neither `runs/` nor `notebooks/recorded/` has a `{tool}-*.jsonl`. `{command}` makes one."


def percentile(share: float) -> Statistic:
    """Returns the statistic, such as `percentile(0.95)`; linear between the two nearest values."""
    return lambda values: float(np.quantile(values, share))


def bootstrap(values: Iterable[float], statistic: Statistic, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
    """Returns a statistic with its percentile bootstrap interval: that of samples drawn with replacement.

    With few values the interval may be too narrow: fewer than about 20 values hardly contain the tail that a p95 describes.
    """
    kept = np.asarray([value for value in values if value is not None and not np.isnan(value)], dtype=float)
    if not len(kept):
        return Interval(np.nan, np.nan, np.nan, 0)
    draws = np.random.default_rng(seed).choice(kept, size=(resamples, len(kept)))  # [resamples, n]
    low, high = np.quantile([statistic(draw) for draw in draws], [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistic(kept), float(low), float(high), len(kept))


def median_difference(before: Sequence[float], after: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Returns the difference of the medians, after - before, by bootstrap of each side alone. NaN if a side has no values."""
    if not len(before) or not len(after):
        return Interval(np.nan, np.nan, np.nan, 0)
    draw = np.random.default_rng(seed)
    old, new = (np.median(draw.choice(side, size=(resamples, len(side))), axis=1) for side in (before, after))
    low, high = np.quantile(new - old, [0.025, 0.975])
    return Interval(float(np.median(after) - np.median(before)), float(low), float(high), min(len(before), len(after)))


def cluster_bootstrap(values: np.ndarray, groups: np.ndarray, statistic: Statistic, *, resamples: int = 300, seed: int = 0) -> Interval:
    """Like `bootstrap`, for rows `[n, ...]` that are not independent: draws whole groups. Draws whose statistic is NaN are left out."""
    _, number, size = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(number, kind="stable"), np.cumsum(size)[:-1])
    draws = np.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    statistics = [statistic(values[np.concatenate([members[group] for group in draw])]) for draw in draws]
    low, high = np.nanquantile(statistics, [0.025, 0.975])
    return Interval(statistic(values), float(low), float(high), len(values))


def auroc(pairs: np.ndarray) -> float:
    """Returns the AUROC of rows `[n, 2]` (score, 1 for a machine's text): how often a machine scores above a human; a tie is half."""
    human, machine = (np.sort(pairs[pairs[:, 1] == side, 0]) for side in (0, 1))
    below = np.searchsorted(human, machine, "left") + np.searchsorted(human, machine, "right")
    return float(below.sum() / (2 * len(human) * len(machine))) if len(human) and len(machine) else float("nan")


def tpr_at_fpr(target: float) -> Statistic:
    """Returns the statistic "true-positive rate at a false-positive rate of `target`", of rows as in `auroc`; NaN for too few human texts.

    The threshold is that of a split-conformal test: the k-th largest of n human scores, k = floor(target * (n + 1)).
    """

    def share(pairs: np.ndarray) -> float:
        humans = np.sort(pairs[pairs[:, 1] == 0, 0])
        rank = int(target * (len(humans) + 1) + 1e-9)
        return float((pairs[pairs[:, 1] == 1, 0] > humans[-rank]).mean()) if rank and (pairs[:, 1] == 1).any() else float("nan")

    return share


def medians(rows: pd.DataFrame, by: str | list[str], column: str) -> pd.Series:
    """Returns the median of `column` with its interval (an `Interval`) for each group."""
    return pd.Series({name: bootstrap(group[column], percentile(0.5)) for name, group in rows.groupby(by, sort=False)}, dtype=object)


def panels(count: int = 1, *, width: float = 8, height: float = 3.2, **options: Any) -> tuple[Figure, list[Axes]]:
    """Creates a figure of plots side by side; `options` are passed to matplotlib's `subplots`."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False, **options)[0])
    for plot in axes:
        plot.spines[["top", "right"]].set_visible(False)
    return figure, axes


def error_bars(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
    """Returns values `[n]`, and the lengths of the error bars below and above them `[2, n]`: NaN, no bar, for one value."""
    values = np.array([interval.value for interval in intervals])
    lengths = np.array([[each.value - each.low for each in intervals], [each.high - each.value for each in intervals]])
    return values, np.where([each.n > 1 for each in intervals], np.maximum(lengths, 0), np.nan)


def plot_line(axes: Axes, x: Sequence[float], intervals: Sequence[Interval], label: str | None = None, style: int = 0) -> None:
    """Draws a line of points with their intervals; an `x` without values has no point."""
    known = [(position, interval) for position, interval in zip(x, intervals, strict=True) if interval.n]
    values, ends = error_bars([interval for _, interval in known])
    form, colour = LINE_STYLES[style % len(LINE_STYLES)]
    axes.errorbar([position for position, _ in known], values, yerr=ends, fmt=form, color=colour, capsize=3, markersize=5, label=label)


def plot_bars(axes: Axes, groups: Sequence[str], series: dict[str, Sequence[Interval]], unit: str) -> None:
    """Draws a cluster of bars for each group, with a fill for each of `series`, and intervals on top."""
    width = 0.8 / len(series)
    for number, (name, intervals) in enumerate(series.items()):
        values, ends = error_bars(intervals)
        colour, hatch = BAR_FILLS[number % len(BAR_FILLS)]
        positions = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        axes.bar(positions, values, width, color=colour, hatch=hatch, edgecolor="black", linewidth=0.8, label=name)
        axes.errorbar(positions, values, yerr=ends, fmt="none", ecolor="black", capsize=3)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(ylabel=unit, ylim=(0, None))


def plot_stack(axes: Axes, table: pd.DataFrame, unit: str) -> None:
    """Draws a bar for each row of `table`, with its columns stacked."""
    below = np.zeros(len(table))
    for number, (part, values) in enumerate(table.items()):
        colour, hatch = BAR_FILLS[number % len(BAR_FILLS)]
        axes.bar(table.index, values, 0.6, below, label=str(part), color=colour, hatch=hatch, edgecolor="black", linewidth=0.8)
        below += values.to_numpy()
    axes.set(ylabel=unit)


def server_label(run: Run) -> str:
    """Names the model, the server and the weights, as the server reported them."""
    card, weights = run.manifest["model"], run.manifest.get("quantization")
    shown = weights if weights not in (None, "none", "not told") else card.get("dtype", "weights not told")
    owner = card.get("owned_by", "a server without a name")
    return f"{Path(card['id']).name} by {SERVER_NAMES.get(owner, owner)}, {shown}"


def counted_chats(run: Run) -> pd.DataFrame:
    return run.of("chat")


def answered(requests: pd.DataFrame) -> pd.DataFrame:
    return requests[requests["outcome"] == "ok"]


def stage_column(requests: pd.DataFrame) -> str:
    """Returns the column that tells the stages of a load apart: `rate` in an open loop, `clients` in a closed one."""
    return "rate" if "rate" in requests and requests["rate"].notna().any() else "clients"


def outcome_counts(requests: pd.DataFrame) -> pd.DataFrame:
    """Counts requests by stage and outcome. `left`: the client disconnected on purpose."""
    counts = pd.crosstab(requests[stage_column(requests)], requests["outcome"])
    return counts.reindex(columns=["ok", "shed", "failed", "left"], fill_value=0).rename_axis(columns=None)


def span_s(requests: pd.DataFrame) -> float:
    """Returns the seconds from the start of the first request to the end of the last."""
    ends_s = requests["started_s"] + requests["e2e_ms"] / 1000
    return float(ends_s.max() - requests["started_s"].min())


def latency_table(requests: pd.DataFrame) -> pd.DataFrame:
    """Returns by stage TTFT, TPOT and end-to-end time as `Interval`s, and the tokens/s of all clients together."""
    rows = {}
    for stage, group in requests.groupby(stage_column(requests)):
        ok = answered(group)
        rows[stage] = {
            "n": len(ok),
            "TTFT p50 ms": bootstrap(ok["ttft_ms"], percentile(0.5)),
            "TTFT p95 ms": bootstrap(ok["ttft_ms"], percentile(0.95)),
            "TPOT p50 ms": bootstrap(ok["tpot_ms"], percentile(0.5)),
            "end to end p50 ms": bootstrap(ok["e2e_ms"], percentile(0.5)),
            "tokens/s in all": round(float(ok["completion_tokens"].sum()) / span_s(group), 1),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(stage_column(requests))


def goodput(requests: pd.DataFrame, *, ttft_ms: float, tpot_ms: float) -> pd.DataFrame:
    """Returns by stage the share of chats in time: TTFT within `ttft_ms`, TPOT within `tpot_ms`; and such chats a second.

    The share (an `Interval`) is of all chats requested, also shed and failed ones, but not of those that a client left. An answer of one
    token has no TPOT, so it cannot miss that limit.
    """
    rows = {}
    for stage, group in requests.groupby(stage_column(requests)):
        in_time = (group["outcome"] == "ok") & (group["ttft_ms"] <= ttft_ms) & ~(group["tpot_ms"] > tpot_ms)
        share = bootstrap(in_time[group["outcome"] != "left"], lambda values: float(values.mean()))
        rows[stage] = {"share in time": share, "chats/s in time": float(in_time.sum()) / span_s(group)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(stage_column(requests))


def knee(levels: Sequence[float], throughput: Sequence[float]) -> float | None:
    """Returns the last level that gained at least half of proportional growth, such as 1.5 times the throughput for twice the clients.

    None if no level did.
    """
    steps = zip(levels, levels[1:], throughput, throughput[1:], strict=False)
    return max((after for before, after, had, has in steps if has - had >= 0.5 * had * (after / before - 1)), default=None)
