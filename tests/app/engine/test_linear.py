"""The faster linear layers against the plain ones."""

from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from driving import kernel_or_skip
from torch import nn

from app.engine.kernel import kernel
from app.engine.linear import (
    Int4Linear,
    PackedLinear,
    TiledLinear,
    add_residual,
    concatenate_layers,
    gated_product,
    prepack_layers,
    round_weights,
)


def linear(inputs: int, outputs: int, bias: bool, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


def tiled(plain: nn.Linear) -> nn.Module:
    return TiledLinear.from_bfloat16(plain, kernel_or_skip())


@pytest.mark.parametrize("packed", [PackedLinear, tiled])
@pytest.mark.parametrize("rows", [1, 2, 3, 32, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_matches_the_plain_one(packed: Any, rows: int, bias: bool) -> None:
    plain = linear(64, 48, bias, torch.bfloat16)
    x = torch.randn(1, rows, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(packed(plain)(x), plain(x), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("packed", [PackedLinear, tiled, lambda plain: plain])
def test_fused_operations_match_the_plain_ones(packed: Any) -> None:
    plain = [linear(64, 48, True, torch.bfloat16), linear(64, 48, False, torch.bfloat16)]
    gate, up = [packed(each) for each in plain]
    x, residual = torch.randn(5, 64, dtype=torch.bfloat16), torch.randn(5, 48, dtype=torch.bfloat16)
    for act in (nn.SiLU(), nn.GELU()):
        torch.testing.assert_close(gated_product(gate, up, act, x), act(plain[0](x)) * plain[1](x), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(add_residual(gate, x, residual), plain[0](x) + residual, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("rows", [1, 3, 32, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_int4_layer_computes_with_the_rounded_weights(rows: int, bias: bool, dtype: torch.dtype) -> None:
    plain = linear(96, 48, bias, dtype)
    int4 = Int4Linear(plain)
    round_weights(nn.ModuleList([plain]))
    x = torch.randn(rows, 96, dtype=dtype)
    torch.testing.assert_close(int4(x), plain(x), atol=3e-2 if dtype == torch.bfloat16 else 1e-5, rtol=2e-2)


def test_rounding_moves_no_weight_by_more_than_half_a_level_and_is_idempotent() -> None:
    plain = linear(64, 32, False, torch.float32)
    before = plain.weight.clone()
    round_weights(nn.ModuleList([plain]))
    spread = before.view(32, 2, 32).amax(-1) - before.view(32, 2, 32).amin(-1)
    moved = (plain.weight - before).abs().view(32, 2, 32).amax(-1)
    assert bool((moved <= spread / 15 / 2 * 1.001).all())
    assert bool((moved > 0).all())
    once = plain.weight.clone()
    round_weights(nn.ModuleList([plain]))
    torch.testing.assert_close(plain.weight, once, atol=1e-6, rtol=1e-5)


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
    prepack_layers(model, int4=True)
    packed = "PackedLinear" if kernel() is None else "TiledLinear"
    assert [type(model[name]).__name__ for name in model] == ["Linear", "Int4Linear", packed, "Subclass"]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("used", [False, True])  # its first forward reorders the levels
def test_levels_of_bitsandbytes_are_kept_exactly(kind: str, nested: bool, used: bool) -> None:
    kernel_or_skip()
    plain = linear(128, 64, True, torch.bfloat16)
    layer = Linear4bit(128, 64, bias=True, compute_dtype=torch.bfloat16, quant_type=kind, compress_statistics=nested)
    layer.load_state_dict(plain.state_dict())
    model = nn.ModuleDict({"layer": layer.to("cpu")})
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    x = torch.randn(5, 128).bfloat16()
    if used:
        layer(x)
    prepack_layers(model, int4=False)
    assert isinstance(model["layer"], TiledLinear)
    torch.testing.assert_close(model["layer"](x).float(), x.float() @ weight.T + plain.bias.float(), atol=1e-2, rtol=2e-2)


def test_int4_in_bfloat16_computes_with_the_rounded_weights() -> None:
    """Each input may be off by half a step of 8 bits, either way: for inputs up to 3.2 and 96 weights up to 0.1 that is about 0.01."""
    kernel_or_skip()
    plain = linear(96, 48, True, torch.bfloat16)
    model = nn.ModuleDict({"layer": plain})
    prepack_layers(model, int4=True)
    assert isinstance(model["layer"], TiledLinear)
    round_weights(nn.ModuleList([plain]))
    x = torch.randn(20, 96).bfloat16()
    torch.testing.assert_close(model["layer"](x), plain(x), atol=3e-2, rtol=2e-2)
