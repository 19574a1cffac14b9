"""Layers in groups: those of one kind are joined, and dequantized once."""

import torch
from tinymodels import tiny

from app.engine.grouped import GroupedLinear, can_concatenate, concatenate, dequantize_layers
from app.engine.rounding import quantize_4_bits, quantize_8_bits, quantize_layers


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
