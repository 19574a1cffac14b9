"""Rounding to levels in groups: how good it is, and that the compiled kernel rounds as torch does."""

import pytest
import torch

from app.engine import rounding
from app.engine.grouped import GroupedWeights
from app.engine.kernel import Kernel
from app.engine.rounding import quantize_4_bits, quantize_8_bits

WEIGHTS = {
    "normal": lambda generator: torch.randn(70, 96, generator=generator) / 50,
    "with outliers": lambda generator: torch.randn(70, 96, generator=generator) ** 5,
    "tiny": lambda generator: torch.randn(70, 96, generator=generator) * 1e-6,
    "0": lambda generator: torch.zeros(70, 96),
}


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_kernel_rounds_as_torch_does(built: Kernel, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_kernel_for", lambda _: None)
    weight = WEIGHTS[name](torch.Generator().manual_seed(0)).to(dtype)
    for bits, by_torch in ((4, quantize_4_bits), (8, quantize_8_bits)):
        found, expected = built.round_weights(weight.T.contiguous().T, bits), by_torch(weight)
        assert (found.levels == expected.levels).float().mean() > 0.999, "where sums in another order decide"
        errors = [float((each.dequantize() - weight.float()).norm()) for each in (found, expected)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_visible(built: Kernel, bits: int, damage: float) -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    weight[1, 40] = damage
    is_finite = built.round_weights(weight, bits).dequantize().isfinite().view(3, 2, 32).all(-1)
    assert is_finite.tolist() == [[True, True], [True, False], [True, True]]
