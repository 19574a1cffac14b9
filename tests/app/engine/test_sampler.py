"""The sampler against transformers' own processors, against exact probabilities, and against itself in other batches."""

import pytest
import torch
from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from app.engine.request import Sampling
from app.engine.sampler import _filtered, gumbel, sample

VOCABULARY = 2000


def test_greedy_rows_take_the_likeliest_token() -> None:
    logits = torch.randn(5, VOCABULARY)
    assert sample(logits, [Sampling(temperature=0.0)] * 5, [0] * 5) == logits.argmax(-1).tolist()


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
        Sampling(min_p=0.05),
        Sampling(temperature=1.5, top_k=100, top_p=0.8, min_p=0.1),
    ],
)
def test_filters_keep_what_transformers_keeps(row: Sampling, spread: float) -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(1)) * spread
    golden = LogitsProcessorList([TemperatureLogitsWarper(row.temperature)])
    if row.top_k:
        golden.append(TopKLogitsWarper(row.top_k))
    if row.top_p < 1:
        golden.append(TopPLogitsWarper(row.top_p))
    if row.min_p:
        golden.append(MinPLogitsWarper(row.min_p))
    wanted = golden(torch.zeros(3, 1, dtype=torch.long), logits.clone())
    plain = Sampling(temperature=2.0)
    found = _filtered(torch.cat([logits, logits]), [row, row, row, plain, plain, plain])
    differing = (found[:3].isfinite() != wanted.isfinite()).sum()
    assert differing <= 1  # a sum of float32 probabilities may land on the other side of top_p
    both = found[:3].isfinite() & wanted.isfinite()
    assert torch.allclose(found[:3][both], wanted[both])
    assert torch.equal(found[3:], logits / 2.0)


def test_a_temperature_too_small_for_float32_is_greedy() -> None:
    logits = torch.randn(2, VOCABULARY)
    assert sample(logits, [Sampling(temperature=1e-320), Sampling(temperature=1e-6)], [0, 0]) == logits.argmax(-1).tolist()


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.1, 0.025])
    draws = 8000
    tokens = sample(probabilities.log().expand(draws, 5), [Sampling(seed=9)] * draws, list(range(draws)))
    counts = torch.tensor(tokens).bincount(minlength=5).double()
    chi_square = ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum()
    assert chi_square < 18.5  # 0.1% of fair samplers exceed it (4 degrees of freedom)


def test_noise_is_standard_gumbel_and_differs_by_seed_and_position() -> None:
    noise = gumbel([1, 2, 1 << 40], 100_000, torch.device("cpu"))
    assert torch.isfinite(noise).all()
    assert noise.mean(-1).tolist() == pytest.approx([0.5772] * 3, abs=0.02)
    assert noise.var(-1).tolist() == pytest.approx([1.6449] * 3, abs=0.05)
    assert abs(torch.corrcoef(noise)[0, 1]) < 0.02
    assert abs(torch.corrcoef(noise)[0, 2]) < 0.02


def test_a_row_draws_the_same_token_in_every_batch() -> None:
    logits = torch.randn(16, VOCABULARY, generator=torch.Generator().manual_seed(3))
    rows = [Sampling(temperature=1 + i / 8, top_k=(0, 5)[i % 2], top_p=(1.0, 0.7)[i % 3 == 0], seed=i - 8) for i in range(16)]
    together = sample(logits, rows, list(range(16)))
    alone = [sample(logits[i : i + 1], rows[i : i + 1], [i])[0] for i in range(16)]
    mixed = sample(torch.cat([logits, logits]), [*rows, *[Sampling(temperature=0.0)] * 16], [*range(16), *range(16)])
    assert together == alone == mixed[:16]
    assert mixed[16:] == logits.argmax(-1).tolist()


def test_seeds_of_any_sign_and_size_are_different_seeds() -> None:
    flat = torch.zeros(1, VOCABULARY)
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 2**63 + 5]
    assert len({sample(flat, [Sampling(seed=seed)], [0])[0] for seed in seeds}) >= 5
