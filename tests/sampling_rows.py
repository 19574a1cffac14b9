"""Rows for tests of the sampler, and random logits for them."""

import torch

from app.engine.request import SamplingParams
from app.engine.sampler import SamplerRow

VOCABULARY = 2003  # neither a multiple of a block nor of a vector
GREEDY = SamplingParams(temperature=0.0)
SMALL = 12


def row_of(params: SamplingParams = GREEDY, tokens: tuple[int, ...] = (), prompt: int = 0, end_tokens: tuple[int, ...] = ()) -> SamplerRow:
    return SamplerRow(params, tokens, prompt, frozenset(end_tokens))


def random_logits(rows: int, vocab: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
