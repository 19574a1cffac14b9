"""Logits of a model in bfloat16 leave the compiled vocabulary projection in float32."""

import pytest
import torch
from tinymodels import tiny

from app.engine import packing
from app.engine.kernel import Epilogue, Kernel
from app.engine.linear import TiledLinear, prepack_layers
from app.engine.request import SamplingParams
from app.engine.rounding import quantize_4_bits, quantize_8_bits
from app.engine.sampler import SamplerRow, sample


@pytest.mark.parametrize("outputs", [1, 61, 96])
@pytest.mark.parametrize("kind", ["bfloat16", "8 bits", "4 bits"])
def test_outputs_in_float32_are_those_that_bfloat16_rounds(built: Kernel, kind: str, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(outputs, 64, generator=generator), torch.randn(9, 64, generator=generator).bfloat16()
    if kind == "bfloat16":
        packed = packing.pack_bfloat16(weight.bfloat16(), built.columns)
    else:
        packed = packing.pack_grouped((quantize_8_bits if kind == "8 bits" else quantize_4_bits)(weight), built.columns)
    exact = built.linear(x, packed, Epilogue(outputs, in_float32=True))
    assert exact.dtype == torch.float32 and not exact.equal(exact.bfloat16().float())
    assert exact.bfloat16().equal(built.linear(x, packed, Epilogue(outputs)))


def test_only_the_vocabulary_projection_of_a_model_gives_them(built: Kernel) -> None:
    model = tiny("Llama").bfloat16()
    prepack_layers(model)
    layers = {name for name, module in model.named_modules() if isinstance(module, TiledLinear) and module.in_float32}
    assert layers == {"lm_head"}
    assert model.lm_head(torch.randn(2, 64).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_draws_what_torch_draws(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = (4 * torch.randn(60, 1003, generator=torch.Generator().manual_seed(1))).to(dtype)
    kinds = [SamplingParams(temperature=0.0), SamplingParams(temperature=0.8, top_k=20, top_p=0.9), SamplingParams(min_p=0.05)]
    rows = [SamplerRow(kinds[place % 3], (0,) * place, place, frozenset()) for place in range(len(logits))]
    drawn = sample(logits, rows)
    monkeypatch.setattr("app.engine.sampler.kernel_for", lambda _: None)
    assert sample(logits, rows) == drawn
