"""Rows with adapters beside rows without: each is computed as if its model were merged, and alone."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from driving import answers_of, drain
from tinymodels import CONTEXT, VOCABULARY, letters, tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

from app.engine.budget import StepBudget
from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine, EngineLimits
from app.engine.events import Embedded, Failed, Scored
from app.engine.facts import AdapterFacts
from app.engine.flat import FlatModel
from app.engine.lora import LoadedAdapter, Matrices, shapes_of
from app.engine.request import BeamSearchParams, ContrastiveSearchParams, Embed, Generate, SamplingParams, Score
from app.errors import SetupError
from app.scoring.statistics import token_statistics
from app.scoring.windows import windows

ARCHITECTURES = ["Llama", "Qwen3", "GPT2", "GPTNeoX", "Lfm2", "Qwen3.5"]
TARGETS: dict[str, tuple[str, ...] | None] = {"every": None, "few": ("q_proj", "v_proj", "gate_proj", "c_attn", "query_key_value")}
GREEDY = SamplingParams(temperature=0.0)
SLOTS = 4


def matrices(name: str, adapter: str) -> dict[str, Matrices]:
    """Random matrices of one of TARGETS, the scaling in B."""
    model = tiny(name)
    shapes, generator = shapes_of(model, model.get_output_embeddings()), torch.Generator().manual_seed(len(adapter))
    targets = TARGETS[adapter]
    return {
        layer: (torch.randn(3, inputs, generator=generator) / inputs**0.5, torch.randn(outputs, 3, generator=generator))
        for layer, (outputs, inputs) in shapes.layers.items()
        if layer != shapes.head and (targets is None or layer.split(".")[-1] in targets)
    }


@cache
def merged(name: str, adapter: str | None) -> Any:
    model = tiny(name)
    for layer, (down, up) in matrices(name, adapter).items() if adapter else ():
        module, change = model.get_submodule(layer), up @ down
        module.weight.data += change.T if isinstance(module, Conv1D) else change
    return model


@cache
def greedy(name: str, adapter: str | None, prompt: tuple[int, ...], count: int) -> str:
    row = torch.tensor([prompt])
    model = merged(name, adapter)
    out = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=count, do_sample=False, eos_token_id=None)
    return letters(out[0, len(prompt) :].tolist())


def load(flat: FlatModel, name: str, adapter: str) -> LoadedAdapter:
    return LoadedAdapter(AdapterFacts(adapter, "", "", ""), flat.adapters.prepare(matrices(name, adapter)))


@cache
def flat_model(name: str) -> FlatModel:
    flat = create_flat_model(tiny(name), CacheLimits(SLOTS, CONTEXT))
    for adapter in TARGETS:
        flat.add_adapter(adapter, load(flat, name, adapter).changes)
    return flat


def create_engine(name: str = "Llama", step_tokens: int = 16) -> Engine:
    return Engine(flat_model(name), letters, frozenset(), EngineLimits(SLOTS, CONTEXT, step_tokens))


def prompts(seed: int, count: int) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_answers_of_a_mixed_batch_are_those_of_the_merged_models(name: str) -> None:
    engine = create_engine(name)
    asked = list(zip(prompts(1, 9), [None, "every", "few"] * 3, strict=True))
    for index, (prompt, adapter) in enumerate(asked):
        engine.submit(Generate(str(index), prompt, 8, GREEDY, adapter=adapter))
    assert answers_of(drain(engine)) == {str(index): greedy(name, adapter, prompt, 8) for index, (prompt, adapter) in enumerate(asked)}
    different = {adapter: greedy(name, adapter, asked[0][0], 8) for adapter in (None, *TARGETS)}
    assert len(set(different.values())) == 3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_states_of_rows_are_those_of_their_models_and_the_bases_bit_for_bit(name: str) -> None:
    """The rows without an adapter are the same numbers as in a step of that size where no row has one."""
    flat, ids = flat_model(name), [row * 7 % VOCABULARY for row in range(24)]
    plain = flat.forward_uncached(ids)
    assert torch.equal(flat.forward_uncached(ids, {}), plain)
    for adapter in TARGETS:
        with torch.inference_mode():
            expected = merged(name, adapter)(torch.tensor([ids])).logits[0]
        logits = flat.head(flat.forward_uncached(ids, {adapter: range(24)}))
        assert float((logits - expected).norm() / expected.norm()) < 1e-4
    assert torch.equal(flat.forward_uncached(ids, {"every": range(12, 24)})[:12], plain[:12])
    assert not torch.equal(flat.forward_uncached(ids, {"every": range(12, 24)})[12:], plain[12:])


@pytest.mark.parametrize("adapter", [None, "every", "few"])
def test_a_prefix_is_reused_with_the_same_adapter_only(adapter: str | None) -> None:
    engine, prompt = create_engine(), tuple(range(40, 80))
    for other in (None, *TARGETS):
        engine.submit(Generate(f"first-{other}", prompt, 2, GREEDY, adapter=other))
        drain(engine)
    engine.submit(Generate("second", (*prompt, 5, 6), 6, GREEDY, adapter=adapter))
    assert answers_of(drain(engine))["second"] == greedy("Llama", adapter, (*prompt, 5, 6), 6)
    assert engine.scheduler.decisions[-1].reused_tokens == 40
    fresh = create_engine()
    fresh.submit(Generate("first", prompt, 2, GREEDY, adapter="few" if adapter == "every" else "every"))
    drain(fresh)
    fresh.submit(Generate("second", (*prompt, 5, 6), 6, GREEDY, adapter=adapter))
    drain(fresh)
    assert fresh.scheduler.decisions[-1].reused_tokens == 0


def test_a_pending_prefix_of_another_adapter_is_not_waited_for() -> None:
    engine, prompt = create_engine(step_tokens=16), tuple(range(40, 100))
    asked = {"base": None, "one": "every", "two": "few", "again": "every"}
    for id, adapter in asked.items():
        engine.submit(Generate(id, prompt, 4, GREEDY, adapter=adapter))
    assert answers_of(drain(engine)) == {id: greedy("Llama", adapter, prompt, 4) for id, adapter in asked.items()}
    assert [decision.reused_tokens for decision in engine.scheduler.decisions] == [0, 0, 0, 59]


@pytest.mark.parametrize("search", [BeamSearchParams(3), ContrastiveSearchParams(3, 0.5)])
def test_a_search_runs_with_an_adapter(search: BeamSearchParams | ContrastiveSearchParams) -> None:
    """As on a model into which the adapter is merged."""
    expected = Engine(create_flat_model(_copied(), CacheLimits(SLOTS, CONTEXT)), letters, frozenset(), EngineLimits(SLOTS, CONTEXT, 16))
    expected.submit(Generate("a", (7, 8, 9), 8, search=search))
    engine = create_engine()
    engine.submit(Generate("a", (7, 8, 9), 8, search=search, adapter="every"))
    engine.submit(Generate("beside", (7, 8, 9), 8, GREEDY))
    assert answers_of(drain(engine))["a"] == answers_of(drain(expected))["a"]


def _copied() -> Any:
    model = tiny("Llama")
    model.load_state_dict(merged("Llama", "every").state_dict())
    return model


@pytest.mark.parametrize("tokens", [10, 100, 300])
def test_a_text_is_scored_by_its_adapter_and_observed_by_the_base(tokens: int) -> None:
    """In one piece, in several, and in several windows, beside an answer and another text."""
    engine, rng = create_engine(step_tokens=64 if tokens == 10 else 16), random.Random(tokens)
    text = tuple(rng.randrange(VOCABULARY) for _ in range(tokens))
    cut = windows(tokens, CONTEXT)
    engine.submit(Generate("beside", text[:20], 12, GREEDY, adapter="few"))
    engine.submit(Score("base", text, cut))
    engine.submit(Score("alone", text, cut, adapter="every", top=2))
    engine.submit(Score("pair", text, cut, observe=True, adapter="every", top=2))
    scored = {event.id: event.columns for event in drain(engine) if isinstance(event, Scored)}
    expected, base = ([_statistics(text, adapter, observed) for observed in (False, True)] for adapter in ("every", None))
    for column in ("logprob", "mean", "variance", "cross_entropy", "observed"):
        assert getattr(scored["pair"], column) == pytest.approx(expected[1][column], abs=2e-3), column
        assert getattr(scored["alone"], column) == pytest.approx(expected[0][column], abs=2e-3), column
    assert scored["base"].logprob == pytest.approx(base[0]["logprob"], abs=2e-3)
    assert [len(best) for best in scored["pair"].top] == [2] * (tokens - 1) and scored["base"].logprob != scored["alone"].logprob
    assert scored["pair"].observed == pytest.approx(scored["base"].logprob, abs=1e-4)


def test_states_of_the_base_are_kept_for_few_texts_at_a_time() -> None:
    """Only those that were read in the latest step: each is read by its adapter before others have their turn."""
    engine, text, kept = create_engine(step_tokens=20), tuple(range(30, 40)), []
    for index in range(8):
        engine.submit(Score(str(index), text, windows(10, CONTEXT), observe=True, adapter="every"))
    while not engine.idle:
        engine.step()
        kept.append(sum(bool(each.observed) for each in engine.scheduler.texts.texts))
    assert max(kept) == 2


@torch.inference_mode()
def _statistics(text: Sequence[int], adapter: str | None, observed: bool) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for window in windows(len(text), CONTEXT):
        row = torch.tensor([text[window.start : window.end]])
        performer, base = merged("Llama", adapter), merged("Llama", None)
        rows = slice(window.scored_from - window.start - 1, window.end - window.start - 1)
        states, base_states = (model.model(row).last_hidden_state[0, rows] for model in (performer, base))
        targets = row[0, window.scored_from - window.start :]
        columns = token_statistics(states, targets, performer.lm_head, (base_states, base.lm_head) if observed else None)
        for name in ("logprob", "mean", "variance", "cross_entropy", "observed"):
            found.setdefault(name, []).extend(getattr(columns, name))
    return found


def test_a_text_is_embedded_by_its_adapter() -> None:
    engine, text = create_engine(), tuple(range(30, 60))
    for adapter in (None, "every"):
        engine.submit(Embed(str(adapter), text, "mean", adapter=adapter))
    vectors = {event.id: event.vector for event in drain(engine) if isinstance(event, Embedded)}
    for adapter in (None, "every"):
        with torch.inference_mode():
            states = merged("Llama", adapter).model(torch.tensor([text])).last_hidden_state[0]
        expected = nn.functional.normalize(states.mean(0), dim=0)
        assert torch.frombuffer(bytearray(vectors[str(adapter)]), dtype=torch.float32).tolist() == pytest.approx(
            expected.tolist(), abs=1e-4
        )


def test_adapters_come_and_go_while_others_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepBudget, "record", lambda *_: None)  # the text need not wait, however long a step took
    flat = create_flat_model(tiny("Llama"), CacheLimits(SLOTS, CONTEXT))
    engine = Engine(flat, letters, frozenset(), EngineLimits(SLOTS, CONTEXT, 16))
    engine.submit(Generate("early", (1, 2), 4, adapter="every"))
    (early,) = drain(engine)
    assert isinstance(early, Failed) and "no adapter 'every'" in early.error.message and early.error.param == "model"
    prompt = tuple(range(30, 60))
    engine.submit(Generate("base", prompt, 20, GREEDY))
    events = engine.step()
    engine.add_adapter(load(flat, "Llama", "every"))
    with pytest.raises(SetupError, match="is there already"):
        engine.add_adapter(load(flat, "Llama", "every"))
    engine.submit(Generate("adapted", prompt, 8, GREEDY, adapter="every"))
    engine.submit(Generate("cut", prompt, 60, GREEDY, adapter="every"))
    engine.submit(Score("text", prompt, windows(30, CONTEXT), adapter="every", observe=True))
    while "adapted" not in {event.id for event in events if getattr(event, "finish", None)}:
        events += engine.step()
    failed = engine.remove_adapter("every")
    assert [(event.id, event.error.code) for event in failed if isinstance(event, Failed)] == [("cut", "adapter_unloaded")]
    events += drain(engine)
    answers = answers_of(events)
    assert answers["base"] == greedy("Llama", None, prompt, 20) and answers["adapted"] == greedy("Llama", "every", prompt, 8)
    assert "every" not in flat.adapters.names and not any(layer.changes for layer in flat.adapters.layers)
    # Another one of the same name must not find the keys and values of the first.
    engine.add_adapter(LoadedAdapter(AdapterFacts("every", "", "", ""), load(flat, "Llama", "few").changes))
    engine.submit(Generate("renamed", prompt, 8, GREEDY, adapter="every"))
    assert answers_of(drain(engine))["renamed"] == greedy("Llama", "few", prompt, 8)


def test_an_adapter_that_overflows_is_not_added() -> None:
    flat = create_flat_model(tiny("Llama"), CacheLimits(SLOTS, CONTEXT))
    huge = {layer: (down * 1e30, up * 1e30) for layer, (down, up) in matrices("Llama", "every").items()}
    with pytest.raises(SetupError, match="infinite values"):
        flat.add_adapter("every", flat.adapters.prepare(huge))
    assert not flat.adapters.names


def test_a_layer_that_is_not_run_once_a_row_is_refused() -> None:
    """As an expert's is, which sees the tokens that are sent to it."""
    model = tiny("GPT2")
    flat = create_flat_model(model, CacheLimits(SLOTS, CONTEXT))
    flat.add_adapter("fine", load(flat, "GPT2", "every").changes)
    block = model.transformer.h[0].mlp
    block.forward = lambda x: block.c_proj(torch.cat([block.c_fc(x[:, :5]), block.c_fc(x[:, 5:])], 1))
    with pytest.raises(SetupError, match="transformer.h.0.mlp.c_fc, which the model does not run once on every token"):
        flat.add_adapter("every", load(flat, "GPT2", "every").changes)
