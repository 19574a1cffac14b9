"""Rounding to groups: small errors, nothing lost that lies on a grid, layers of one kind joined."""

import pytest
import torch
from tinymodels import tiny

from app.engine.grouped import (
    GroupedLinear,
    GroupedWeights,
    can_concatenate,
    concatenate,
    dequantize_layers,
    quantize_4_bits,
    quantize_8_bits,
    quantize_layers,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_4_bits_lose_less_than_levels_between_the_extremes(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    grouped = weight.float().view(64, 3, 32)
    low, high = grouped.aminmax(dim=-1, keepdim=True)
    plain = ((grouped - low) / (high - low) * 15).round() / 15 * (high - low) + low
    fitted = quantize_4_bits(weight).dequantize().view(64, 3, 32)
    assert float((fitted - grouped).square().sum()) < 0.97 * float((plain - grouped).square().sum())


def test_a_4_bit_grid_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 16, (64, 96), generator=generator, dtype=torch.uint8)
    levels[:, ::32], levels[:, 1::32] = 0, 15
    scale, minimum = torch.rand(64, 3, generator=generator).half().float() + 0.01, torch.randn(64, 3, generator=generator).half().float()
    weights = GroupedWeights(levels, scale.half().float(), minimum, 4)
    again = quantize_4_bits(weights.dequantize())
    assert torch.equal(again.levels, levels)
    torch.testing.assert_close(again.dequantize(), weights.dequantize(), atol=2e-4, rtol=2e-3)


def test_8_bits_lose_at_most_half_a_level_and_keep_zero() -> None:
    weight = torch.randn(64, 96)
    weight[3] = 0
    weights = quantize_8_bits(weight)
    step = weight.view(64, 3, 32).abs().amax(-1) / 127
    assert bool(((weights.dequantize() - weight).view(64, 3, 32).abs().amax(-1) <= 0.5001 * step + 1e-7).all())
    assert not weights.dequantize()[3].any()


def test_groups_without_a_range_and_equal_weights_are_kept() -> None:
    for value in (0.0, 1.0, -3.0):
        weight = torch.full((2, 32), value)
        for weights in (quantize_4_bits(weight), quantize_8_bits(weight)):
            torch.testing.assert_close(weights.dequantize(), weight, atol=1e-3, rtol=1e-3)


def test_layers_of_one_kind_are_concatenated() -> None:
    parts = [
        GroupedLinear(lambda rows=rows: quantize_8_bits(torch.ones(rows, 64)), (rows, 64), (8, 32), torch.float32, torch.zeros(rows))
        for rows in (3, 5)
    ]
    x = torch.randn(2, 64)
    assert can_concatenate(parts)
    torch.testing.assert_close(concatenate(parts)(x), torch.cat([part(x) for part in parts], -1))
    other = GroupedLinear(lambda: quantize_4_bits(torch.ones(3, 64)), (3, 64), (4, 32), torch.float32)
    assert not can_concatenate([parts[0], other])


def test_a_tied_embedding_and_its_projection_are_dequantized_once() -> None:
    model, ids = tiny("Gemma2"), torch.arange(2, 40)[None]  # its embedding is scaled
    with torch.inference_mode():
        plain = model(ids).logits
        quantize_layers(model, "int8")
        rounded = model(ids).logits
        dequantize_layers(model)
        assert torch.equal(model(ids).logits, rounded) and (rounded - plain).norm() < 0.05 * plain.norm()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
