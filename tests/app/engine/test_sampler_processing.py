"""Penalties, biases, banned words and `min_tokens` against transformers' processors and a plain loop."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_rows import GREEDY, SMALL, VOCABULARY, random_logits, row_of
from transformers import MinNewTokensLengthLogitsProcessor, NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor

from app.engine.request import SamplingParams
from app.engine.sampler import SamplerRow, process_logits, sample

TOKENS = st.lists(st.integers(0, SMALL - 1), max_size=8)
ANY_TOKEN = st.sampled_from([*range(SMALL), -1, SMALL, SMALL + 100])  # some are outside the vocabulary


def test_where_no_row_needs_processing_the_logits_are_the_very_same_tensor() -> None:
    logits = random_logits(3, SMALL).bfloat16()
    plain = SamplingParams(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, seed=4, min_tokens=2)
    outside = SamplingParams(logit_bias=((SMALL, 5.0), (-1, 5.0)), bad_words=((SMALL,), (1, 2, 3)))
    rows = [row_of(plain, (1, 2, 3), 1, (5,)), row_of(outside, (2,)), row_of(SamplingParams(presence_penalty=1.0), (1, 2), 2)]
    assert process_logits(logits, rows) is logits


def test_processing_gives_float32_and_does_not_change_the_logits() -> None:
    for logits in (random_logits(2, SMALL), random_logits(2, SMALL).bfloat16()):
        before = logits.clone()
        scores = process_logits(logits, [row_of(), row_of(SamplingParams(logit_bias=((3, 1.0),)))])
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
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(tokens), logits)
    row = SamplingParams(repetition_penalty=penalty)
    actual = process_logits(logits, [row_of(row, prompt_and_answer, 2) for prompt_and_answer in tokens])
    assert torch.equal(actual, expected)
    mixed = process_logits(logits, [row_of(row, tokens[0], 2), row_of(GREEDY, tokens[1], 2), row_of(row, tokens[2], 2)])
    assert torch.equal(mixed, torch.stack([expected[0], logits[1], expected[2]]))


@settings(max_examples=60, deadline=None)
@given(TOKENS.filter(len), st.lists(st.lists(st.integers(0, SMALL - 1), min_size=1, max_size=3), min_size=1, max_size=8))
def test_bad_words_are_banned_as_by_transformers(tokens: list[int], words: list[list[int]]) -> None:
    logits = random_logits(1, SMALL)
    words.append([*tokens[-2:], 3])  # the latest tokens are its beginning
    expected = NoBadWordsLogitsProcessor(words)(torch.tensor([tokens]), logits)
    row = SamplingParams(bad_words=tuple(map(tuple, words)))
    assert torch.equal(process_logits(logits, [row_of(row, tuple(tokens), 1)]), expected)
    assert torch.equal(process_logits(logits, [SamplerRow(row, tokens, 1, frozenset())]), expected)


@pytest.mark.parametrize("answer", range(5))
def test_an_answer_does_not_end_before_min_tokens(answer: int) -> None:
    logits = random_logits(1, SMALL)
    tokens = (1, 2, 3, *[4] * answer)
    expected = MinNewTokensLengthLogitsProcessor(3, 3, [5, 7])(torch.tensor([tokens]), logits.clone())
    assert torch.equal(process_logits(logits, [row_of(SamplingParams(min_tokens=3), tokens, 3, (5, 7, SMALL))]), expected)
    assert expected.isfinite().all() == (answer >= 3)


def slow_process(logits: list[float], row: SamplerRow) -> list[float]:
    """The same for one row, one token after the other."""
    answer, params = list(row.tokens[row.prompt_tokens :]), row.params
    scores = []
    for token, score in enumerate(logits):
        for biased, bias in params.logit_bias:
            score += bias if biased == token else 0.0
        if token in row.tokens:
            score = score * params.repetition_penalty if score < 0 else score / params.repetition_penalty
        if token in answer:
            score -= params.presence_penalty
        score -= params.frequency_penalty * answer.count(token)
        for word in params.bad_words:
            completed = [*row.tokens, token]
            if completed[len(completed) - len(word) :] == list(word) and len(word) <= len(completed):
                score = -torch.inf
        if len(answer) < params.min_tokens and token in row.end_tokens:
            score = -torch.inf
        scores.append(score)
    return scores


PENALTY = st.sampled_from([0.0, 0.0, 0.5, -1.5])
SAMPLINGS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 1 << 40),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2, 0.5]),
    presence_penalty=PENALTY,
    frequency_penalty=PENALTY,
    logit_bias=st.dictionaries(ANY_TOKEN, st.floats(-100, 100), max_size=3).map(lambda biases: tuple(biases.items())),
    bad_words=st.lists(st.lists(ANY_TOKEN, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    min_tokens=st.integers(0, 5),
)
ROWS = st.builds(
    lambda params, prompt, answer, end_tokens: SamplerRow(params, prompt + answer, len(prompt), end_tokens),
    SAMPLINGS,
    TOKENS,
    TOKENS,
    st.frozensets(ANY_TOKEN, max_size=2),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=5), st.booleans())
def test_processing_a_batch_is_a_plain_loop_over_its_rows(rows: list[SamplerRow], normalised: bool) -> None:
    logits = random_logits(len(rows), SMALL) * 3
    logits = logits.log_softmax(-1) if normalised else logits
    expected = [slow_process(row_logits, row) for row_logits, row in zip(logits.tolist(), rows, strict=True)]
    scores = process_logits(logits, rows)
    assert torch.allclose(scores, torch.tensor(expected), rtol=1e-5, atol=1e-4)
    for token, row_scores in zip(sample(logits, rows), expected, strict=True):
        assert row_scores[token] > -torch.inf  # at most two end tokens and three bad words: never all twelve tokens are banned


@pytest.mark.parametrize("row", [GREEDY, SamplingParams(), SamplingParams(top_k=3), SamplingParams(top_p=0.5), SamplingParams(min_p=0.1)])
def test_a_row_whose_every_token_is_banned_gets_some_token(row: SamplingParams) -> None:
    banned = replace(row, bad_words=tuple((token,) for token in range(SMALL)))
    logits = random_logits(2, SMALL)
    tokens = sample(logits, [row_of(banned), row_of()])
    assert 0 <= tokens[0] < SMALL
    assert tokens[1] == logits[1].argmax()
