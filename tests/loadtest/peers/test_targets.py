import pytest

from loadtest.peers.targets import (
    ROWS,
    TARGETS,
    Target,
    gaps_overlapping,
    gaps_within,
    numbers_by_subject,
    round_groups,
    table,
    targets_of_rows,
)

MORE = Target(1, "speed", "tokens/s", "a/x/v", "b/x/v", "b", 2.0)
SHORTER = Target(2, "wait", "ms", "a/x/then", "a/x/first", "its first", 5.0, "shorter")
LIMIT = Target(3, "gap", "ms", "a/x/pressed", "a/x/calm", "calm", 3.0, "limit")


@pytest.mark.parametrize(
    ("target", "ours", "theirs", "ratio", "met"),
    [
        (MORE, 400, 200, 2.0, True),
        (MORE, 399, 200, 1.995, False),
        (SHORTER, 20, 100, 5.0, True),
        (SHORTER, 21, 100, 100 / 21, False),
        (LIMIT, 30, 10, 3.0, True),
        (LIMIT, 31, 10, 3.1, False),
    ],
)
def test_met_or_not(target, ours, theirs, ratio, met):
    assert target.ratio(ours, theirs) == pytest.approx(ratio)
    assert target.met(target.ratio(ours, theirs)) is met


def rows(shown):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()[2:]]


def test_table():
    values = {"a/x/v": 400.0, "b/x/v": 250.04, "a/x/then": 12.34, "a/x/first": 99.0, "a/x/pressed": 31.0, "a/x/calm": 10.0}
    assert rows(table([MORE, SHORTER, LIMIT], values, {})) == [
        ["1", "speed", "400 tokens/s", "b: 250 tokens/s", "1.6", "at least 2", "**no**"],
        ["2", "wait", "12.3 ms", "its first: 99.0 ms", "8.02", "at least 5", "yes"],
        ["3", "gap", "31.0 ms", "calm: 10.0 ms", "3.1", "at most 3", "**no**"],
    ]


def test_what_was_not_run_claims_nothing():
    (row,) = rows(table([MORE], {"a/x/v": 400.0}, {"b/x": "not run: no b | on\nPATH"}))
    assert row == ["1", "speed", "400 tokens/s", "b: -", "-", "at least 2", "not run: no b / on PATH"]


def test_each_is_measured_once_and_only_what_is_needed():
    assert numbers_by_subject(targets_of_rows([2])) == {"engine/none": {"whole"}, "generate/none": {"whole"}}
    assert [*numbers_by_subject(targets_of_rows([1, 2]))] == [
        "engine/nf4",
        "manager/nf4",
        "engine/int4",
        "manager/none",
        "generate/none",
        "engine/none",
    ]
    assert numbers_by_subject(targets_of_rows([3, 7])) == {"litmus/none": {"continued", "first"}}
    assert tuple(range(1, 12)) == ROWS and len(targets_of_rows(ROWS)) == len(TARGETS) == 17


def test_rates_that_are_compared_are_measured_in_turn():
    assert round_groups(targets_of_rows([1, 2, 7, 8])) == []
    assert round_groups(targets_of_rows([6])) == [["litmus/none/crowd", "engine/none/chats"]]
    assert round_groups(targets_of_rows([3, 4, 5])) == [
        ["litmus/none/crowd", "transformers/none/crowd", "llama/f16/crowd"],
        ["litmus/4bit/crowd", "llama/4bit/crowd"],
        ["litmus/none/alone", "llama/f16/alone"],
        ["litmus/4bit/alone", "llama/4bit/alone"],
    ]


def test_a_gap_that_the_window_only_cuts_counts_as_pressed_and_not_as_calm():
    deltas = [0.0, 1.0, 2.0, 5.0, 6.0, 7.0]
    assert gaps_overlapping(deltas, 2.5, 5.5) == [3.0, 1.0]
    assert gaps_overlapping(deltas, 3.0, 4.0) == [3.0], "a stream that stood still all the while"
    assert gaps_within(deltas, 1.0, 5.5) == [1.0, 3.0]
    assert gaps_within(deltas, 0.5, 2.5) == [1.0]
    assert gaps_overlapping([1.0], 0.0, 2.0) == gaps_within([], 0.0, 2.0) == []
