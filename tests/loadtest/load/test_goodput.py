import math

import pytest

from loadtest.load.goodput import COLUMNS, Slo, continued_from_cache, goodput, missed_stages, row, span_s, table
from loadtest.load.stages import plan_stages
from loadtest.record import Record

SLO = Slo(ttft_ms=100, tpot_ms=10, share=0.5)
PLAN = plan_stages([2, 4], opened=False, seconds=10, warm_up_s=0)


def record(outcome="ok", ttft_ms=50.0, tpot_ms=5.0, **fields):
    all_fields = {"kind": "chat", "clients": 2, "started_s": 0.0, "status": 200, "e2e_ms": 1000.0, **fields}
    return Record(outcome=outcome, ttft_ms=ttft_ms, tpot_ms=tpot_ms, **all_fields)


@pytest.mark.parametrize(
    ("fields", "met"),
    [
        ({}, True),
        ({"ttft_ms": 100.0, "tpot_ms": 10.0}, True),
        ({"ttft_ms": 100.1}, False),
        ({"tpot_ms": 10.1}, False),
        ({"tpot_ms": None}, True),
        ({"ttft_ms": None}, False),
        ({"outcome": "failed"}, False),
        ({"outcome": "shed"}, False),
    ],
)
def test_limits(fields, met):
    assert SLO.is_met(record(**fields)) is met


def test_goodput_is_a_share_of_the_chats_sent():
    records = [record(), record(ttft_ms=500.0), record("shed", None, None), record("failed"), record("left"), record(kind="score")]
    assert goodput(records, SLO) == 1 / 4
    assert math.isnan(goodput([record("left")], SLO))


def test_every_stage_has_to_reach_the_share():
    good, bad = [record(stage=0)] * 3, [record(stage=1), *[record(stage=1, ttft_ms=500.0)] * 2]
    assert missed_stages(good + bad, PLAN, SLO) == ["4 users: 33.3% in time"]
    assert missed_stages(good, PLAN, SLO) == ["4 users: nan% in time"], "a stage without a chat misses the share"
    assert missed_stages(good + bad, PLAN, Slo(ttft_ms=100)) == [], "without a share nothing is judged"


def test_a_row_leaves_out_the_warm_up_and_counts_what_finished():
    records = [
        record(completion_tokens=40, itl_ms=(1.0, 9.0), queue_ms=3.0, late_ms=0.5),
        record(ttft_ms=300.0, completion_tokens=60, started_s=1.0),
        record("shed", None, None),
        record("left"),
        record("failed", 999.0, 999.0),
        record(kind="score", ttft_ms=None, tpot_ms=None, e2e_ms=70.0),
        record(warm_up=True, ttft_ms=9999.0),
    ]
    cells = dict(zip(COLUMNS, row(PLAN[0], [record for record in records if not record.warm_up], SLO), strict=True))
    assert [cells[name] for name in ("load", "requests", "ok", "shed", "failed", "left")] == ["2 users", "6", "3", "1", "1", "1"]
    assert (cells["TTFT p50 ms"], cells["TTFT p99 ms"], cells["gap p99 ms"], cells["queue p99 ms"]) == ("175", "298", "8.9", "3.0")
    assert (cells["ok/s"], cells["tokens/s"], cells["in time"], cells["in time/s"]) == ("1.5", "50.0", "25.0%", "0.5")
    assert (cells["score p50 ms"], cells["late p99 ms"], cells["turns cached"]) == ("70.0", "0.5", "-")
    lines = table(records, PLAN, SLO).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "9999" not in lines[2] and lines[3].split("|")[2].strip() == "0" and "nan" not in lines[3]


def test_without_limits_nothing_is_in_time_or_late():
    cells = dict(zip(COLUMNS, row(PLAN[0], [record()], Slo()), strict=True))
    assert (cells["in time"], cells["in time/s"]) == ("-", "-")


def test_span():
    assert span_s([record(started_s=2.0), record(started_s=4.0, e2e_ms=500.0)]) == 2.5
    assert math.isnan(span_s([]))


def test_turns_that_found_half_of_their_prompt_in_the_cache_are_counted():
    first = record(turn=1, cached_tokens=0, prompt_tokens=100)
    assert math.isnan(continued_from_cache([first, record(turn=2)]))
    found, missed = record(turn=2, cached_tokens=50, prompt_tokens=100), record(turn=3, cached_tokens=49, prompt_tokens=100)
    assert continued_from_cache([first, found, missed]) == 0.5
    assert dict(zip(COLUMNS, row(PLAN[0], [found], SLO), strict=True))["turns cached"] == "100.0%"
