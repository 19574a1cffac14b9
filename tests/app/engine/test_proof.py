"""The check of a model's own forward against every other way to compute it."""

import pytest
import torch
from decoders import CONFIGS, plain_model
from driving import kernel_or_skip
from tinymodels import tiny

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.flat import FlatModel
from app.engine.linear import TiledLinear
from app.engine.proof import Check
from app.errors import UnsupportedModel


def test_weights_that_are_not_finite_are_named() -> None:
    model = tiny("Llama")
    with torch.no_grad():
        model.lm_head.weight[7, 0] = float("nan")
    check = Check(model)
    with pytest.raises(UnsupportedModel, match="gives logits that are not finite: its weights are damaged"):
        check.compare("in pages", check.expected)


def input_bits(flat: FlatModel) -> set[int]:
    layers = (module for module in flat.model.modules() if isinstance(module, TiledLinear))
    return {layer.packed.input_bits for layer in layers if layer.packed.is_grouped}


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_inputs_are_rounded_to_16_bits_where_8_change_the_logits_too_much(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every part of a model that runs whole, and again where a later start takes over what was found."""
    kernel_or_skip()
    compare, limits, refused = Check.compare, CacheLimits(2, 64), []

    def compare_first_in_vain(self: Check, mode: str, logits: torch.Tensor, *rest: bool) -> None:
        if "chunks" in mode and not refused:
            refused.append(mode)
            raise UnsupportedModel("too far off")
        compare(self, mode, logits, *rest)

    narrow = create_flat_model(plain_model(CONFIGS[name]), limits, "int4")
    monkeypatch.setattr(Check, "compare", compare_first_in_vain)
    wide = create_flat_model(plain_model(CONFIGS[name]), limits, "int4")
    again = create_flat_model(plain_model(CONFIGS[name]), limits, "int4", wide.proof)
    assert refused and input_bits(narrow) == {8, 16} and input_bits(wide) == input_bits(again) == {16}
    assert wide.weights.inputs_of_16_bits and wide.weights.inputs_of_16_bits == again.weights.inputs_of_16_bits
    ids = list(range(5, 40))
    whole, taken_over, rounded = (each.forward_uncached(ids) for each in (wide, again, narrow))
    assert torch.equal(whole, taken_over) and not torch.equal(whole, rounded)
    monkeypatch.setattr(wide._decoder, "compiled", None)
    assert torch.equal(whole, wide.forward_uncached(ids)), "in one call, too"
