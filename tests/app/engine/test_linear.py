"""The faster linear layers against the plain ones."""

import logging
from typing import Any

import pytest
import torch
from driving import kernel_or_skip
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from app.engine.grouped import keep_inputs
from app.engine.int4 import Int4Linear
from app.engine.kernel import kernel
from app.engine.linear import (
    PackedLinear,
    TiledLinear,
    add_residual,
    can_pack_on_onednn,
    concatenate_layers,
    gated_product,
    prepack_layers,
)
from app.engine.packing import pack_bfloat16
from app.engine.rounding import quantize_layers


def linear(inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


def tiled(plain: nn.Linear) -> nn.Module:
    compiled = kernel_or_skip()
    return TiledLinear(pack_bfloat16(plain.weight, compiled.columns), plain.out_features, plain.bias, compiled)


def on_onednn(plain: nn.Linear) -> nn.Module:
    if not can_pack_on_onednn():
        pytest.skip("oneDNN has no products of bfloat16 for this processor")
    return PackedLinear(plain)


@pytest.mark.parametrize("packed", [on_onednn, tiled])
@pytest.mark.parametrize("rows", [1, 2, 3, 32, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_matches_the_plain_one(packed: Any, rows: int, bias: bool) -> None:
    plain = linear(64, 48, bias, torch.bfloat16)
    x = torch.randn(1, rows, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(packed(plain)(x), plain(x), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("packed", [on_onednn, tiled, lambda plain: plain])
def test_fused_operations_match_the_plain_ones(packed: Any) -> None:
    plain = [linear(64, 48, True, torch.bfloat16), linear(64, 48, False, torch.bfloat16)]
    gate, up = [packed(each) for each in plain]
    x, residual = torch.randn(5, 64, dtype=torch.bfloat16), torch.randn(5, 48, dtype=torch.bfloat16)
    for act in (nn.SiLU(), nn.GELU()):
        torch.testing.assert_close(gated_product(gate, up, act, x), act(plain[0](x)) * plain[1](x), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(add_residual(gate, x, residual), plain[0](x) + residual, atol=2e-2, rtol=2e-2)


def rounded(plain: nn.Linear, scheme: str) -> tuple[nn.Module, nn.Linear]:
    """`plain` in groups, packed; and a plain layer with the weights that it was rounded to."""
    model = nn.Module()
    model.layer, model.get_output_embeddings, model.get_input_embeddings = plain, lambda: None, lambda: None
    quantize_layers(model, scheme)
    reference = nn.Linear(plain.in_features, plain.out_features, bias=False).to(plain.weight.dtype)
    reference.weight = nn.Parameter(model.layer.unpack().dequantize().to(plain.weight.dtype), requires_grad=False)
    reference.bias = plain.bias
    assert prepack_layers(model) == []
    return model.layer, reference


@pytest.mark.parametrize("rows", [1, 3, 32, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_a_rounded_layer_computes_with_the_rounded_weights(rows: int, bias: bool, dtype: torch.dtype, scheme: str) -> None:
    packed, reference = rounded(linear(96, 48, bias, dtype), scheme)
    x = torch.randn(rows, 96, dtype=dtype)
    torch.testing.assert_close(packed(x), reference(x), atol=3e-2 if dtype == torch.bfloat16 else 1e-5, rtol=2e-2)


def test_torchs_int4_kernel_stands_in_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.linear.kernel", lambda: None)
    packed, reference = rounded(linear(96, 48, True, torch.bfloat16), "int4")
    x = torch.randn(5, 96, dtype=torch.bfloat16)
    assert isinstance(packed, Int4Linear)
    torch.testing.assert_close(packed(x), reference(x), atol=3e-2, rtol=2e-2)


def test_concatenated_layers_concatenate_their_outputs() -> None:
    for parts in ([linear(32, 16, True, torch.float32), linear(32, 48, True, torch.float32)], [nn.Identity(), nn.Identity()]):
        x = torch.randn(5, 32)
        torch.testing.assert_close(concatenate_layers(list(parts))(x), torch.cat([part(x) for part in parts], -1))


def test_layers_without_a_faster_kind_stay() -> None:
    class Subclass(nn.Linear):
        """Like bitsandbytes' layers, which are subclasses."""

    model = nn.ModuleDict(
        {
            "odd": linear(33, 16, False, torch.float32),
            "even": linear(32, 16, False, torch.float32),
            "packed": linear(33, 16, False, torch.bfloat16),
            "subclass": Subclass(32, 16),
        }
    )
    model.get_output_embeddings = model.get_input_embeddings = lambda: None
    before = model["even"].weight.clone()
    quantize_layers(model, "int4")
    prepack_layers(model)
    packed = "PackedLinear" if kernel() is None else "TiledLinear"
    assert [type(model[name]).__name__ for name in model] == ["Linear", "Linear", packed, "Subclass"]
    assert model["even"].weight.dtype == torch.float32 and len(model["even"].weight[0].unique()) <= 16 < len(before[0].unique())


def test_a_layer_that_inputs_of_8_bits_harm_rounds_them_to_16(caplog: pytest.LogCaptureFixture) -> None:
    """One input of a group is a thousand times as large as the others, but nearly unused: rounding loses all others."""
    kernel_or_skip()
    plain = linear(64, 96, True, torch.bfloat16)
    plain.weight[:, ::32] = 1e-4
    for scheme in ("int4", "int8"):
        model = nn.Module()
        model.layer, model.get_output_embeddings, model.get_input_embeddings = plain, lambda: None, lambda: None
        quantize_layers(model, scheme)
        x = torch.randn(1, 24, 64).bfloat16()
        x[..., ::32] = 300
        expected = model.layer(x)
        with keep_inputs(model):
            model.layer(x)
        with caplog.at_level(logging.INFO):
            harmed = prepack_layers(model)
        assert harmed == ["layer"] and model.layer.packed.input_bits == 16
        assert "1 layers round inputs to 16 bits" in caplog.text
        outputs = model.layer(x)
        torch.testing.assert_close(outputs, expected, atol=3e-2, rtol=2e-2)
        model.layer = plain
        quantize_layers(model, scheme)
        assert prepack_layers(model, harmed) == ["layer"] and torch.equal(model.layer(x), outputs)


def test_8_bit_layers_round_inputs_to_16_where_it_shows_most() -> None:
    kernel_or_skip()
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config).bfloat16()
    quantize_layers(model, "int8")
    assert prepack_layers(model) == []
    bits = {path.rpartition(".")[2]: layer.packed.input_bits for path, layer in model.named_modules() if isinstance(layer, TiledLinear)}
    assert {name for name, input_bits in bits.items() if input_bits == 16} == {"lm_head", "down_proj"}
    assert {name for name, input_bits in bits.items() if input_bits == 8} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
    }
