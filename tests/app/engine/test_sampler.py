"""The sampler against transformers' own processors and plain loops, against exact probabilities, and against itself in other batches."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from app.engine.request import Sampling
from app.engine.sampler import BLOCK, Draw, _filtered, _invert, _search, _uniform, logprobs, process, sample

VOCABULARY = 2003  # neither a multiple of a block nor of a vector
GREEDY = Sampling(temperature=0.0)
ALMOST_ONE = 1.0 - 2.0**-53
SMALL = 12
TOKENS = st.lists(st.integers(0, SMALL - 1), max_size=8)
ANY_TOKEN = st.sampled_from([*range(SMALL), -1, SMALL, SMALL + 100])  # some are in no vocabulary


def draw(sampling: Sampling = GREEDY, tokens: tuple[int, ...] = (), prompt: int = 0, ends: tuple[int, ...] = ()) -> Draw:
    return Draw(sampling, tokens, prompt, frozenset(ends))


def at(position: int, sampling: Sampling) -> Draw:
    return draw(sampling, (0,) * position, position)


def random_logits(rows: int, vocab: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_rows_take_the_likeliest_token_and_the_first_of_equals(dtype: torch.dtype) -> None:
    logits = random_logits(5, VOCABULARY).to(dtype)
    logits[3, 7], logits[3, 1999] = 50.0, 50.0
    logits[4] = 0.0
    tokens = sample(logits, [draw()] * 5)
    assert tokens == [row.index(max(row)) for row in logits.tolist()]
    assert tokens[3:] == [7, 0]


def test_a_temperature_too_small_for_float32_is_greedy() -> None:
    logits = random_logits(2, VOCABULARY)
    draws = [draw(Sampling(temperature=1e-320)), draw(Sampling(temperature=1e-6))]
    assert sample(logits, draws) == logits.argmax(-1).tolist()


def test_no_rows_no_tokens() -> None:
    assert sample(torch.empty(0, 5), []) == []


def test_where_no_row_asks_the_logits_are_the_very_same_tensor() -> None:
    logits = random_logits(3, SMALL).bfloat16()
    plain = Sampling(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, seed=4, min_tokens=2)
    outside = Sampling(logit_bias=((SMALL, 5.0), (-1, 5.0)), bad_words=((SMALL,), (1, 2, 3)))
    draws = [draw(plain, (1, 2, 3), 1, (5,)), draw(outside, (2,)), draw(Sampling(presence_penalty=1.0), (1, 2), 2)]
    assert process(logits, draws) is logits


def test_processing_gives_float32_and_leaves_the_logits_alone() -> None:
    for logits in (random_logits(2, SMALL), random_logits(2, SMALL).bfloat16()):
        before = logits.clone()
        scores = process(logits, [draw(), draw(Sampling(logit_bias=((3, 1.0),)))])
        assert scores.dtype == torch.float32
        assert torch.equal(logits, before)
        assert torch.equal(scores[0], logits[0].float())
        assert scores[1, 3] == logits[1, 3].float() + 1.0


@pytest.mark.parametrize("penalty", [0.7, 1.1, 2.0])
@pytest.mark.parametrize("normalised", [False, True])  # beam search penalises log-probabilities
def test_repetition_penalty_is_that_of_transformers(penalty: float, normalised: bool) -> None:
    logits = random_logits(3, VOCABULARY)
    logits[0, 5] = 0.0
    logits = logits.log_softmax(-1) if normalised else logits
    tokens = [(1, 5, 5, 9), (2000, 2002, 0, 2000), (7, 7, 7, 7)]
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(tokens), logits)
    row = Sampling(repetition_penalty=penalty)
    found = process(logits, [draw(row, prompt_and_answer, 2) for prompt_and_answer in tokens])
    assert torch.equal(found, wanted)
    mixed = process(logits, [draw(row, tokens[0], 2), draw(GREEDY, tokens[1], 2), draw(row, tokens[2], 2)])
    assert torch.equal(mixed, torch.stack([wanted[0], logits[1], wanted[2]]))


@settings(max_examples=60, deadline=None)
@given(TOKENS.filter(len), st.lists(st.lists(st.integers(0, SMALL - 1), min_size=1, max_size=3), min_size=1, max_size=8))
def test_bad_words_are_banned_as_by_transformers(tokens: list[int], words: list[list[int]]) -> None:
    logits = random_logits(1, SMALL)
    words.append([*tokens[-2:], 3])  # one that the tail does complete
    wanted = NoBadWordsLogitsProcessor(words)(torch.tensor([tokens]), logits)
    row = Sampling(bad_words=tuple(map(tuple, words)))
    assert torch.equal(process(logits, [draw(row, tuple(tokens), 1)]), wanted)
    assert torch.equal(process(logits, [Draw(row, tokens, 1, frozenset())]), wanted)


@pytest.mark.parametrize("answer", range(5))
def test_an_answer_does_not_end_before_min_tokens(answer: int) -> None:
    logits = random_logits(1, SMALL)
    tokens = (1, 2, 3, *[4] * answer)
    wanted = MinNewTokensLengthLogitsProcessor(3, 3, [5, 7])(torch.tensor([tokens]), logits.clone())
    assert torch.equal(process(logits, [draw(Sampling(min_tokens=3), tokens, 3, (5, 7, SMALL))]), wanted)
    assert wanted.isfinite().all() == (answer >= 3)


def slow_process(logits: list[float], row: Draw) -> list[float]:
    """One row, one token after the other."""
    answer, asked = list(row.tokens[row.prompt :]), row.sampling
    scores = []
    for token, score in enumerate(logits):
        for biased, bias in asked.logit_bias:
            score += bias if biased == token else 0.0
        if token in row.tokens:
            score = score * asked.repetition_penalty if score < 0 else score / asked.repetition_penalty
        if token in answer:
            score -= asked.presence_penalty
        score -= asked.frequency_penalty * answer.count(token)
        for word in asked.bad_words:
            completed = [*row.tokens, token]
            if completed[len(completed) - len(word) :] == list(word) and len(word) <= len(completed):
                score = -torch.inf
        if len(answer) < asked.min_tokens and token in row.ends:
            score = -torch.inf
        scores.append(score)
    return scores


PENALTY = st.sampled_from([0.0, 0.0, 0.5, -1.5])
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 1 << 40),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2, 0.5]),
    presence_penalty=PENALTY,
    frequency_penalty=PENALTY,
    logit_bias=st.dictionaries(ANY_TOKEN, st.floats(-100, 100), max_size=3).map(lambda biases: tuple(biases.items())),
    bad_words=st.lists(st.lists(ANY_TOKEN, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    min_tokens=st.integers(0, 5),
)
DRAWS = st.builds(
    lambda asked, prompt, answer, ends: Draw(asked, prompt + answer, len(prompt), ends),
    SAMPLINGS,
    TOKENS,
    TOKENS,
    st.frozensets(ANY_TOKEN, max_size=2),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(DRAWS, min_size=1, max_size=5), st.booleans())
def test_processing_a_batch_is_a_plain_loop_over_its_rows(draws: list[Draw], normalised: bool) -> None:
    logits = random_logits(len(draws), SMALL) * 3
    logits = logits.log_softmax(-1) if normalised else logits
    wanted = [slow_process(row, asked) for row, asked in zip(logits.tolist(), draws, strict=True)]
    scores = process(logits, draws)
    assert torch.allclose(scores, torch.tensor(wanted), rtol=1e-5, atol=1e-4)
    for token, row in zip(sample(logits, draws), wanted, strict=True):
        assert row[token] > -torch.inf  # two ends, three bad words: never all twelve


@pytest.mark.parametrize("row", [GREEDY, Sampling(), Sampling(top_k=3), Sampling(top_p=0.5), Sampling(min_p=0.1)])
def test_a_row_whose_every_token_is_banned_gets_some_token(row: Sampling) -> None:
    banned = replace(row, bad_words=tuple((token,) for token in range(SMALL)))
    logits = random_logits(2, SMALL)
    tokens = sample(logits, [draw(banned), draw()])
    assert 0 <= tokens[0] < SMALL
    assert tokens[1] == logits[1].argmax()


@pytest.mark.parametrize("spread", [0.2, 4.0])
@pytest.mark.parametrize(
    "row",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_k=40),
        Sampling(top_k=1),
        Sampling(top_k=1500),
        Sampling(top_k=99999),
        Sampling(temperature=0.9, top_p=0.9),
        Sampling(top_p=0.999),
        Sampling(top_p=0.01),
        Sampling(min_p=0.05),
        Sampling(temperature=1.5, top_k=100, top_p=0.8, min_p=0.1),
    ],
)
def test_filters_keep_what_transformers_keeps(row: Sampling, spread: float) -> None:
    scores = random_logits(3, VOCABULARY) * spread / row.temperature
    golden = LogitsProcessorList([TemperatureLogitsWarper(1.0)])
    if row.top_k:
        golden.append(TopKLogitsWarper(row.top_k))
    if row.top_p < 1:
        golden.append(TopPLogitsWarper(row.top_p))
    if row.min_p:
        golden.append(MinPLogitsWarper(row.min_p))
    wanted = golden(torch.LongTensor(3, 1), scores.clone()).isfinite()
    plain = Sampling(temperature=2.0)
    found = _filtered(torch.cat([scores, scores]), [row, row, row, plain, plain, plain])
    assert torch.equal(found[3:], scores.softmax(-1))
    assert ((found[:3] > 0) != wanted).sum() <= 1  # a sum of float32 probabilities may land on the other side of top_p
    both = (found[:3] > 0) & wanted
    assert torch.equal(found[:3][both], found[3:][both])
    assert torch.equal(_filtered(scores, [row, row, row]), found[:3])


def test_filters_leave_the_logits_alone() -> None:
    logits = random_logits(2, VOCABULARY)
    before = logits.clone()
    sample(logits, [at(3, Sampling(top_p=0.5, min_p=0.1)), at(3, Sampling(top_k=9))])
    assert torch.equal(logits, before)


def test_tokens_come_from_the_tempered_and_filtered_distribution() -> None:
    logits = torch.tensor([3.0, 2.5, 2.0, 1.0, 0.5]).expand(4000, 5)
    row = Sampling(temperature=2.0, top_k=3, seed=5)
    counts = torch.tensor(sample(logits, [at(position, row) for position in range(4000)])).bincount(minlength=5).double()
    wanted = torch.tensor([1.5, 1.25, 1.0]).softmax(-1).double() * 4000
    assert counts[3:].sum() == 0
    assert ((counts[:3] - wanted) ** 2 / wanted).sum() < 13.8  # 0.1% of fair samplers exceed it (2 degrees of freedom)


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.rand(3 * BLOCK + 7, generator=torch.Generator().manual_seed(2)).double() ** 3
    probabilities[::5] = 0.0
    probabilities /= probabilities.sum()
    draws = 20000
    uniforms = torch.tensor([[_uniform(9, position)] for position in range(draws)], dtype=torch.float64)
    tokens = _invert(probabilities.float().expand(draws, -1), uniforms)
    counts = tokens.bincount(minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0
    likely = probabilities * draws > 5
    chi_square = ((counts - draws * probabilities) ** 2 / (draws * probabilities))[likely].sum()
    freedom = int(likely.sum())
    assert chi_square < freedom + 3.5 * (2 * freedom) ** 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 1, 2, 1000]), min_size=1, max_size=3 * BLOCK + 5).filter(any))
def test_the_search_finds_the_token_a_running_sum_would(weights: list[int]) -> None:
    """At the middle of each token's share, and at both ends of the whole."""
    total, below, wanted, uniforms = sum(weights), 0, [], []
    for token, weight in enumerate(weights):
        if weight:
            wanted.append(token)
            uniforms.append([(below + weight / 2) / total])
        below += weight
    wanted += [wanted[0], wanted[-1]]
    uniforms += [[0.0], [ALMOST_ONE]]
    rows = torch.tensor(weights, dtype=torch.float32).expand(len(wanted), -1)
    assert _invert(rows, torch.tensor(uniforms, dtype=torch.float64)).tolist() == wanted


def test_small_shares_are_not_lost_beside_large_ones() -> None:
    weights = torch.zeros(2, 3 * BLOCK)
    weights[0, [5, BLOCK + 3, 2 * BLOCK]] = torch.tensor([2.0**30, 1.0, 2.0**30])
    weights[1, [5, 6, 7]] = torch.tensor([2.0**30, 1.0, 2.0**30])
    assert _invert(weights, torch.tensor([[0.5], [0.5]], dtype=torch.float64)).tolist() == [BLOCK + 3, 6]


def test_the_search_ends_at_the_last_token_that_has_a_share() -> None:
    weights = torch.zeros(2, 3 * BLOCK)
    weights[0, [2, BLOCK + 3]] = 0.1
    assert _invert(weights, torch.ones(2, 1, dtype=torch.float64)).tolist() == [BLOCK + 3, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(2, 50))
def test_at_the_borders_of_shares_nothing_empty_is_found(seed: int, size: int) -> None:
    """Uniform numbers within a few units in the last place of where the running sum passes from one weight to the next."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(size, generator=generator, dtype=torch.float64) * (torch.rand(size, generator=generator) < 0.5)
    weights[seed % size] = 0.1
    sums = weights.cumsum(-1)
    ulps = torch.arange(-4, 5) * 2.0**-54
    uniforms = (sums / sums[-1] + ulps[:, None]).flatten().clamp(0.0, ALMOST_ONE)[:, None]
    index, rest = _search(weights.expand(len(uniforms), -1), uniforms)
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


def crowd(rows: int) -> list[Draw]:
    """Rows of many kinds, each with its own seed, tokens and filters."""
    kinds = [
        Sampling(),
        Sampling(temperature=0.8, top_p=0.95),
        Sampling(temperature=1.7, top_k=5),
        GREEDY,
        Sampling(min_p=0.02, repetition_penalty=1.3),
        Sampling(top_k=1500, top_p=0.9),
        Sampling(temperature=3.0, frequency_penalty=0.5, presence_penalty=0.2),
        Sampling(bad_words=((4,), (5, 6)), min_tokens=99, logit_bias=((7, 3.0),)),
        Sampling(temperature=5.0, top_p=0.99),
    ]
    return [draw(replace(kinds[i % len(kinds)], seed=i * 7919 - 50), tuple(range(i % 11)), i % 3, (i, 9)) for i in range(rows)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_draws_the_same_token_in_every_batch(dtype: torch.dtype) -> None:
    rows = 45
    logits, draws = random_logits(rows, VOCABULARY, 3).to(dtype), crowd(rows)
    together = sample(logits, draws)
    assert together == [sample(logits[i : i + 1], draws[i : i + 1])[0] for i in range(rows)]
    for size in (2, 7, rows):
        chosen = random.Random(size).sample(range(rows), size)
        assert sample(logits[chosen], [draws[i] for i in chosen]) == [together[i] for i in chosen]


def test_filtered_probabilities_are_the_same_bits_in_every_batch() -> None:
    scores, rows = random_logits(45, VOCABULARY, 3), [asked.sampling for asked in crowd(45)]
    together = _filtered(scores, rows)
    for i in range(45):
        assert torch.equal(_filtered(scores[i : i + 1], rows[i : i + 1]), together[i : i + 1])


def test_position_and_seed_decide() -> None:
    flat = torch.zeros(1, VOCABULARY)
    first = sample(flat, [at(3, Sampling(seed=1))])
    assert sample(flat, [draw(Sampling(seed=1), (7, 8, 9), 1)]) == first  # which tokens and how many of the prompt: no matter
    assert sample(flat, [at(4, Sampling(seed=1))]) != first
    assert sample(flat, [at(3, Sampling(seed=2))]) != first


def test_seeds_of_any_sign_and_size_are_different_seeds() -> None:
    flat = torch.zeros(1, VOCABULARY)
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 2**63 + 5]
    assert len({sample(flat, [at(0, Sampling(seed=seed))])[0] for seed in seeds}) >= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_are_log_softmax_and_topk(dtype: torch.dtype) -> None:
    logits = random_logits(4, VOCABULARY).to(dtype)
    tokens, tops = [3, 1, 4, 2000], {0: 5, 2: 0, 3: 20}
    found = logprobs(logits, tokens, [tops.get(row) for row in range(4)])
    assert found[1] is None
    golden = logits.float().log_softmax(-1)
    for row, top in tops.items():
        entry, best = found[row], golden[row].topk(top)
        assert entry is not None
        assert (entry.token, entry.logprob) == (tokens[row], golden[row, tokens[row]].item())
        assert [value for _, value in entry.top] == best.values.tolist()
        assert [golden[row, token].item() for token, _ in entry.top] == best.values.tolist()
        assert len({token for token, _ in entry.top}) == top


def test_more_logprobs_than_there_are_tokens_are_all_tokens() -> None:
    [found] = logprobs(random_logits(1, SMALL), [2], [20])
    assert found is not None
    assert sorted(token for token, _ in found.top) == list(range(SMALL))


def test_rows_without_logprobs_are_not_softmaxed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    whole = torch.Tensor.log_softmax

    def watched(self: torch.Tensor, dim: int) -> torch.Tensor:
        shapes.append(tuple(self.shape))
        return whole(self, dim)

    monkeypatch.setattr(torch.Tensor, "log_softmax", watched)
    assert logprobs(random_logits(3, SMALL), [0, 0, 0], [None] * 3) == [None] * 3
    assert shapes == []
    logprobs(random_logits(3, SMALL), [0, 0, 0], [None, 0, None])
    assert shapes == [(1, SMALL)]
