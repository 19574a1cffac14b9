"""The statistics against slow loops over the whole vocabulary, and chunked against unchunked."""

import math

import pytest
import torch

from app.engine.events import concatenate_columns, slice_columns
from app.scoring import statistics
from app.scoring.statistics import token_statistics


def identity(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def test_chunks_do_not_change_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(600, 50), torch.randint(50, (600,))
    whole = token_statistics(logits, targets, identity, (logits.flip(0), identity))
    monkeypatch.setattr(statistics, "CHUNK_ROWS", 7)
    parts = token_statistics(logits, targets, identity, (logits.flip(0), identity))
    assert len(parts.logprob) == 600
    assert parts.rank == whole.rank
    for name in ("logprob", "mean", "variance", "cross_entropy", "observed"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [40, 2500, 1024])
@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "torch"])
def test_each_column_is_its_definition(dtype: torch.dtype, vocabulary: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(statistics, "kernel_for", lambda _: None)
    logits, observer_logits = (torch.randn(5, vocabulary) * 3).to(dtype), torch.randn(5, vocabulary + 3).to(dtype)[:, :vocabulary]
    targets = torch.tensor([0, 3, vocabulary - 1, 7, 7])
    result = token_statistics(logits, targets, identity, (observer_logits, identity))
    p, q = logits.double().softmax(-1), observer_logits.double().softmax(-1)
    for row, target in enumerate(targets):
        logs = p[row].log()
        assert result.logprob[row] == pytest.approx(float(logs[target]), abs=1e-5)
        assert result.rank[row] == 1 + sum(float(other) > float(logs[target]) for other in logs)
        mean = sum(float(probability * log) for probability, log in zip(p[row], logs, strict=True))
        assert result.mean[row] == pytest.approx(mean, abs=1e-5)
        variance = sum(float(probability) * (float(log) - mean) ** 2 for probability, log in zip(p[row], logs, strict=True))
        assert result.variance[row] == pytest.approx(variance, abs=1e-4)
        assert result.cross_entropy[row] == pytest.approx(-float((q[row] * logs).sum()), abs=1e-5)
        assert result.observed[row] == pytest.approx(float(q[row, target].log()), abs=1e-5)


def test_without_an_observer_the_rest_is_the_same() -> None:
    logits, targets = torch.randn(9, 300).bfloat16(), torch.randint(300, (9,))
    alone, paired = token_statistics(logits, targets, identity), token_statistics(logits, targets, identity, (logits.flip(0), identity))
    assert (alone.logprob, alone.rank, alone.mean, alone.variance) == (paired.logprob, paired.rank, paired.mean, paired.variance)
    assert (alone.cross_entropy, alone.observed) == ((), ())


def test_nan_stays_nan() -> None:
    """A broken model must not look like a certain one."""
    logits = torch.randn(3, 100).bfloat16()
    logits[1, 60] = torch.nan
    result = token_statistics(logits, torch.tensor([1, 2, 3]), identity)
    assert [math.isnan(value) for value in result.logprob] == [math.isnan(value) for value in result.mean] == [False, True, False]


def test_an_observer_whose_vocabulary_is_padded_further_is_cut_to_the_performers() -> None:
    logits, observer_logits, targets = torch.randn(4, 30), torch.randn(4, 34), torch.tensor([1, 2, 3, 4])
    result = token_statistics(logits, targets, identity, (observer_logits, identity))
    assert result == token_statistics(logits, targets, identity, (observer_logits[:, :30], identity))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low", [-1e9, -torch.finfo(torch.bfloat16).max])
def test_a_certain_model_gives_no_nan(dtype: torch.dtype, low: float) -> None:
    logits = torch.full((2, 10), low, dtype=dtype)
    logits[:, 3] = 0.0
    result = token_statistics(logits, torch.tensor([3, 4]), identity)
    assert result.logprob[0] == 0.0
    assert result.rank == (1, 2)
    assert result.mean == (0.0, 0.0)
    assert result.variance == (0.0, 0.0)
    assert (result.cross_entropy, result.observed) == ((), ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_likeliest_tokens_of_each_row(dtype: torch.dtype) -> None:
    logits, targets = (torch.randn(70, 300) * 3).to(dtype), torch.randint(300, (70,))
    result = token_statistics(logits, targets, identity, top=4)
    log_p = logits.double().log_softmax(-1)
    for row, found in enumerate(result.top):
        order = sorted(range(300), key=lambda token: (-float(log_p[row, token]), token))[:4]
        assert [token for token, _ in found] == order
        assert [value for _, value in found] == pytest.approx([float(log_p[row, token]) for token in order], abs=1e-5)
    plain = token_statistics(logits, targets, identity)
    assert plain.top == () and plain.logprob == result.logprob
    assert concatenate_columns([result, result]).top == result.top * 2 and slice_columns(result, 1, 3).top == result.top[1:3]


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    result = token_statistics(torch.zeros(2, 3), torch.tensor([0, 1]), identity, top=10)
    assert [[token for token, _ in found] for found in result.top] == [[0, 1, 2], [0, 1, 2]]
