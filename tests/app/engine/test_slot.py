"""Prefixes."""

from hypothesis import given
from hypothesis import strategies as st

from app.engine.slot import common_prefix


@given(st.lists(st.integers(0, 3), max_size=300), st.lists(st.integers(0, 3), max_size=300), st.integers(0, 300))
def test_the_common_prefix_is_as_long_as_a_plain_loop_says(one: list[int], other: list[int], alike: int) -> None:
    other = one[:alike] + other
    plain = 0
    while plain < min(len(one), len(other)) and one[plain] == other[plain]:
        plain += 1
    assert common_prefix(tuple(one), other) == plain
