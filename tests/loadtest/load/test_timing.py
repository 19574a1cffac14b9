"""Locust against a server whose delays are known: what it says they are, and what an independent client says at the same time."""

import asyncio
import json
import random
import statistics
import time

import httpx
import pytest

from loadtest.load import closedloop
from loadtest.load.stages import Stage, arrivals
from loadtest.summary import percentile
from tests.loadtest.metronome import Metronome, ticking
from tests.loadtest.pushing import push

TTFT_S, GAP_S, DELTAS, TOKENS = 0.5, 0.1, 5, 9
USERS = 6
FIRST_S, STALL_S, RATE, SECONDS = 0.2, 1.0, 40.0, 8.0


def fate(number):
    return {2: "truncated", 4: "busy", 6: "wrong", 7: "cut"}.get(number % 9, "ok")


async def others(url):
    """Three closed loops of the asyncio client, as long as Locust's own."""
    options, end_s = closedloop.Options(url, 0, 64, 10, 0), time.perf_counter() + 7
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def loop(number):
            draw, records = random.Random(number), []
            while time.perf_counter() < end_s:
                records.append(await closedloop.Client(http, options, 0.0, 3).chat(draw))
            return records

        return [record for records in await asyncio.gather(*map(loop, range(3))) for record in records]


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A closed loop without pauses, and the other client beside it."""
    folder = tmp_path_factory.mktemp("steady")
    metronome = Metronome(TTFT_S, GAP_S, DELTAS, TOKENS, fate, retry_after="0")
    words = ["--users", str(USERS), "--spawn-rate", str(USERS), "--run-time", "6s", "--warm-up", "1s", "--think", "0"]

    async def both():
        return await asyncio.gather(
            asyncio.to_thread(push, metronome.url, folder, *words, "--json-file", "table", "ChatUser"), others(metronome.url)
        )

    with ticking(metronome):
        pushed, records = asyncio.run(both())
    assert pushed.code == 1, "truncated streams and wrong answers are failures"
    return metronome, pushed, records


def medians(rows):
    """Of whole answers: ttft, tpot, e2e and the gaps, in milliseconds."""
    ok = [row for row in rows if row["outcome"] == "ok"]
    gaps = [gap for row in ok for gap in row["itl_ms"]]
    return [*(statistics.median(row[name] for row in ok) for name in ("ttft_ms", "tpot_ms", "e2e_ms")), statistics.median(gaps)]


def test_known_delays_are_measured_to_2_percent(steady):
    metronome, pushed, _ = steady
    stamps = {one.id: one for one in metronome.served}
    mine = [stamps[row["request"]] for row in pushed.counted if row["outcome"] == "ok"]
    assert len(mine) >= 10
    stamped = [statistics.median(one.ttft_ms for one in mine), statistics.median((one.e2e_ms - one.ttft_ms) / (TOKENS - 1) for one in mine)]
    stamped += [statistics.median(one.e2e_ms for one in mine), statistics.median(gap for one in mine for gap in one.gaps_ms)]
    assert medians(pushed.counted) == pytest.approx(stamped, rel=0.02)
    nominal = [1000 * TTFT_S, 1000 * GAP_S * (DELTAS - 1) / (TOKENS - 1), 1000 * (TTFT_S + GAP_S * (DELTAS - 1)), 1000 * GAP_S]
    assert medians(pushed.counted) == pytest.approx(nominal, rel=0.02)


def test_every_request_is_measured_for_itself(steady):
    metronome, pushed, _ = steady
    stamps = {one.id: one for one in metronome.served}
    off = [abs(row["ttft_ms"] / stamps[row["request"]].ttft_ms - 1) for row in pushed.rows if row["ttft_ms"] is not None]
    assert percentile(off, 0.5) < 0.02


def test_an_independent_client_agrees_within_5_percent(steady):
    _, pushed, records = steady
    theirs = [{"outcome": one.outcome, **{n: getattr(one, n) for n in ("ttft_ms", "tpot_ms", "e2e_ms", "itl_ms")}} for one in records]
    assert sum(one["outcome"] == "ok" for one in theirs) > 5
    assert medians(pushed.counted) == pytest.approx(medians(theirs), rel=0.05)


def test_drops_are_told_apart_and_none_is_lost(steady):
    """What each request came to, by the server's word: rows carry the id of the answer, except where there was none."""
    metronome, pushed, records = steady
    fates = {one.id: one.fate for one in metronome.served}
    seen = {row["request"]: row for row in pushed.rows if row["request"]}
    expected = {
        "ok": ("ok", ""),
        "truncated": ("failed", "truncated"),
        "cut": ("failed", "truncated"),
        "wrong": ("failed", "wrong: 9 tokens"),
    }
    assert {"ok", "truncated", "cut", "wrong"} <= {fates[id] for id in seen}
    for id, row in seen.items():
        assert (row["outcome"], (row["reason"] or "")[: len(expected[fates[id]][1])]) == expected[fates[id]]
    shed = [row for row in pushed.rows if row["outcome"] == "shed"]
    assert shed and all((row["status"], row["retry_after_s"]) == (429, 0) for row in shed)
    assert len(pushed.rows) + len(records) + 1 == len(metronome.served), "and the probe"


def test_the_warm_up_is_in_the_rows_and_not_in_the_table(steady):
    _, pushed, _ = steady
    assert all(row["warm_up"] == (row["started_s"] < 1) for row in pushed.rows)
    table = {(entry["method"], entry["name"]): entry for entry in json.loads((pushed.folder / "table.json").read_text())}
    outcomes = [row["outcome"] for row in pushed.counted]
    whole = table["e2e", "chat"]
    assert 0 < whole["num_requests"] == outcomes.count("ok") + outcomes.count("failed") < len(pushed.rows)
    assert whole["num_failures"] == outcomes.count("failed")
    assert table.get(("shed", "chat"), {"num_requests": 0})["num_requests"] == outcomes.count("shed")
    assert table["gap", "chat"]["num_requests"] == (DELTAS - 1) * outcomes.count("ok")
    times = [float(key) for key, count in table["TTFT", "chat"]["response_times"].items() for _ in range(count)]
    assert statistics.median(times) == pytest.approx(medians(pushed.counted)[0], rel=0.005), "finer than Locust's own buckets"


def test_nothing_of_a_prompt_is_kept(steady):
    metronome, pushed, _ = steady
    words = {word for one in metronome.served for message in one.body["messages"] for word in message["content"].split()[:8]}
    (path,) = pushed.folder.glob("runs/load-*.jsonl")
    assert not [word for word in words if len(word) > 6 and word in path.read_text()]


@pytest.fixture(scope="module")
def stalled(tmp_path_factory):
    """An open loop, while the server stands still for a second."""
    metronome = Metronome(FIRST_S, 0.05, 3, 3)
    words = ["--rates", str(RATE), "--stage", f"{SECONDS}s", "--warm-up", "0s", "ChatUser"]
    with ticking(metronome, stall_at_s=3.0, stall_s=STALL_S):
        pushed = push(metronome.url, tmp_path_factory.mktemp("stalled"), *words)
    assert pushed.code == 0, pushed.said
    return metronome, pushed


def test_arrivals_wait_for_nobody(stalled):
    _, pushed = stalled
    planned = arrivals(Stage(0, RATE, True, SECONDS, 0.0), 0)
    rows = sorted(pushed.rows, key=lambda row: row["started_s"])
    assert [row["started_s"] for row in rows] == pytest.approx(planned, abs=1e-3 + (rows[0]["started_s"] - planned[0]))
    assert {(row["rate"], row["clients"], row["outcome"]) for row in rows} == {(RATE, 0, "ok")}
    assert percentile([row["late_ms"] for row in rows], 0.9) < 20, "the generator itself is not what is measured"


def test_a_stall_shows_in_the_tail_as_it_must(stalled):
    """Who arrives in the stall is read at its end; who was to get a first token in it gets it then.

    RATE * (STALL_S + FIRST_S - x) requests wait longer than x beyond FIRST_S, for x from FIRST_S to STALL_S; their
    share in all gives the percentiles of the tail. A closed loop would have shown one late request for each of its users.
    """
    metronome, pushed = stalled
    ((begin_s, end_s),) = metronome.stalls
    assert end_s - begin_s == pytest.approx(STALL_S, rel=0.02)
    sent = {one.id: one.sent_s[0] for one in metronome.served}
    received = {one.id: one.received_s for one in metronome.served}
    run_s = min(received[row["request"]] - row["started_s"] for row in pushed.rows)  # the run's zero on the server's clock

    must = [1000 * (sent[row["request"]] - run_s - row["started_s"]) for row in pushed.rows]
    measured = [row["ttft_ms"] for row in pushed.rows]
    for share in (0.5, 0.9, 0.95, 0.99):
        assert percentile(measured, share) == pytest.approx(percentile(must, share), rel=0.02), "by the server's own clock"
    for x in (0.25, 0.5, 0.75):
        waited, analytic = sum(ttft > 1000 * (FIRST_S + x) for ttft in measured), RATE * (STALL_S + FIRST_S - x)
        assert abs(waited - analytic) < 3 * analytic**0.5, "arrivals are Poisson: three standard deviations"
    tail_s = STALL_S + 2 * FIRST_S - 0.05 * SECONDS
    assert percentile(measured, 0.95) == pytest.approx(1000 * tail_s, rel=0.15)
