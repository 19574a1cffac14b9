"""Locust against a server with known delays: its times must agree with them, and with those of an independent client beside it."""

import asyncio
import json
import random
import statistics
import time

import httpx
import pytest

from loadtest.load import closedloop
from loadtest.load.stages import Stage, arrival_times
from loadtest.summary import percentile
from tests.loadtest.run_locust import run_locust
from tests.loadtest.timed_server import TimedServer, running
from tests.loadtest.undisturbed import first_good

TTFT_S, GAP_S, DELTAS, TOKENS = 0.5, 0.1, 5, 9
USERS = 6
FIRST_S, STALL_S, RATE, SECONDS = 0.2, 1.0, 40.0, 8.0


def behaviour_of(number):
    return {2: "truncated", 4: "busy", 6: "wrong", 7: "cut"}.get(number % 9, "ok")


async def asyncio_clients(url):
    """Three closed loops of the asyncio client, for as long as the run of Locust takes."""
    options, end_s = closedloop.Options(url, 0, 64, 10, 0), time.perf_counter() + 7
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def loop(number):
            rng, records = random.Random(number), []
            while time.perf_counter() < end_s:
                records.append(await closedloop.Client(http, options, 0.0, 3).chat(rng))
            return records

        return [record for records in await asyncio.gather(*map(loop, range(3))) for record in records]


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A closed loop of Locust without pauses, and the asyncio client beside it."""
    args = ["--users", str(USERS), "--spawn-rate", str(USERS), "--run-time", "6s", "--warm-up", "1s", "--think", "0"]

    def measure():
        server = TimedServer(TTFT_S, GAP_S, DELTAS, TOKENS, behaviour_of, retry_after="0")
        folder = tmp_path_factory.mktemp("steady")

        async def run_both():
            locust = asyncio.to_thread(run_locust, server.url, folder, *args, "--json-file", "table", "ChatUser")
            return await asyncio.gather(locust, asyncio_clients(server.url))

        with running(server):
            run, records = asyncio.run(run_both())
        assert run.code == 1, "truncated streams and wrong answers are failures"
        return server, run, records

    return first_good(
        measure,
        test_known_delays_are_measured_to_2_percent,
        test_every_request_is_measured_for_itself,
        test_an_independent_client_agrees_within_5_percent,
        test_the_warm_up_is_in_the_rows_and_not_in_the_table,
    )


NOMINAL = [1000 * TTFT_S, 1000 * GAP_S * (DELTAS - 1) / (TOKENS - 1), 1000 * (TTFT_S + GAP_S * (DELTAS - 1)), 1000 * GAP_S]


def recorded_medians(server, run):
    """As `medians`, by the server's clock."""
    chats = {chat.id: chat for chat in server.served}
    answered = [chats[row["request"]] for row in run.counted if row["outcome"] == "ok"]
    assert len(answered) >= 10
    times = [[chat.ttft_ms for chat in answered], [(chat.e2e_ms - chat.ttft_ms) / (TOKENS - 1) for chat in answered]]
    times += [[chat.e2e_ms for chat in answered], [gap for chat in answered for gap in chat.gaps_ms]]
    return [statistics.median(each) for each in times]


def ttft_errors(server, run):
    """Of each request, as a share of its TTFT by the server's clock."""
    chats = {chat.id: chat for chat in server.served}
    return [abs(row["ttft_ms"] / chats[row["request"]].ttft_ms - 1) for row in run.rows if row["ttft_ms"] is not None]


def medians(rows):
    """Medians over complete answers, in milliseconds: TTFT, TPOT, e2e and the gaps between deltas."""
    ok = [row for row in rows if row["outcome"] == "ok"]
    gaps = [gap for row in ok for gap in row["itl_ms"]]
    return [*(statistics.median(row[name] for row in ok) for name in ("ttft_ms", "tpot_ms", "e2e_ms")), statistics.median(gaps)]


def test_known_delays_are_measured_to_2_percent(steady):
    server, run, _ = steady
    assert medians(run.counted) == pytest.approx(recorded_medians(server, run), rel=0.02)
    assert medians(run.counted) == pytest.approx(NOMINAL, rel=0.02)


def test_every_request_is_measured_for_itself(steady):
    server, run, _ = steady
    assert percentile(ttft_errors(server, run), 0.5) < 0.02


def test_an_independent_client_agrees_within_5_percent(steady):
    _, run, records = steady
    names = ("outcome", "ttft_ms", "tpot_ms", "e2e_ms", "itl_ms")
    theirs = [{name: getattr(record, name) for name in names} for record in records]
    assert sum(row["outcome"] == "ok" for row in theirs) > 5
    assert medians(run.counted) == pytest.approx(medians(theirs), rel=0.05)


def test_failures_are_distinguished_and_none_is_lost(steady):
    """Compares each outcome with what the server did: rows carry the id of the response, except for those without a response."""
    server, run, records = steady
    behaviours = {chat.id: chat.behaviour for chat in server.served}
    rows = {row["request"]: row for row in run.rows if row["request"]}
    expected = {
        "ok": ("ok", ""),
        "truncated": ("failed", "truncated"),
        "cut": ("failed", "truncated"),
        "wrong": ("failed", "wrong: the server sent 9 tokens"),
    }
    assert {"ok", "truncated", "cut", "wrong"} <= {behaviours[id] for id in rows}
    for id, row in rows.items():
        assert (row["outcome"], (row["reason"] or "")[: len(expected[behaviours[id]][1])]) == expected[behaviours[id]]
    shed = [row for row in run.rows if row["outcome"] == "shed"]
    assert shed and all((row["status"], row["retry_after_s"]) == (429, 0) for row in shed)
    assert len(run.rows) + len(records) + 1 == len(server.served), "all chats, and the one of the probe"


def test_the_warm_up_is_in_the_rows_and_not_in_the_table(steady):
    _, run, _ = steady
    assert all(row["warm_up"] == (row["started_s"] < 1) for row in run.rows)
    table = {(entry["method"], entry["name"]): entry for entry in json.loads((run.folder / "table.json").read_text())}
    outcomes = [row["outcome"] for row in run.counted]
    whole = table["e2e", "chat"]
    assert 0 < whole["num_requests"] == outcomes.count("ok") + outcomes.count("failed") < len(run.rows)
    assert whole["num_failures"] == outcomes.count("failed")
    assert table.get(("shed", "chat"), {"num_requests": 0})["num_requests"] == outcomes.count("shed")
    assert table["gap", "chat"]["num_requests"] == (DELTAS - 1) * outcomes.count("ok")
    times = [float(key) for key, count in table["TTFT", "chat"]["response_times"].items() for _ in range(count)]
    assert statistics.median(times) == pytest.approx(medians(run.counted)[0], rel=0.005), "finer than Locust's own buckets"


def test_nothing_of_a_prompt_is_kept(steady):
    server, run, _ = steady
    words = {word for chat in server.served for message in chat.body["messages"] for word in message["content"].split()[:8]}
    (path,) = run.folder.glob("runs/load-*.jsonl")
    assert not [word for word in words if len(word) > 6 and word in path.read_text()]


@pytest.fixture(scope="module")
def stalled(tmp_path_factory):
    """An open loop, during which the server stalls for a second."""
    args = ["--rates", str(RATE), "--stage", f"{SECONDS}s", "--warm-up", "0s", "ChatUser"]

    def measure():
        server = TimedServer(FIRST_S, 0.05, 3, 3)
        with running(server, stall_at_s=3.0, stall_s=STALL_S):
            run = run_locust(server.url, tmp_path_factory.mktemp("stalled"), *args)
        return server, run

    return first_good(measure, test_arrivals_do_not_wait_for_answers, test_a_stall_shows_in_the_tail_as_it_must)


def test_arrivals_do_not_wait_for_answers(stalled):
    _, run = stalled
    assert run.code == 0, run.output
    planned = arrival_times(Stage(0, RATE, True, SECONDS, 0.0), 0)
    rows = sorted(run.rows, key=lambda row: row["started_s"])
    assert [row["started_s"] for row in rows] == pytest.approx(planned, abs=1e-3 + (rows[0]["started_s"] - planned[0]))
    assert {(row["rate"], row["clients"], row["outcome"]) for row in rows} == {(RATE, 0, "ok")}
    assert percentile([row["late_ms"] for row in rows], 0.9) < 20, "the load generator adds little delay itself"


def test_a_stall_shows_in_the_tail_as_it_must(stalled):
    """A request that arrives during the stall is read at its end; a first token that was due during the stall is sent at its end.

    RATE * (STALL_S + FIRST_S - x) requests wait longer than x beyond FIRST_S, for x from FIRST_S to STALL_S; their
    share of all requests gives the percentiles of the tail. A closed loop would have shown only one late request for each of its users.
    """
    server, run = stalled
    ((begin_s, end_s),) = server.stalls
    assert end_s - begin_s == pytest.approx(STALL_S, rel=0.02)
    sent_s = {chat.id: chat.sent_s[0] for chat in server.served}
    received_s = {chat.id: chat.received_s for chat in server.served}
    run_s = min(received_s[row["request"]] - row["started_s"] for row in run.rows)  # start of the run on the server's clock

    expected = [1000 * (sent_s[row["request"]] - run_s - row["started_s"]) for row in run.rows]
    measured = [row["ttft_ms"] for row in run.rows]
    for share in (0.5, 0.9, 0.95, 0.99):  # within 2% on a quiet machine; the margin is for busy ones
        assert percentile(measured, share) == pytest.approx(percentile(expected, share), rel=0.05), "by the server's clock"
    for x in (0.25, 0.5, 0.75):
        late, predicted = sum(ttft > 1000 * (FIRST_S + x) for ttft in measured), RATE * (STALL_S + FIRST_S - x)
        assert abs(late - predicted) < 3 * predicted**0.5, "arrivals are Poisson: three standard deviations"
    tail_s = STALL_S + 2 * FIRST_S - 0.05 * SECONDS
    assert percentile(measured, 0.95) == pytest.approx(1000 * tail_s, rel=0.15)
