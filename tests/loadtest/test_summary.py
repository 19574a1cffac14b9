import math

import numpy as np
import pytest

from loadtest.record import Record
from loadtest.summary import COLUMNS, Round, percentile, row, table


def record(kind="chat", outcome="ok", **fields):
    return Record(kind=kind, clients=2, started_s=0, status=200, outcome=outcome, e2e_ms=100, **fields)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([5], 0.5, 5), ([1, 2, 3, 4], 0.5, 2.5), (range(1, 101), 0.95, 95.05), ([3, 1, 2], 1.0, 3), ([3, 1], 0.0, 1), ([9, 1, 2], 0.9, 7.6)],
)
def test_percentile_is_that_of_numpy_and_so_of_the_notebooks(values, share, expected):
    assert percentile(list(values), share) == pytest.approx(expected) == pytest.approx(np.quantile(list(values), share))


def test_no_values_no_percentile():
    assert math.isnan(percentile([], 0.5))


def test_row_counts_only_what_finished():
    chats = [record(ttft_ms=10.0, tpot_ms=5.0, completion_tokens=40), record(ttft_ms=30.0, tpot_ms=7.0, completion_tokens=60)]
    others = [record(outcome="shed"), record(outcome="failed", ttft_ms=999.0, completion_tokens=50), record(kind="score")]
    cells = dict(zip(COLUMNS, row(Round(2, [*chats, *others], chat_s=2.0, score_s=0.5)), strict=True))
    assert (cells["requests"], cells["ok"], cells["shed"], cells["failed"]) == ("5", "3", "1", "1")
    assert (cells["TTFT p50 ms"], cells["TTFT p95 ms"], cells["TPOT p50 ms"]) == ("20.0", "29.0", "6.0")
    assert (cells["tokens/s in all"], cells["scores/s"]) == ("50.0", "2.0")


def test_table_without_a_finished_chat_shows_a_dash():
    lines = table([Round(1, [record(outcome="shed")], 0.0, 0.0)]).splitlines()
    assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1
    assert lines[2].split("|")[6].strip() == "-"
