"""Attention with capped scores and sinks: as by the definition, the same in parts, and refused where it cannot run."""

from pathlib import Path

import pytest
import torch
from gguf_families import FAMILIES, VOCABULARY, create_model, write_family

from app.engine import scores
from app.engine.scores import Scores, attend
from app.errors import SetupError
from app.models.loading import create_engine
from app.settings import ModelSettings
from models.synthetic import Shape, save

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 8, 20


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(TOKENS, HEADS, DIM, generator=generator)
    keys, values = (torch.randn(KV_HEADS, TOKENS, DIM, generator=generator) for _ in range(2))
    return query, keys, values


def by_definition(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, how: Scores) -> torch.Tensor:
    out = torch.empty(TOKENS, HEADS, DIM)
    for row in range(TOKENS):
        for head in range(HEADS):
            begin = 0 if how.window is None else max(0, row - how.window + 1)
            k, v = (part[head // (HEADS // KV_HEADS), begin : row + 1] for part in (keys, values))
            score = k @ query[row, head] * (DIM**-0.5 if how.scale is None else how.scale)
            score = score if how.cap is None else how.cap * torch.tanh(score / how.cap)
            weights = score.exp()
            total = weights.sum() + (0 if how.sinks is None else how.sinks[head].exp())
            out[row, head] = weights @ v / total
    return out


@pytest.mark.parametrize(
    "how",
    [
        Scores(None, None, None, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        Scores(0.3, 6, 2.0, None),
        Scores(0.3, 1, 0.5, torch.tensor([1.0, 1.0, -3.0, 0.0])),
    ],
)
def test_each_row_is_as_by_the_definition_alone_and_in_parts(monkeypatch: pytest.MonkeyPatch, how: Scores) -> None:
    query, keys, values = rows()
    expected = by_definition(query, keys, values, how)
    torch.testing.assert_close(attend(query, keys, values, 0, how), expected)
    torch.testing.assert_close(attend(query[13:], keys, values, 13, how), expected[13:])
    torch.testing.assert_close(attend(query[7:8], keys[:, :8], values[:, :8], 7, how), expected[7:8])
    monkeypatch.setattr(scores, "SCORES", HEADS * TOKENS * 3)  # three rows at once
    torch.testing.assert_close(attend(query, keys, values, 0, how), expected)


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss"])
def test_a_cache_in_bytes_is_refused(tmp_path: Path, name: str) -> None:
    tokenizer = save(Shape(hidden=64, layers=1, heads=2, kv_heads=2, ff=64, vocabulary=VOCABULARY, context=64), tmp_path / "tokenizer", 0)
    path = write_family(FAMILIES[name], create_model(FAMILIES[name]), tokenizer, tmp_path / "model.gguf")
    with pytest.raises(SetupError, match=r"has soft-capped scores or sinks, which run on a CPU only, with model\.cache_dtype: auto"):
        create_engine(ModelSettings(path=str(path), slots=2, cache_dtype="int8"))
