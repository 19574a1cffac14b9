"""Turns what a run saw into its result, the tables to print, and a sentence for each mark that was missed. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.chaos.ledger import Disturbance, Line, counts, in_flight_at, longest_wait_s, reasons
from loadtest.chaos.memory import growth_mb_per_hour, peak_by_worker_mb, steady
from loadtest.chaos.trial import Options, Seen
from loadtest.process import markdown_table
from loadtest.summary import percentile

EQUAL_SHARE = 0.95  # of the requests in flight at a kill are answered as if nothing had happened
DETECTION_S = 10
MAX_GROWTH_MB_PER_HOUR = 60.0  # 10 MB in 10 minutes; a shorter run tells too little
MIN_MINUTES_FOR_GROWTH = 5.0
COLUMNS = ("sent", "answered", "equal", "different", "refused", "failed", "lost")


def result(options: Options, seen: Seen, tracebacks: int) -> dict[str, Any]:
    """Everything the marks are read from. Counts, times and reasons: no prompt and no text."""
    lines = seen.ledger.lines
    kinds = sorted({line.kind for line in lines})
    return {
        "seconds": round(seen.end_s - seen.start_s, 1),
        "minutes": options.minutes,
        "deadline_s": options.deadline_s,
        "capacity": seen.capacity,
        "all": counts(lines),
        "in_flight_at_end": seen.ledger.in_flight,
        "left": seen.ledger.left,
        "by_kind": {kind: counts(line for line in lines if line.kind == kind) for kind in kinds},
        "disturbances": [_disturbance(lines, found, seen.start_s) for found in seen.ledger.disturbances],
        "reasons": reasons(lines, "refused", "failed", "lost"),
        "different": sorted({line.name for line in lines if line.ending.equal is False}),
        "server_errors": sum(line.ending.server_error for line in lines),
        "longest_wait_s": round(longest_wait_s(lines), 1),
        "comments": seen.comments,
        "refusals": _refusals(lines),
        "memory": _memory(seen),
        "tracebacks_in_log": tracebacks,
        "end": seen.end,
        "aborted": seen.aborted,
    }


def _disturbance(lines: Sequence[Line], found: Disturbance, start_s: float) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "at_s": round(found.at_s - start_s, 1),
        "in_flight": in_flight_at(lines, found),
        "not_ready_s": found.not_ready_s,
        "served_again_s": found.served_again_s,
        **found.facts,
    }


def _refusals(lines: Sequence[Line]) -> dict[str, float | None]:
    """How long those waited for their 429 whom a full queue refused, in milliseconds."""
    waits_ms = [1000 * (line.ended_s - line.sent_s) for line in lines if line.ending.why.startswith("429")]
    return {name: round(percentile(waits_ms, share), 1) if waits_ms else None for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))}


def _memory(seen: Seen) -> dict[str, Any]:
    samples = seen.samples
    growth = growth_mb_per_hour(steady(samples, seen.warm_s))
    return {
        "growth_mb_per_hour": None if growth is None else round(growth, 1),
        "first_mb": round(samples[0].total / 1e6) if samples else None,
        "largest_mb": round(max(sample.total for sample in samples) / 1e6) if samples else None,
        "last_mb": round(samples[-1].total / 1e6) if samples else None,
        "worker_peaks_mb": peak_by_worker_mb(samples),
        "descriptors_first": samples[0].descriptors if samples else None,
        "descriptors_largest": max((sample.descriptors for sample in samples), default=None),
        "descriptors_last": samples[-1].descriptors if samples else None,
        "samples": [(round(sample.at_s - seen.start_s), round(sample.total / 1e6, 1), sample.descriptors) for sample in samples],
    }


def missed(found: Mapping[str, Any]) -> list[str]:
    """A sentence for each mark that was missed; none if the run is good."""
    total, sentences = found["all"], []
    if found["aborted"]:
        sentences.append(f"The run ended early: {found['aborted']}.")
    if total["lost"]:
        why = ", ".join(
            f"{count} {reason.removeprefix('lost: ')}" for reason, count in found["reasons"].items() if reason.startswith("lost")
        )
        sentences.append(f"{total['lost']} of {total['sent']} requests were lost: {why}.")
    if found["in_flight_at_end"]:
        sentences.append(f"{found['in_flight_at_end']} requests had no end when the run ended.")
    if total["different"]:
        names = ", ".join(found["different"][:5])
        sentences.append(f"{total['different']} answers differ from the undisturbed ones (requests {names}).")
    if found["server_errors"]:
        sentences.append(f"{found['server_errors']} requests met an error of the server's own (500).")
    return [*sentences, *_missed_at_kills(found), *_missed_by_processes(found)]


def _missed_at_kills(found: Mapping[str, Any]) -> list[str]:
    sentences = []
    caught = sum_counts([row["in_flight"] for row in found["disturbances"] if row["kind"] == "kill"])
    if caught["equal"] < EQUAL_SHARE * caught["sent"]:
        sentences.append(
            f"{caught['equal']} of {caught['sent']} requests in flight at a kill were answered as undisturbed: "
            f"{caught['equal'] / caught['sent']:.0%}, not {EQUAL_SHARE:.0%}."
        )
    hangs = [row for row in found["disturbances"] if row["kind"] == "hang"]
    unseen = sum(not row.get("detected") for row in hangs)
    if unseen:
        sentences.append(f"{unseen} of {len(hangs)} stopped workers were not noticed and replaced within {DETECTION_S} s.")
    return sentences


def _missed_by_processes(found: Mapping[str, Any]) -> list[str]:
    sentences = []
    stops = [*(row for row in found["disturbances"] if "exit_code" in row), {"kind": "last stop", **found["end"]}]
    for stop in stops:
        if stop.get("orphans"):
            sentences.append(f"{stop['orphans']} processes were left after the {stop['kind']}.")
        if stop.get("port_free") is False:
            sentences.append(f"The port was not free after the {stop['kind']}.")
        if stop.get("exit_code", 0) != 0:
            sentences.append(f"The server's exit code was {stop['exit_code']}, not 0, at the {stop['kind']}.")
    sentences += [f"The server did not go on at a {row['kind']}." for row in found["disturbances"] if row.get("goes_on") is False]
    growth = found["memory"]["growth_mb_per_hour"]
    if found["minutes"] >= MIN_MINUTES_FOR_GROWTH and growth is not None and growth > MAX_GROWTH_MB_PER_HOUR:
        sentences.append(f"The memory of the processes that stay grew by {growth:.0f} MB an hour, more than {MAX_GROWTH_MB_PER_HOUR:.0f}.")
    return sentences


def sum_counts(rows: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in COLUMNS}


def tables(found: Mapping[str, Any]) -> str:
    """Requests by kind, then what happened to those in flight at each kind of disturbance, then memory."""
    rows = [[kind, *_cells(counted)] for kind, counted in found["by_kind"].items()] + [["all", *_cells(found["all"])]]
    by_kind = markdown_table(("requests", *COLUMNS), rows)
    kinds = dict.fromkeys(row["kind"] for row in found["disturbances"])
    rows = [_disturbance_cells(kind, [row for row in found["disturbances"] if row["kind"] == kind]) for kind in kinds]
    by_disturbance = markdown_table(("in flight at", "times", *COLUMNS, "not ready after s", "serves again after s"), rows)
    return f"{by_kind}\n\n{by_disturbance}\n\n" + "\n".join(_sentences(found, found["memory"]))


def _sentences(found: Mapping[str, Any], memory: Mapping[str, Any]) -> list[str]:
    return [
        f"{found['seconds']:.0f} s; {found['left']} clients left; longest wait {found['longest_wait_s']} s of {found['deadline_s']:.0f}; "
        f"{found['comments']} SSE comments; {found['tracebacks_in_log']} tracebacks in the log",
        _refused(**found["refusals"]),
        f"memory {memory['first_mb']} MB at the start, {memory['largest_mb']} at most, {memory['last_mb']} at the end; "
        f"{_grown(memory['growth_mb_per_hour'])}; workers' peaks {memory['worker_peaks_mb']} MB",
        f"descriptors {memory['descriptors_first']}, at most {memory['descriptors_largest']}, {memory['descriptors_last']} at the "
        f"end; the last stop: {found['end']}",
        *(f"{count} {reason}" for reason, count in found["reasons"].items()),
    ]


def _refused(p50_ms: float | None, p99_ms: float | None) -> str:
    return "no request met a full queue" if p50_ms is None else f"a full queue refused after {p50_ms} ms (median), {p99_ms} ms (99%)"


def _grown(mb_per_hour: float | None) -> str:
    if mb_per_hour is None:
        return "the run was too short to say how fast the processes that stay grow"
    return f"the processes that stay grew by {mb_per_hour} MB/h"


def _cells(counted: Mapping[str, int]) -> list[str]:
    return [str(counted[name]) for name in COLUMNS]


def _disturbance_cells(kind: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    counted = sum_counts([row["in_flight"] for row in rows])
    return [kind, str(len(rows)), *_cells(counted), _times(rows, "not_ready_s"), _times(rows, "served_again_s")]


def _times(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Median and maximum."""
    known = [row[name] for row in rows if row[name] is not None]
    return f"{statistics.median(known):.2f}, at most {max(known):.2f}" if known else "-"
