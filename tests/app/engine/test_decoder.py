"""The whole decoder in one call computes, bit for bit, what its parts compute one by one, whatever rows a step has."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoders import CONFIGS, CONTEXT, SHAPE, plain_model
from driving import kernel_or_skip
from tinymodels import tiny
from transformers import LlamaConfig, PreTrainedModel

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.flat import FlatModel
from app.engine.layout import Layout, Span, layout_of
from app.engine.linear import parts_of
from app.engine.pages import PAGE_TOKENS
from app.engine.rounding import quantize_layers
from app.errors import SetupError

PAGES = -(-CONTEXT // PAGE_TOKENS)  # of a context
TEXT = -1  # instead of a sequence: a text that is scored in several steps


def mixed_model(config: Any) -> PreTrainedModel:
    """In 4 bits but for the values, as llama.cpp's K_M files are."""
    model, values = plain_model(config), plain_model(config)
    quantize_layers(model, "int4")
    quantize_layers(values, "int8")
    for layer, other in zip(model.base_model.layers, values.base_model.layers, strict=True):
        layer.self_attn.v_proj = other.self_attn.v_proj
    return model


MIXED = "mixed"
OFTEN = ("llama", "llama with biases", "qwen2", "qwen3", "mistral", "mixtral", "qwen3_moe", "qwen3_moe, shares of all", "gpt_oss", "lfm2")
# What is the others' own lies between the products.
CASES = [(name, scheme, "auto") for name in CONFIGS for scheme in (("none", "int8", "int4") if name in OFTEN else ("int4",))]
CASES += [(name, "none", "int8") for name in ("llama", "qwen3", "mistral", "gpt_oss")]
CASES += [(name, MIXED, "auto") for name in ("llama with biases", "qwen3", "gpt_oss")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def flat(request: pytest.FixtureRequest) -> FlatModel:
    kernel_or_skip()
    name, scheme, dtype = request.param
    limits = CacheLimits(slots=4, context=CONTEXT, dtype=dtype)
    if scheme == MIXED:
        flat = create_flat_model(mixed_model(CONFIGS[name]), limits)
        assert flat._decoder is not None and flat._decoder.compiled is not None and len(parts_of(flat._decoder.layers[0].qkv)) == 3
        return flat
    return create_flat_model(plain_model(CONFIGS[name]), limits, scheme)


def steps(pages: Sequence[int]) -> list[tuple[list[int], list[int], Layout]]:
    """Ids, positions and layout of steps that fill the cache: prompts in pieces, decoding rows, texts in one and in two pieces, and all of
    them at once. `pages` are those of four sequences, one after the other.
    """
    made = []
    own = [pages[PAGES * slot : PAGES * (slot + 1)] for slot in range(4)]

    def add(decodes: list[tuple[int, int]], *spans: tuple[int, int, int | None]) -> None:
        positions, parts = [position for _, position in decodes], []
        for start, rows, slot in spans:
            own_pages = None if slot is None else range(PAGES) if slot == TEXT else own[slot]
            parts.append(Span(len(positions), len(positions) + rows, start, own_pages, slot == TEXT))
            positions += range(start, start + rows)
        ids = [(31 * index + 7 * len(made)) % 300 for index in range(len(positions))]
        rows_decoded = [(own[slot], position) for slot, position in decodes]
        made.append((ids, positions, layout_of(rows_decoded, parts, PAGE_TOKENS, torch.device("cpu"))))

    add([], (0, 70, 0))
    add([(0, 70)])
    add([(0, 71)], (0, 5, 2), (0, 90, None))
    add([], (0, 200, 1), (5, 33, 2), (0, 50, TEXT))
    add([(2, 38), (0, 72), (1, 200)], (0, 20, 3), (20, 30, 3), (50, 70, TEXT), (0, 60, TEXT), (0, 2, None), (0, 1, None))
    add([(slot, position) for slot, position in ((0, 73), (1, 201), (2, 39), (3, 50))])
    return made


def hidden_states(flat: FlatModel, pages: Sequence[int] = range(4 * PAGES)) -> list[torch.Tensor]:
    for cache in (*flat.attention.slots.tensors, *flat.attention.texts.tensors):
        cache.zero_()
    return [flat.forward(*step) for step in steps(pages)]


def test_one_call_equals_its_parts(flat: FlatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = flat._decoder
    assert decoder is not None and decoder.compiled is not None
    in_one_call = hidden_states(flat)
    caches = [cache.clone() for cache in (*flat.attention.slots.tensors, *flat.attention.texts.tensors)]
    monkeypatch.setattr(decoder, "compiled", None)
    for whole, parts in zip(in_one_call, hidden_states(flat), strict=True):
        assert torch.equal(whole, parts)
    for whole, parts in zip(caches, (*flat.attention.slots.tensors, *flat.attention.texts.tensors), strict=True):
        assert torch.equal(whole, parts)


def test_rows_beside_others_with_an_adapter_are_what_they_are_without(flat: FlatModel) -> None:
    shapes, generator = flat.adapters.shapes, torch.Generator().manual_seed(0)
    weights = {
        name: (0.05 * torch.randn(4, inputs, generator=generator), 0.05 * torch.randn(outputs, 4, generator=generator))
        for name, (outputs, inputs) in shapes.layers.items()
        if name != shapes.head
    }
    spans = [Span(0, 20, 0, range(PAGES)), Span(20, 40, 0, range(PAGES, 2 * PAGES))]
    step = list(range(20, 60)), [*range(20)] * 2, layout_of([], spans, PAGE_TOKENS, torch.device("cpu"))
    without = flat.forward(*step)
    flat.adapters.add("other", flat.adapters.prepare(weights))
    beside = flat.forward(*step, {"other": range(20, 40)})
    flat.adapters.remove("other")
    assert torch.equal(beside[:20], without[:20]) and not torch.equal(beside[20:], without[20:])


def test_it_is_the_same_wherever_the_pages_lie(flat: FlatModel) -> None:
    scattered = random.Random(0).sample(range(4 * PAGES), 4 * PAGES)
    for states, same in zip(hidden_states(flat, scattered), hidden_states(flat), strict=True):
        assert torch.equal(states, same)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(flat: FlatModel, threads: int) -> None:
    before, expected = torch.get_num_threads(), hidden_states(flat)
    torch.set_num_threads(threads)
    try:
        for states, same in zip(hidden_states(flat), expected, strict=True):
            assert torch.equal(states, same)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "changes",
    [{"head_dim": 18}, {"hidden_act": "gelu"}, {"hidden_size": 99, "num_attention_heads": 3, "num_key_value_heads": 1}],
    ids=["dim", "activation", "odd"],
)
def test_a_shape_that_the_kernel_cannot_run_whole_runs_in_parts(changes: dict[str, Any]) -> None:
    kernel_or_skip()
    flat = create_flat_model(plain_model(LlamaConfig(**{**SHAPE, **changes})), CacheLimits(slots=4, context=CONTEXT))
    assert flat._decoder is not None and flat._decoder.compiled is None
    assert all(states.isfinite().all() for states in hidden_states(flat))


def test_a_cache_in_8_bits_takes_half_the_memory_and_is_refused_where_the_kernel_cannot_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    native = kernel_or_skip()
    limits, shape = CacheLimits(slots=4, context=CONTEXT, dtype="int8"), {**SHAPE, "head_dim": 64}
    plain, rounded = (create_flat_model(plain_model(LlamaConfig(**shape)), replace(limits, dtype=dtype)) for dtype in ("auto", "int8"))
    sizes = [sum(tensor.nbytes for tensor in each.attention.slots.tensors) for each in (plain, rounded)]
    assert sizes[1] / sizes[0] == (64 + 4) / (2 * 64)
    with pytest.raises(SetupError, match=rf"heads have a multiple of {native.columns // 2} values, .* with keys of 18 .*; use auto"):
        create_flat_model(plain_model(LlamaConfig(**{**SHAPE, "head_dim": 18})), limits)
    with pytest.raises(SetupError, match="LlamaForCausalLM is in float16 with"):
        create_flat_model(plain_model(LlamaConfig(**SHAPE)).half(), limits)
    monkeypatch.setattr("app.engine.conversion.kernel", lambda: None)
    with pytest.raises(SetupError, match=r"model\.cache_dtype: int8 needs a CPU and the compiled kernel"):
        create_flat_model(plain_model(LlamaConfig(**SHAPE)), limits)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "GPTNeoX"])
def test_a_model_in_float32_or_with_its_own_forward_can_have_a_cache_in_8_bits(name: str) -> None:
    """The check at the start compares logits; here a decoding row and a row of a prompt see the same keys and values."""
    kernel_or_skip()
    flat = create_flat_model(tiny(name), CacheLimits(2, 100, dtype="int8"))
    ids = [(7 * index) % 300 for index in range(40)]

    def hidden(*ends: int) -> torch.Tensor:
        parts = [Span(0, end - start, start, [1]) for start, end in itertools.pairwise((0, *ends))]
        states = [flat.forward(ids[s.start : s.end], list(range(s.start, s.end)), layout_of([], [s], 64, flat.device)) for s in parts]
        states += [flat.forward(ids[at : at + 1], [at], layout_of([([1], at)], [], 64, flat.device)) for at in range(ends[-1], 40)]
        return torch.cat(states)

    torch.testing.assert_close(hidden(40), hidden(7, 20), atol=2e-4, rtol=1e-3)
