import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooks import analysis

MANIFEST = {
    "kind": "manifest",
    "time": "2026-11-21T00:00:00+00:00",
    "model": {"id": "fake", "dtype": "float32", "quantize": "none", "slots": 2, "device": "cpu"},
    "machine": {"cpus": 2, "processor": "a processor"},
}


def chat(clients, started_s, **fields):
    row = {"kind": "chat", "clients": clients, "started_s": started_s, "status": 200, "outcome": "ok", "e2e_ms": 1000.0}
    return row | {"reason": None, "ttft_ms": 100.0, "tpot_ms": 50.0, "itl_ms": [50.0], "prompt_tokens": 5, "completion_tokens": 19} | fields


def write(path, rows, manifest=MANIFEST, end="\n"):
    path.write_text("\n".join(json.dumps(row) for row in [manifest, *rows]) + end)
    return path


ROWS = [
    chat(1, 0.0),
    chat(1, 1.0, ttft_ms=300.0),
    chat(2, 2.0, ttft_ms=2000.0, e2e_ms=2000.0),
    chat(2, 2.0, tpot_ms=70.0),
    chat(2, 3.0, outcome="shed", status=429, ttft_ms=None, tpot_ms=None, completion_tokens=None),
    chat(2, 3.0, tpot_ms=None, completion_tokens=1),
    {**chat(2, 4.0), "kind": "score", "ttft_ms": None},
]


@pytest.fixture
def run(tmp_path):
    return analysis.read_run(write(tmp_path / "bench-1.jsonl", ROWS))


def test_read(run):
    assert len(run.requests) == 7 and len(analysis.chats(run)) == 6
    assert "fake (float32" in run.title() and "2 x a processor" in run.title() and "bench-1.jsonl" in run.title()


def test_a_cut_last_line_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS[:2])
    path.write_text(path.read_text() + '{"kind": "ch')
    assert len(analysis.read_run(path).requests) == 2
    path.write_text(path.read_text() + "\n" + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 4"):
        analysis.read_run(path)


@pytest.mark.parametrize("text", ["", '{"kind": "chat"}\n'])
def test_no_manifest(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="manifest"):
        analysis.read_run(path)


def test_latest_is_the_newest_with_requests(tmp_path):
    assert analysis.latest(tmp_path, "bench") is None
    for name, rows in (("bench-1", ROWS), ("bench-2", ROWS[:1]), ("bench-3", []), ("load-9", ROWS)):
        write(tmp_path / f"{name}.jsonl", rows)
    assert analysis.latest(tmp_path, "bench").path.stem == "bench-2"


def test_bootstrap_of_known_samples():
    same = analysis.bootstrap([5.0] * 10, analysis.percentile(0.5))
    assert (same.value, same.low, same.high, same.n) == (5, 5, 5, 10)
    normal = np.random.default_rng(1).normal(100, 10, size=400)
    interval = analysis.bootstrap(normal, lambda values: float(values.mean()))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 10 / 20, rel=0.2), "the textbook interval of a mean"


def test_bootstrap_of_nothing_is_a_dash():
    nothing = analysis.bootstrap([None, math.nan], analysis.percentile(0.5))
    assert nothing.n == 0 and str(nothing) == "-"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.sampled_from([0.5, 0.95]))
def test_bootstrap_stays_within_the_values_and_repeats(values, share):
    first, again = (analysis.bootstrap(values, analysis.percentile(share), resamples=50) for _ in range(2))
    assert first == again
    assert min(values) <= first.low <= first.high <= max(values)


def test_outcomes(run):
    table = analysis.outcomes(analysis.chats(run))
    assert table.to_dict("index") == {1: {"ok": 2, "shed": 0, "failed": 0}, 2: {"ok": 3, "shed": 1, "failed": 0}}


def test_waits(run):
    table = analysis.waits(analysis.chats(run))
    assert table.loc[1, "TTFT p50 ms"].value == 200 and table.loc[1, "n"] == 2
    assert table.loc[1, "tokens/s in all"] == 19.0
    assert table.loc[2, "n"] == 3 and table.loc[2, "TPOT p50 ms"].n == 2


def test_goodput_counts_what_was_shed_against_the_server(run):
    table = analysis.goodput(analysis.chats(run), ttft_ms=1000, tpot_ms=60)
    assert table.loc[1].to_list() == [1.0, 1.0]
    assert table.loc[2, "share in time"] == 0.25, "late first token, slow tokens and shed are out; the one-token answer is in"
    assert table.loc[2, "chats/s in time"] == pytest.approx(1 / 2)


def test_second_client(run):
    assert analysis.second_client(analysis.chats(run)) == (1, 2)
    assert analysis.second_client(pd.DataFrame(ROWS[:2])) is None


def test_figure_has_both_waits(run):
    left, right = analysis.draw_waits(analysis.waits(analysis.chats(run))).axes
    assert "TTFT" in left.get_ylabel() and "TPOT" in right.get_ylabel()
