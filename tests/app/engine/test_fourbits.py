"""bitsandbytes' 4-bit layers on the compiled kernel: their levels as they are stored, their values nearly so."""

import pytest
import torch
from driving import kernel_or_skip
from torch import nn

from app.engine import fourbits
from app.engine.fourbits import group_layers, stored_levels, whole_numbers
from app.engine.grouped import GroupedLinear, keep_inputs
from app.engine.linear import TiledLinear, prepack_layers
from app.models.weights import import_bitsandbytes

KINDS = ["nf4", "fp4"]


def four_bit_layer(kind: str, inputs: int = 128, nested: bool = False, block: int = 64):
    import_bitsandbytes()
    from bitsandbytes.nn import Linear4bit, Params4bit

    torch.manual_seed(0)
    plain = nn.Linear(inputs, 64).bfloat16()
    layer = Linear4bit(inputs, 64, bias=True, compute_dtype=torch.bfloat16, quant_type=kind, compress_statistics=nested)
    layer.weight = Params4bit(plain.weight.data, requires_grad=False, compress_statistics=nested, quant_type=kind, blocksize=block)
    layer.bias = nn.Parameter(plain.bias.data, requires_grad=False)
    return layer.to("cpu")


def dequantized(layer) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_values_are_whole_numbers_within_a_300th_of_the_largest(kind: str) -> None:
    values = four_bit_layer(kind).weight.quant_state.code
    table, step, first = whole_numbers(tuple(values.tolist()))
    assert len(table) == 16 and min(table) >= 0 and max(table) <= 255
    assert float((torch.tensor(table) * step + first - values).abs().max()) <= 1 / 300


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("used", [False, True], ids=["", "used"])  # its first forward reorders the levels
def test_levels_are_kept_and_values_nearly(kind: str, nested: bool, used: bool) -> None:
    kernel_or_skip()
    layer = four_bit_layer(kind, nested=nested)
    weight, bias = dequantized(layer), layer.bias.float()
    if used:
        layer(torch.randn(5, 128).bfloat16())
    levels, scale = stored_levels(layer.weight)
    exact = layer.weight.quant_state.code[levels.int()].float().unflatten(1, (-1, 64)) * scale[..., None]
    torch.testing.assert_close(exact.flatten(1), weight, atol=1e-3, rtol=1e-2)
    model = nn.ModuleDict({"layer": layer})
    group_layers(model)
    assert isinstance(model["layer"], GroupedLinear)
    assert float((model["layer"].unpack().dequantize() - exact.flatten(1)).norm() / exact.norm()) < 6e-3
    x = torch.randn(5, 128).bfloat16()
    prepack_layers(model)
    assert isinstance(model["layer"], TiledLinear)
    expected = x.float() @ weight.T + bias
    assert float((model["layer"](x).float() - expected).norm() / expected.norm()) < 2e-2


def test_inputs_that_were_kept_decide_how_inputs_are_rounded() -> None:
    """One input of a group is a thousand times as large as the others, but nearly unused: rounding to 8 bits loses all others."""
    kernel_or_skip()
    layer = four_bit_layer("nf4", inputs=64)
    with torch.no_grad():
        plain = dequantized(layer)
        plain[:, ::32] *= 1e-3
    from bitsandbytes.nn import Params4bit

    layer.weight = Params4bit(plain.bfloat16(), requires_grad=False, quant_type="nf4", compress_statistics=False).to("cpu")
    x = torch.randn(1, 24, 64)
    x[..., ::32] *= 1000
    model = nn.Sequential(layer)
    with keep_inputs(model):
        model(x.bfloat16())
    group_layers(model)
    assert prepack_layers(model) == ["0"] and model[0].packed.input_bits == 16


def test_what_does_not_fit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_or_skip()
    for layer in (four_bit_layer("nf4", inputs=96), four_bit_layer("nf4", inputs=65)):
        model = nn.ModuleDict({"layer": layer})
        group_layers(model)
        assert model["layer"] is layer  # a block spans two rows
    layer = four_bit_layer("nf4")
    layer.compute_dtype = torch.float32
    model = nn.ModuleDict({"layer": layer})
    group_layers(model)
    layer.compute_dtype = torch.bfloat16
    monkeypatch.setattr(fourbits, "kernel", lambda: None)
    group_layers(model)
    assert model["layer"] is layer
