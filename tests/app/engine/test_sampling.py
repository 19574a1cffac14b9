"""The kernel's sampling against sorting and adding in double, at chosen uniform numbers."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.kernel import Kernel
from app.engine.structures import SamplingRowArgs

NEAR = 1e-5  # of the whole distribution: what float32 sums may be off


def expected_weights(scores: torch.Tensor, row: SamplingRowArgs, slack: float, rounding: float) -> torch.Tensor:
    """Normalised probabilities `[vocab]` in double of what the filters keep; `slack` shifts top_p, `rounding` the smallest weight kept."""
    weights = (scores.double() * row.inverse_temperature).softmax(-1)
    ordered = weights.sort(descending=True).values
    least = ordered[row.top_k - 1] if row.top_k else ordered[-1]
    if row.top_p < 1:
        ordered = ordered[: row.top_k or None]
        nucleus = int((ordered.cumsum(0) < (row.top_p + slack) * ordered.sum()).sum())
        least = ordered[min(nucleus, len(ordered) - 1)]
    least = max(float(least), row.min_p * float(weights.max())) * (1 - rounding)
    kept = torch.where(weights >= least, weights, 0)
    return kept / kept.sum()


def is_right(scores: torch.Tensor, row: SamplingRowArgs, token: int) -> bool:
    for slack, rounding in product((0.0, -NEAR, NEAR), (1e-6, 0.0)):  # a weight so near to the smallest one may be kept or not
        kept = expected_weights(scores, row, slack, rounding)
        end = float(kept.cumsum(0)[token])
        if kept[token] > 0 and end - float(kept[token]) - NEAR <= row.uniform <= end + NEAR:
            return True
    return False


@settings(max_examples=120, deadline=None)
@given(
    vocab=st.integers(1, 70) | st.sampled_from([1023, 1024, 1025, 3000, 20000]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 4.0, 30.0]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
    temperature=st.sampled_from([0.2, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 1500]),
    top_p=st.sampled_from([1.0, 0.999, 0.95, 0.3, 1e-6]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    banned=st.floats(0, 0.9),
)
def test_a_token_is_where_the_filtered_distribution_reaches_its_uniform_number(
    built: Kernel,
    vocab: int,
    spread: float,
    dtype: torch.dtype,
    uniforms: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    banned: float,
) -> None:
    torch.manual_seed(vocab)
    scores = (spread * torch.randn(len(uniforms), vocab)).to(dtype)
    scores[:, torch.rand(vocab) < banned] = -torch.inf
    scores[:, vocab // 2] = 0.0
    rows = [SamplingRowArgs(uniform, top_p, 1 / temperature, min_p, min(top_k, vocab)) for uniform in uniforms]
    for row_scores, row, token in zip(scores, rows, built.sample_tokens(scores, rows), strict=True):
        assert is_right(row_scores, row, token), (token, row.uniform)


def test_greedy_rows_take_the_first_of_the_likeliest(built: Kernel) -> None:
    scores = torch.randn(3, 1000).bfloat16()
    scores[1, 7] = scores[1, 999] = 50.0
    greedy = SamplingRowArgs(0.0, 1.0, 0.0, 0.0, 0)
    assert built.sample_tokens(scores, [greedy] * 3) == scores.float().argmax(-1).tolist()
    assert built.sample_tokens(scores.float(), [greedy] * 3)[1] == 7


@pytest.mark.parametrize("value", [-math.inf, math.nan])
@pytest.mark.parametrize("inverse_temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [0, 5])
def test_a_row_without_any_finite_score_gets_some_token(built: Kernel, value: float, inverse_temperature: float, top_k: int) -> None:
    row = SamplingRowArgs(0.5, 0.9, inverse_temperature, 0.1, top_k)
    for dtype in (torch.bfloat16, torch.float32):
        assert built.sample_tokens(torch.full((1, 50), value, dtype=dtype), [row]) == [0]


@pytest.mark.parametrize("count", [5, 40, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_only_allowed_tokens_are_drawn(built: Kernel, count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(count)
    scores = torch.randn(1, 50).clamp(-1, 1).to(dtype)  # so that each allowed token has more than a fiftieth of the probability
    allowed = np.zeros(count, dtype=np.bool_)
    allowed[[1, 3, count - 1]] = True
    possible = {1, 3, count - 1} & set(range(50))
    rows = [SamplingRowArgs(i / 50, 1.0, 1.0, 0.0, 0, allowed.ctypes.data, count) for i in range(50)]
    assert set(built.sample_tokens(scores.expand(50, -1), rows)) == possible
    greedy = SamplingRowArgs(0.0, 1.0, 0.0, 0.0, 0, allowed.ctypes.data, count)
    assert built.sample_tokens(scores, [greedy]) == [max(possible, key=lambda token: float(scores[0, token]))]


def test_a_score_that_is_no_number_is_never_drawn(built: Kernel) -> None:
    scores = torch.tensor([[math.nan, 0.0, -math.inf, 0.0, math.nan]] * 200)
    rows = [SamplingRowArgs(i / 200, 1.0, 1.0, 0.0, 0) for i in range(200)]
    assert set(built.sample_tokens(scores, rows)) == {1, 3}


def test_uniform_numbers_next_to_one_find_the_last_token_with_a_weight(built: Kernel) -> None:
    scores = torch.zeros(1, 5000)
    scores[0, 4321:] = -torch.inf
    assert built.sample_tokens(scores, [SamplingRowArgs(1 - 2**-53, 1.0, 1.0, 0.0, 0)]) == [4320]
