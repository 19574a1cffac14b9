"""Runs on disk to tables and plots with honest intervals: finds and reads runs/*.jsonl, resamples, draws. Also what load tests come to.

Knows the files and nothing of the product. Times are milliseconds unless the name says otherwise.
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

PLACES = (Path("../runs"), Path("recorded"))  # seen from a notebook: one's own runs, then those kept with the notebooks
STYLES = (("o-", "black"), ("s--", "0.35"), ("^:", "0.5"), ("D-.", "0.2"), ("v-", "0.65"), ("P--", "0.1"))  # told apart without colour
FILLS = (("0.25", ""), ("0.75", ""), ("white", "////"), ("0.5", ""), ("white", ".."), ("0.9", "xx"), ("0.6", "\\\\"), ("white", ""))
Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True, slots=True)
class Run:
    """A file: its first line, and a row for each further one."""

    path: Path
    manifest: dict[str, Any]
    rows: pd.DataFrame

    def title(self) -> str:
        """What was measured, on what, and when: every number belongs to these."""
        machine, commit = self.manifest["machine"], self.manifest.get("commit")
        when = self.manifest["time"].replace("T", " ").replace("+00:00", " UTC")
        code = f"; commit {commit[:12]}{'+' * commit.endswith('+')}" if commit else ""
        place = f"`{self.path.resolve().parent.name}/{self.path.name}`"
        quick = "; made with --quick, so it shows that all runs and measures nothing" if self.quick else ""
        return f"{_subject(self.manifest)}; {machine['cpus']} x {machine['processor']}; {when}{code}; {place}{quick}"

    @property
    def quick(self) -> bool:
        """As the manifest says, or a command line in it or in a row."""
        calls = [self.manifest.get("command"), *self.rows.get("command", ())]
        return bool(self.manifest.get("quick")) or any("--quick" in call for call in calls if isinstance(call, str))

    def of(self, kind: str) -> pd.DataFrame:
        """Rows of one kind, without those from the warm-up."""
        rows = self.rows[self.rows["kind"] == kind]
        return rows[rows["warm_up"].ne(True)] if "warm_up" in rows else rows


def _subject(manifest: dict[str, Any]) -> str:
    """The models, with what is known of how the first is served."""
    model = manifest.get("model")
    if isinstance(model, dict):
        known = {**model, "quantize": model.get("quantize", manifest.get("quantization"))}
        words = [known.get("dtype"), f"quantize {known['quantize']}", f"{known.get('slots')} slots", known.get("device")]
        shown = ", ".join(word for word in words if word and not word.startswith(("None", "quantize None")))
        return f"{Path(known['id']).name} ({shown})" if shown else Path(known["id"]).name
    names = [model] if model else manifest.get("models") or manifest.get("plan", {}).get("models") or ["no model"]
    return ", ".join(Path(name).name for name in names)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its confidence interval; all NaN where there was nothing to estimate from."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{short(self.value)} [{short(self.low)}, {short(self.high)}]" if self.n else "-"


def short(value: float) -> str:
    """Three digits, or all of those before the point."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


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


def runs(tool: str, fits: Callable[[Run], bool] = lambda run: True, places: Sequence[Path] = PLACES) -> list[Run]:
    """Those of `tool` that have rows and fit, in the first place that has any; real ones before quick ones, then the newest first."""
    for folder in places:
        read = (read_run(path) for path in sorted(folder.glob(f"{tool}-*.jsonl"), reverse=True))
        found = [run for run in read if len(run.rows) and fits(run)]
        if found:
            return sorted(found, key=lambda run: run.quick)
    return []


def latest(tool: str, fits: Callable[[Run], bool] = lambda run: True, places: Sequence[Path] = PLACES) -> Run | None:
    """The newest real run, else the newest quick one; None if there is none."""
    return next(iter(runs(tool, fits, places)), None)


def absent(tool: str, command: str) -> str:
    """What a notebook says that has nothing to read."""
    return f"There is no run to read: no `runs/{tool}-*.jsonl`, and none kept in `notebooks/recorded`. `{command}` makes one."


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


def difference(before: Sequence[float], after: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Of the medians, after - before, each side drawn by itself. NaN where a side has nothing."""
    if not len(before) or not len(after):
        return Interval(np.nan, np.nan, np.nan, 0)
    draw = np.random.default_rng(seed)
    old, new = (np.median(draw.choice(side, size=(resamples, len(side))), axis=1) for side in (before, after))
    low, high = np.quantile(new - old, [0.025, 0.975])
    return Interval(float(np.median(after) - np.median(before)), float(low), float(high), min(len(before), len(after)))


def grouped(values: np.ndarray, groups: np.ndarray, statistic: Statistic, *, resamples: int = 300, seed: int = 0) -> Interval:
    """Like `bootstrap` for rows `[n, ...]` that are not independent: whole groups are drawn. A draw with no statistic (NaN) is left out."""
    _, number, size = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(number, kind="stable"), np.cumsum(size)[:-1])
    picks = np.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    found = [statistic(values[np.concatenate([members[one] for one in pick])]) for pick in picks]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Interval(statistic(values), float(low), float(high), len(values))


def auroc(pairs: np.ndarray) -> float:
    """Of rows `[n, 2]` (score, 1 for a machine's): how often a machine's scores above a human's, a tie counted half."""
    human, machine = (np.sort(pairs[pairs[:, 1] == side, 0]) for side in (0, 1))
    below = np.searchsorted(human, machine, "left") + np.searchsorted(human, machine, "right")
    return float(below.sum() / (2 * len(human) * len(machine))) if len(human) and len(machine) else float("nan")


def true_positives(target: float) -> Statistic:
    """Of the same rows: the share of machine texts beyond a border that at most `target` of human texts cross; NaN where those are too
    few to say. The border is that of a split-conformal test (the k-th largest of n, k the whole part of target * (n + 1)).
    """

    def share(pairs: np.ndarray) -> float:
        humans = np.sort(pairs[pairs[:, 1] == 0, 0])
        rank = int(target * (len(humans) + 1) + 1e-9)
        return float((pairs[pairs[:, 1] == 1, 0] > humans[-rank]).mean()) if rank and (pairs[:, 1] == 1).any() else float("nan")

    return share


def medians(rows: pd.DataFrame, by: str | list[str], column: str) -> pd.Series:
    """An `Interval` of the median of `column` for each group."""
    return pd.Series({name: bootstrap(group[column], percentile(0.5)) for name, group in rows.groupby(by, sort=False)}, dtype=object)


def panels(count: int = 1, *, width: float = 8, height: float = 3.2, **given: Any) -> tuple[Figure, list[Axes]]:
    """A figure of plots side by side; `given` goes to matplotlib's `subplots`."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False, **given)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def spread(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
    """Values `[n]`, and the lengths of the bars below and above them `[2, n]`."""
    values = np.array([one.value for one in intervals])
    ends = np.array([[one.value - one.low for one in intervals], [one.high - one.value for one in intervals]])
    return values, np.maximum(ends, 0)


def line(axes: Axes, x: Sequence[float], intervals: Sequence[Interval], label: str | None = None, style: int = 0) -> None:
    """A point for each `x` with its interval, joined; where there is nothing to show, there is no point."""
    known = [(place, one) for place, one in zip(x, intervals, strict=True) if one.n]
    values, ends = spread([one for _, one in known])
    form, colour = STYLES[style % len(STYLES)]
    axes.errorbar([place for place, _ in known], values, yerr=ends, fmt=form, color=colour, capsize=3, markersize=5, label=label)


def bars(axes: Axes, groups: Sequence[str], series: dict[str, Sequence[Interval]], unit: str) -> None:
    """Bars side by side: a cluster for each group, a fill for each of `series`, the interval on top."""
    wide = 0.8 / len(series)
    for number, (name, intervals) in enumerate(series.items()):
        values, ends = spread(intervals)
        colour, hatch = FILLS[number % len(FILLS)]
        places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * wide
        axes.bar(places, values, wide, color=colour, hatch=hatch, edgecolor="black", linewidth=0.8, label=name)
        axes.errorbar(places, values, yerr=ends, fmt="none", ecolor="black", capsize=3)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(ylabel=unit, ylim=(0, None))


def stack(axes: Axes, table: pd.DataFrame, unit: str) -> None:
    """A bar for each row of `table`, its columns one on another."""
    below = np.zeros(len(table))
    for number, (part, values) in enumerate(table.items()):
        colour, hatch = FILLS[number % len(FILLS)]
        axes.bar(table.index, values, 0.6, below, label=str(part), color=colour, hatch=hatch, edgecolor="black", linewidth=0.8)
        below += values.to_numpy()
    axes.set(ylabel=unit)


def server(run: Run) -> str:
    """Which model, whose server and what weights, as the server itself told."""
    card, weights = run.manifest["model"], run.manifest.get("quantization")
    told = weights if weights not in (None, "none", "not told") else card.get("dtype", "weights not told")
    return f"{Path(card['id']).name} by {card.get('owned_by', 'a server without a name')}, {told}"


def chats(run: Run) -> pd.DataFrame:
    return run.of("chat")


def finished(requests: pd.DataFrame) -> pd.DataFrame:
    return requests[requests["outcome"] == "ok"]


def level(requests: pd.DataFrame) -> str:
    """What the stages of a load differ in: `rate` in an open loop, `clients` in a closed one."""
    return "rate" if "rate" in requests and requests["rate"].notna().any() else "clients"


def outcomes(requests: pd.DataFrame) -> pd.DataFrame:
    """Requests by stage and outcome. `left`: the client went away on purpose."""
    counts = pd.crosstab(requests[level(requests)], requests["outcome"])
    return counts.reindex(columns=["ok", "shed", "failed", "left"], fill_value=0).rename_axis(columns=None)


def span_s(requests: pd.DataFrame) -> float:
    """From the first request's start to the last one's end."""
    ends_s = requests["started_s"] + requests["e2e_ms"] / 1000
    return float(ends_s.max() - requests["started_s"].min())


def waits(requests: pd.DataFrame) -> pd.DataFrame:
    """Chats by stage: TTFT, TPOT and end to end as `Interval`s, and the tokens/s all clients got together."""
    rows = {}
    for stage, group in requests.groupby(level(requests)):
        ok = finished(group)
        rows[stage] = {
            "n": len(ok),
            "TTFT p50 ms": bootstrap(ok["ttft_ms"], percentile(0.5)),
            "TTFT p95 ms": bootstrap(ok["ttft_ms"], percentile(0.95)),
            "TPOT p50 ms": bootstrap(ok["tpot_ms"], percentile(0.5)),
            "end to end p50 ms": bootstrap(ok["e2e_ms"], percentile(0.5)),
            "tokens/s in all": round(float(ok["completion_tokens"].sum()) / span_s(group), 1),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(level(requests))


def goodput(requests: pd.DataFrame, *, ttft_ms: float, tpot_ms: float) -> pd.DataFrame:
    """Chats by stage that came in time: first token within `ttft_ms`, further ones within `tpot_ms` each on average.

    The share (an `Interval`) is of all that were asked for, shed and failed ones too, but not those a client left. A one-token answer has
    no TPOT and cannot miss it.
    """
    rows = {}
    for stage, group in requests.groupby(level(requests)):
        in_time = (group["outcome"] == "ok") & (group["ttft_ms"] <= ttft_ms) & ~(group["tpot_ms"] > tpot_ms)
        share = bootstrap(in_time[group["outcome"] != "left"], lambda values: float(values.mean()))
        rows[stage] = {"share in time": share, "chats/s in time": float(in_time.sum()) / span_s(group)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(level(requests))


def knee(levels: Sequence[float], throughput: Sequence[float]) -> float:
    """The last level that brought at least half of its proportion over the one before: twice the clients, 1.5 times the throughput."""
    steps = zip(levels, levels[1:], throughput, throughput[1:], strict=False)
    return max([levels[0], *(after for before, after, had, has in steps if has - had >= 0.5 * had * (after / before - 1))])
