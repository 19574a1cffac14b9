"""Shares of bandwidth and of operations, by numbers that can be worked out by hand."""

import pytest
from gpu.marks import EIGHT_B, Shape, bandwidth_share, decode_bytes, flops_share, prefill_flops

SMALL = Shape(hidden=8, layers=2, heads=4, kv_heads=2, ff=16, vocabulary=10, context=64)


def test_the_shape_of_eight_billion_weights():
    weights = EIGHT_B.layers * EIGHT_B.layer_weights + 2 * EIGHT_B.hidden * EIGHT_B.vocabulary
    assert weights == pytest.approx(8.03e9, rel=0.001), "as Llama 3.1 8B, norms aside"
    assert EIGHT_B.kv_bytes() == 131072, "128 KiB a token"


def test_weights_of_a_layer():
    queries, keys_and_values, out, gated = 8 * 8, 2 * 8 * 4, 8 * 8, 3 * 8 * 16
    assert SMALL.layer_weights == queries + keys_and_values + out + gated
    assert SMALL.kv_bytes(4) == 2 * 2 * 4 * 4


def test_what_a_decode_step_reads():
    assert decode_bytes(1000, 10, rows=4, tokens=20) == 1000 + 4 * 20 * 10


def test_share_of_the_bandwidth():
    """16 GB a step and 100 steps a second are 1.6 TB/s, half of 3.2; with 8 rows, 100 steps are 800 tokens."""
    assert bandwidth_share(16e9, 1, 100.0, 3.2e12) == pytest.approx(0.5)
    assert bandwidth_share(16e9, 8, 800.0, 3.2e12) == pytest.approx(0.5)


def test_operations_of_a_prompt():
    linear, attention, head = 2 * 2 * SMALL.layer_weights * 3, 2 * 4 * 8 * (1 + 2 + 3), 2 * 8 * 10
    assert prefill_flops(SMALL, prompts=5, length=3) == 5 * (linear + attention + head)


def test_share_of_the_operations():
    assert flops_share(4e14, 1.0, 8e14) == pytest.approx(0.5)
    assert flops_share(4e14, 2.0, 8e14) == pytest.approx(0.25)
