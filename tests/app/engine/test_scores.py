"""Attention with capped scores and sinks: as by the definition, the same in parts, and in every way that the engine has to compute it."""

import random
from typing import Any

import pytest
import torch
from driving import answers_of, drain
from flash import use_flash
from gguf_families import FAMILIES, VOCABULARY, create_model
from tinymodels import letters
from transformers import PreTrainedModel

from app.engine import attention, scores
from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine, EngineLimits
from app.engine.layout import Span, layout_of
from app.engine.request import Generate, SamplingParams
from app.engine.scores import Scores, attend
from app.engine.varlen import PAGE_TOKENS

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 8, 20
CONTEXT, NEW = 320, 6
CHANGED = {"gemma2": {"cap"}, "gpt-oss": {"sinks"}}


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


def create(name: str, page_tokens: int = 64, **limits: Any) -> tuple[PreTrainedModel, Engine]:
    """A model, and another one with the same weights in an engine."""
    models = [create_model(FAMILIES[name]) for _ in range(2)]
    for model in models:
        model.config.max_position_embeddings = CONTEXT
    flat = create_flat_model(models[1], CacheLimits(3, CONTEXT, page_tokens=page_tokens, **limits))
    return models[0], Engine(flat, letters, frozenset(), EngineLimits(3, CONTEXT, 96))


def check(model: PreTrainedModel, engine: Engine) -> None:
    """The engine answers as `generate` does, alone and beside others, and goes on with what is cached."""
    rng = random.Random(3)
    first = tuple(rng.randrange(VOCABULARY) for _ in range(CONTEXT - 40))
    prompts = [first, first[:11], first[:90] + (7,), first[5:130]]
    events = []
    for index, prompt in enumerate(prompts):
        engine.submit(Generate(str(index), prompt, NEW, SamplingParams(temperature=0.0)))
        events += engine.step()
    events += drain(engine)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    rows = [torch.tensor([prompt]) for prompt in prompts]
    expected = [model.generate(row, attention_mask=torch.ones_like(row), **options)[0, row.shape[1] :].tolist() for row in rows]
    assert answers_of(events) == {str(index): letters(tokens) for index, tokens in enumerate(expected)}


@pytest.mark.parametrize("name", CHANGED)
def test_answers_are_those_of_generate(name: str) -> None:
    model, engine = create(name)
    check(model, engine)
    assert engine.performer.attention.changes == CHANGED[name] == engine.performer.proof.changes


@pytest.mark.parametrize("name", CHANGED)
def test_answers_are_the_same_without_the_compiled_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "kernel", lambda: None)
    monkeypatch.setattr(scores, "KEY_VALUES", 1)  # each sequence by itself
    check(*create(name))


@pytest.mark.parametrize("has_page_table", [True, False], ids=["pages by a table", "without one"])
def test_sinks_beside_torchs_flash_kernel(has_page_table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use_flash(monkeypatch, has_page_table)
    model, engine = create("gpt-oss", PAGE_TOKENS)
    assert engine.performer.attention.is_flash
    check(model, engine)


@pytest.mark.parametrize("name", CHANGED)
def test_a_cache_in_bytes_is_computed(name: str) -> None:
    model, engine = create(name, dtype="int8")
    assert engine.performer.attention.slots.dtype == torch.int8
    prompt = list(range(40))
    span = Span(0, len(prompt), 0, range(1))
    hidden = engine.performer.forward(prompt, prompt, layout_of([], [span], 64, torch.device("cpu")))
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0]
    found = engine.performer.head(hidden)
    assert 1e-5 < (found - expected).norm() / expected.norm() < 2e-2
