"""The common prefix of two sequences."""

from hypothesis import given
from hypothesis import strategies as st

from app.engine.slot import common_prefix_length


@given(st.lists(st.integers(0, 3), max_size=300), st.lists(st.integers(0, 3), max_size=300), st.integers(0, 300))
def test_the_common_prefix_has_the_length_that_a_plain_loop_finds(a: list[int], b: list[int], shared: int) -> None:
    b = a[:shared] + b
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix_length(tuple(a), b) == expected
