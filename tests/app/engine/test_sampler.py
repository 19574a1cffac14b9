"""The sampler against transformers' filters, against exact probabilities, and against itself in other batches."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_rows import GREEDY, SMALL, VOCABULARY, random_logits, row_of
from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from app.engine import sampler
from app.engine.devicesampling import BLOCK, _invert_distribution, _locate_fraction, draw, filtered_probabilities
from app.engine.request import SamplingParams
from app.engine.sampler import SamplerRow, _uniform, drawing_numbers, sample, token_logprobs

ALMOST_ONE = 1.0 - 2.0**-53


def filtered(scores: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """The probabilities that filters leave, where enough tokens are looked at."""
    numbers = torch.from_numpy(drawing_numbers([row_at(0, each) for each in params]))
    probabilities, is_right = filtered_probabilities(scores, numbers, scores.shape[-1])
    assert is_right.all()
    return probabilities


def row_at(position: int, params: SamplingParams) -> SamplerRow:
    return row_of(params, (0,) * position, position)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_rows_take_the_likeliest_token_and_the_first_of_equals(dtype: torch.dtype) -> None:
    logits = random_logits(5, VOCABULARY).to(dtype)
    logits[3, 7], logits[3, 1999] = 50.0, 50.0
    logits[4] = 0.0
    tokens = sample(logits, [row_of()] * 5)
    assert tokens == [row.index(max(row)) for row in logits.tolist()]
    assert tokens[3:] == [7, 0]


def test_a_temperature_too_small_for_float32_is_greedy() -> None:
    logits = random_logits(2, VOCABULARY)
    rows = [row_of(SamplingParams(temperature=1e-320)), row_of(SamplingParams(temperature=1e-6))]
    assert sample(logits, rows) == logits.argmax(-1).tolist()


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.empty(0, 5), []) == []


@pytest.mark.parametrize("spread", [0.2, 4.0])
@pytest.mark.parametrize(
    "row",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=40),
        SamplingParams(top_k=1),
        SamplingParams(top_k=1500),
        SamplingParams(top_k=99999),
        SamplingParams(temperature=0.9, top_p=0.9),
        SamplingParams(top_p=0.999),
        SamplingParams(top_p=0.01),
        SamplingParams(min_p=0.05),
        SamplingParams(temperature=1.5, top_k=100, top_p=0.8, min_p=0.1),
    ],
)
def test_filters_keep_what_transformers_keeps(row: SamplingParams, spread: float) -> None:
    scores = random_logits(3, VOCABULARY) * spread / row.temperature
    golden = LogitsProcessorList([TemperatureLogitsWarper(1.0)])
    if row.top_k:
        golden.append(TopKLogitsWarper(row.top_k))
    if row.top_p < 1:
        golden.append(TopPLogitsWarper(row.top_p))
    if row.min_p:
        golden.append(MinPLogitsWarper(row.min_p))
    expected = golden(torch.LongTensor(3, 1), scores.clone()).isfinite()
    plain = SamplingParams(temperature=2.0)
    actual = filtered(torch.cat([scores, scores]), [row, row, row, plain, plain, plain])
    assert torch.equal(actual[3:], scores.softmax(-1))
    assert ((actual[:3] > 0) != expected).sum() <= 1  # a sum of float32 probabilities may land on the other side of top_p
    both = (actual[:3] > 0) & expected
    assert torch.equal(actual[:3][both], actual[3:][both])
    assert torch.equal(filtered(scores, [row, row, row]), actual[:3])


def test_a_row_is_drawn_right_or_said_to_be_wrong_where_too_few_tokens_are_looked_at() -> None:
    logits = random_logits(40, VOCABULARY) * torch.linspace(0.1, 6.0, 40)[:, None]
    params = [SamplingParams(top_p=0.9), SamplingParams(top_k=70), SamplingParams(top_k=9, top_p=0.7), SamplingParams(temperature=0.0)]
    rows = [row_at(position, params[position % 4]) for position in range(40)]
    numbers = torch.from_numpy(drawing_numbers(rows))
    drawn, is_right = draw(logits, numbers, 64)
    expected, all_right = draw(logits, numbers, VOCABULARY)
    assert all_right.all() and torch.equal(drawn[is_right], expected[is_right])
    assert 0 < (~is_right[::4]).sum() < 10 and not is_right[1::4].any() and is_right[2::4].all() and is_right[3::4].all()
    assert sampler._draw(logits, rows) == expected.tolist()


def test_filters_do_not_change_the_logits() -> None:
    logits = random_logits(2, VOCABULARY)
    before = logits.clone()
    sample(logits, [row_at(3, SamplingParams(top_p=0.5, min_p=0.1)), row_at(3, SamplingParams(top_k=9))])
    assert torch.equal(logits, before)


def test_tokens_come_from_the_tempered_and_filtered_distribution() -> None:
    logits = torch.tensor([3.0, 2.5, 2.0, 1.0, 0.5]).expand(4000, 5)
    row = SamplingParams(temperature=2.0, top_k=3, seed=5)
    counts = torch.tensor(sample(logits, [row_at(position, row) for position in range(4000)])).bincount(minlength=5).double()
    expected = torch.tensor([1.5, 1.25, 1.0]).softmax(-1).double() * 4000
    assert counts[3:].sum() == 0
    assert ((counts[:3] - expected) ** 2 / expected).sum() < 13.8  # 0.1% of fair samplers exceed it (2 degrees of freedom)


def test_samples_follow_the_probabilities() -> None:
    probabilities = torch.rand(3 * BLOCK + 7, generator=torch.Generator().manual_seed(2)).double() ** 3
    probabilities[::5] = 0.0
    probabilities /= probabilities.sum()
    samples = 20000
    uniforms = torch.tensor([[_uniform(9, position)] for position in range(samples)], dtype=torch.float64)
    tokens = _invert_distribution(probabilities.float().expand(samples, -1), uniforms)
    counts = tokens.bincount(minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0
    likely = probabilities * samples > 5
    chi_square = ((counts - samples * probabilities) ** 2 / (samples * probabilities))[likely].sum()
    freedom = int(likely.sum())
    assert chi_square < freedom + 3.5 * (2 * freedom) ** 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 1, 2, 1000]), min_size=1, max_size=3 * BLOCK + 5).filter(any))
def test_the_inversion_finds_the_token_that_a_running_sum_finds(weights: list[int]) -> None:
    """At the middle of each token's part of the distribution, and at both of its ends."""
    total, below, expected, uniforms = sum(weights), 0, [], []
    for token, weight in enumerate(weights):
        if weight:
            expected.append(token)
            uniforms.append([(below + weight / 2) / total])
        below += weight
    expected += [expected[0], expected[-1]]
    uniforms += [[0.0], [ALMOST_ONE]]
    rows = torch.tensor(weights, dtype=torch.float32).expand(len(expected), -1)
    assert _invert_distribution(rows, torch.tensor(uniforms, dtype=torch.float64)).tolist() == expected


def test_small_weights_are_not_lost_beside_large_ones() -> None:
    weights = torch.zeros(2, 3 * BLOCK)
    weights[0, [5, BLOCK + 3, 2 * BLOCK]] = torch.tensor([2.0**30, 1.0, 2.0**30])
    weights[1, [5, 6, 7]] = torch.tensor([2.0**30, 1.0, 2.0**30])
    assert _invert_distribution(weights, torch.tensor([[0.5], [0.5]], dtype=torch.float64)).tolist() == [BLOCK + 3, 6]


def test_the_inversion_ends_at_the_last_token_with_a_weight() -> None:
    weights = torch.zeros(2, 3 * BLOCK)
    weights[0, [2, BLOCK + 3]] = 0.1
    assert _invert_distribution(weights, torch.ones(2, 1, dtype=torch.float64)).tolist() == [BLOCK + 3, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(2, 50))
def test_no_weight_of_zero_is_found_at_the_borders_between_weights(seed: int, size: int) -> None:
    """The uniform numbers are within a few units in the last place of a border between two weights of the running sum."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(size, generator=generator, dtype=torch.float64) * (torch.rand(size, generator=generator) < 0.5)
    weights[seed % size] = 0.1
    sums = weights.cumsum(-1)
    ulps = torch.arange(-4, 5) * 2.0**-54
    uniforms = (sums / sums[-1] + ulps[:, None]).flatten().clamp(0.0, ALMOST_ONE)[:, None]
    index, rest = _locate_fraction(weights.expand(len(uniforms), -1), uniforms)
    assert (weights[index] > 0).all()
    assert rest.min() >= 0
    assert rest.max() <= 1


def test_uniform_numbers_are_those_of_splitmix64() -> None:
    words = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # of its reference implementation from state 0
    assert [_uniform(0, position) for position in range(3)] == [(word >> 11) / 2**53 for word in words]


def test_uniform_numbers_are_uniform_and_differ_by_seed_and_position() -> None:
    numbers = torch.tensor([[_uniform(seed, position) for position in range(10_000)] for seed in (1, 2, 1 << 40)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean(-1).tolist() == pytest.approx([0.5] * 3, abs=0.012)  # four standard errors
    assert numbers.var(-1).tolist() == pytest.approx([1 / 12] * 3, abs=0.003)
    assert torch.corrcoef(numbers).fill_diagonal_(0.0).abs().max() < 0.03


def varied_rows(count: int) -> list[SamplerRow]:
    """Rows of many kinds, each with its own seed, tokens and filters."""
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=0.8, top_p=0.95),
        SamplingParams(temperature=1.7, top_k=5),
        GREEDY,
        SamplingParams(min_p=0.02, repetition_penalty=1.3),
        SamplingParams(top_k=1500, top_p=0.9),
        SamplingParams(temperature=3.0, frequency_penalty=0.5, presence_penalty=0.2),
        SamplingParams(bad_words=((4,), (5, 6)), min_tokens=99, logit_bias=((7, 3.0),)),
        SamplingParams(temperature=5.0, top_p=0.99),
    ]
    return [row_of(replace(kinds[i % len(kinds)], seed=i * 7919 - 50), tuple(range(i % 11)), i % 3, (i, 9)) for i in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_samples_the_same_token_in_every_batch(dtype: torch.dtype) -> None:
    count = 45
    logits, rows = random_logits(count, VOCABULARY, 3).to(dtype), varied_rows(count)
    together = sample(logits, rows)
    assert together == [sample(logits[i : i + 1], rows[i : i + 1])[0] for i in range(count)]
    for size in (2, 7, count):
        chosen = random.Random(size).sample(range(count), size)
        assert sample(logits[chosen], [rows[i] for i in chosen]) == [together[i] for i in chosen]


def test_filtered_probabilities_are_the_same_bits_in_every_batch() -> None:
    scores, params = random_logits(45, VOCABULARY, 3), [row.params for row in varied_rows(45)]
    together = filtered(scores, params)
    for i in range(45):
        assert torch.equal(filtered(scores[i : i + 1], params[i : i + 1]), together[i : i + 1])


def test_position_and_seed_alone_decide() -> None:
    flat = torch.zeros(1, VOCABULARY)
    first = sample(flat, [row_at(3, SamplingParams(seed=1))])
    assert sample(flat, [row_of(SamplingParams(seed=1), (7, 8, 9), 1)]) == first  # the tokens and the length of the prompt do not matter
    assert sample(flat, [row_at(4, SamplingParams(seed=1))]) != first
    assert sample(flat, [row_at(3, SamplingParams(seed=2))]) != first


def test_seeds_of_any_sign_and_size_are_different_seeds() -> None:
    flat = torch.zeros(1, VOCABULARY)
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 2**63 + 5]
    assert len({sample(flat, [row_at(0, SamplingParams(seed=seed))])[0] for seed in seeds}) >= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_log_softmax_and_topk(dtype: torch.dtype) -> None:
    logits = random_logits(4, VOCABULARY).to(dtype)
    tokens, tops = [3, 1, 4, 2000], {0: 5, 2: 0, 3: 20}
    actual = token_logprobs(logits, tokens, [tops.get(row) for row in range(4)])
    assert actual[1] is None
    golden = logits.float().log_softmax(-1)
    for row, top in tops.items():
        entry, best = actual[row], golden[row].topk(top)
        assert entry is not None
        assert (entry.token, entry.logprob) == (tokens[row], golden[row, tokens[row]].item())
        assert [value for _, value in entry.top] == best.values.tolist()
        assert [golden[row, token].item() for token, _ in entry.top] == best.values.tolist()
        assert len({token for token, _ in entry.top}) == top


@pytest.mark.parametrize("top", [1, 3, 20])
def test_equally_likely_tokens_are_listed_by_their_ids_in_any_batch(top: int) -> None:
    """bfloat16 has few values, so equals are common."""
    logits = (random_logits(3, VOCABULARY) * 4).round().bfloat16()
    golden = logits.float().log_softmax(-1).sort(descending=True, stable=True)
    batched = token_logprobs(logits, [0, 0, 0], [top, 20, 20])[0]
    [alone] = token_logprobs(logits[:1], [0], [top])
    assert alone == batched and alone is not None
    assert [token for token, _ in alone.top] == golden.indices[0, :top].tolist()


def test_more_logprobs_than_there_are_tokens_are_all_tokens() -> None:
    [actual] = token_logprobs(random_logits(1, SMALL), [2], [20])
    assert actual is not None
    assert sorted(token for token, _ in actual.top) == list(range(SMALL))


def test_rows_without_logprobs_are_not_softmaxed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    whole = torch.Tensor.log_softmax

    def watched(self: torch.Tensor, dim: int) -> torch.Tensor:
        shapes.append(tuple(self.shape))
        return whole(self, dim)

    monkeypatch.setattr(torch.Tensor, "log_softmax", watched)
    assert token_logprobs(random_logits(3, SMALL), [0, 0, 0], [None] * 3) == [None] * 3
    assert shapes == []
    token_logprobs(random_logits(3, SMALL), [0, 0, 0], [None, 0, None])
    assert shapes == [(1, SMALL)]
