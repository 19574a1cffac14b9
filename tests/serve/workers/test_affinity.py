"""Which replica a prompt is sent to, by the prefixes that were remembered."""

import pytest

from serve.workers import affinity
from serve.workers.affinity import STRIDE_TOKENS, Affinity


def test_a_conversation_finds_its_replica_and_another_one_finds_none() -> None:
    affinity_map = Affinity()
    affinity_map.remember(range(100), 1)
    assert affinity_map.find([*range(100), *range(500, 520)]) == 1
    assert affinity_map.find(range(1000, 1100)) is None
    assert affinity_map.find(range(STRIDE_TOKENS - 1)) is None


def test_a_common_prefix_of_less_than_half_the_prompt_is_ignored() -> None:
    affinity_map = Affinity()
    affinity_map.remember([*range(STRIDE_TOKENS), *range(1000, 1100)], 1)
    assert affinity_map.find([*range(STRIDE_TOKENS), *range(2000, 2000 + 2 * STRIDE_TOKENS)]) is None
    assert affinity_map.find([*range(STRIDE_TOKENS), *range(2000, 2000 + STRIDE_TOKENS)]) == 1


def test_the_replica_that_read_a_prompt_last_is_found() -> None:
    affinity_map = Affinity()
    affinity_map.remember(range(100), 0)
    affinity_map.remember(range(100), 2)
    assert affinity_map.find(range(100)) == 2


def test_the_number_of_remembered_prefixes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "MAX_PREFIXES", 10)
    affinity_map = Affinity()
    for place in range(0, 100_000, 1000):
        affinity_map.remember(range(place, place + 100), 0)
    assert len(affinity_map._replicas) == 10
    assert affinity_map.find(range(99_000, 99_100)) == 0
    assert affinity_map.find(range(100)) is None


def test_what_one_adapter_has_read_is_not_there_for_another() -> None:
    affinity_map = Affinity()
    affinity_map.remember(range(100), 1, "tuned")
    affinity_map.remember(range(100), 2)
    found = [affinity_map.find(range(100), adapter) for adapter in ("tuned", None, "other")]
    assert found == [1, 2, None]
