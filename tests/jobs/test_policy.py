import pytest

from jobs import policy
from jobs.policy import Part, divide, pause_s, retry_after_s, tries_again, wakes


@pytest.mark.parametrize(
    ("ends", "lines_per_task", "parts"),
    [
        ([], 2, []),
        ([5], 2, [Part(0, 1, 0, 5)]),
        ([5, 9], 2, [Part(0, 2, 0, 9)]),
        ([5, 9, 20], 2, [Part(0, 2, 0, 9), Part(2, 1, 9, 11)]),
        ([1, 2, 3], 1, [Part(0, 1, 0, 1), Part(1, 1, 1, 1), Part(2, 1, 2, 1)]),
    ],
)
def test_a_file_is_divided_without_gaps(ends, lines_per_task, parts):
    assert list(divide(ends, lines_per_task)) == parts


def test_a_task_is_due_when_its_lease_has_ended():
    end = policy.lease_end(100.0, 30.0)
    assert not policy.is_due(end, 129.9) and policy.is_due(end, 130.0)


@pytest.mark.parametrize("lease_s", [1.0, 5.0, 30.0, 3600.0])
def test_two_beats_may_be_lost(lease_s):
    assert 2 * policy.beat_s(lease_s) < lease_s


def test_a_small_batch_need_not_wait_for_the_whole_of_an_earlier_large_one_nor_the_other_way_round():
    large, small = [policy.rank(0, n) for n in range(100)], policy.rank(600, 0)
    assert large[0] < small < large[50]
    assert policy.rank(100 * policy.TASK_GAP_S + 1, 0) > large[-1]  # later batches do not keep it waiting


@pytest.mark.parametrize(
    ("due", "queued", "sent"), [(0, 0, 0), (5, 0, 5), (5, 5, 0), (5, 9, 0), (10_000, 0, policy.MAX_WAKES), (10_000, policy.MAX_WAKES, 0)]
)
def test_messages_do_not_pile_up(due, queued, sent):
    assert wakes(due, queued) == sent


@pytest.mark.parametrize(
    ("status", "tries", "again"),
    [
        (200, 1, False),
        (400, 1, False),
        (404, 1, False),
        (429, 99, True),
        (503, 99, True),
        (500, 1, True),
        (500, 3, False),
        (408, 2, True),
        (408, 3, False),
        (None, 2, True),
        (None, 3, False),
    ],
)
def test_what_is_sent_again(status, tries, again):
    assert tries_again(status, tries) is again


def test_a_pause_is_what_the_server_asks_for_or_grows_up_to_a_bound():
    assert [pause_s(tries) for tries in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert pause_s(50) == policy.MAX_PAUSE_S
    assert pause_s(1, 7.0) == 7.0 and pause_s(5, 1.0) == 16.0 and pause_s(1, 1e9) == policy.MAX_PAUSE_S


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        (None, None),
        ("", None),
    ],
)
def test_retry_after(header, seconds):
    assert retry_after_s(header) == seconds


def test_a_task_that_kills_its_workers_is_given_up():
    assert not policy.gives_up(policy.MAX_ATTEMPTS) and policy.gives_up(policy.MAX_ATTEMPTS + 1)
