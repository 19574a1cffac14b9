"""Where a conversation was last."""

import pytest

from serve.workers import affinity
from serve.workers.affinity import STRIDE, Affinity


def test_a_conversation_goes_home_and_another_one_nowhere() -> None:
    seen = Affinity()
    seen.note(range(100), 1)
    assert seen.home([*range(100), *range(500, 520)]) == 1
    assert seen.home(range(1000, 1100)) is None
    assert seen.home(range(STRIDE - 1)) is None


def test_a_common_beginning_that_is_less_than_half_is_no_home() -> None:
    seen = Affinity()
    seen.note([*range(STRIDE), *range(1000, 1100)], 1)
    assert seen.home([*range(STRIDE), *range(2000, 2000 + 2 * STRIDE)]) is None
    assert seen.home([*range(STRIDE), *range(2000, 2000 + STRIDE)]) == 1


def test_the_latest_reader_is_home() -> None:
    seen = Affinity()
    seen.note(range(100), 0)
    seen.note(range(100), 2)
    assert seen.home(range(100)) == 2


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "MOST", 10)
    seen = Affinity()
    for place in range(0, 100_000, 1000):
        seen.note(range(place, place + 100), 0)
    assert len(seen._homes) == 10
    assert seen.home(range(99_000, 99_100)) == 0
    assert seen.home(range(100)) is None
