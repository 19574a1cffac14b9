"""4-bit layers for CUDA, without a card: torch's two operations are stood in for by what their source (ATen's int4mm.cu) describes, on a
CPU; shapes, types and devices are checked on fake tensors of a CUDA device.
"""

from pathlib import Path

import pytest
import torch
from tinygemm import Packed, packed_as_torch_does
from tinymodels import tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from app.engine import flat, int4
from app.engine.grouped import GroupedLinear, GroupedWeights
from app.engine.int4 import MOST_ROWS, CudaInt4Linear, dequantize_others, pack_layers, pack_pairs, round_layers, unpack_levels
from app.engine.ledger import weight_bytes
from app.engine.rounding import quantize_4_bits
from app.errors import UnsupportedModel
from app.models.footprint import Form, footprint
from app.models.format import parameter_count
from app.models.gguf import GGUFFile
from app.models.gguf_weights import load_gguf
from app.models.skeleton import skeleton_of
from app.models.source import source_of
from app.models.weights import engine_scheme, load_model
from app.settings import ModelSettings
from models.gguf import write_gguf
from models.synthetic import Shape, save

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 17, 9, 200, 31, 44, 90, 12]])


def rounded(outputs: int, inputs: int) -> GroupedWeights:
    torch.manual_seed(outputs + inputs)
    return quantize_4_bits(torch.randn(outputs, inputs))


@pytest.mark.parametrize(("inputs", "tiles"), [(96, 2), (64, 4), (256, 8)])
def test_levels_are_read_back_from_the_order_in_which_torch_packs_them(inputs: int, tiles: int) -> None:
    levels = rounded(16, inputs).levels
    packed = packed_as_torch_does(pack_pairs(levels), tiles)
    assert packed.shape == (2, inputs // 16 // tiles, 32, tiles // 2)
    assert torch.equal(unpack_levels(packed).view_as(levels), levels)


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 24).bfloat16()], ids=["plain", "bias"])
def test_few_rows_and_many_are_multiplied_by_the_same_weights(on_cuda: Packed, monkeypatch: pytest.MonkeyPatch, bias: torch.Tensor) -> None:
    monkeypatch.setattr(int4, "BLOCK_WEIGHTS", 16 * 96)  # two blocks, of which the last is smaller
    weights = rounded(24, 96)
    layer = CudaInt4Linear(weights, bias)
    dequantized = layer.dequantize(0, 24)
    torch.testing.assert_close(dequantized.float(), weights.dequantize(), atol=2e-2, rtol=0)
    x = torch.randn(MOST_ROWS + 1, 96).bfloat16()
    expected = nn.functional.linear(x.float(), dequantized.float(), None if bias is None else bias.float())
    for rows in (1, MOST_ROWS, MOST_ROWS + 1):
        torch.testing.assert_close(layer(x[:rows]).float(), expected[:rows], atol=3e-2, rtol=2e-2)
    assert torch.equal(layer(x[None]), layer(x)[None]) and layer(x[:0]).shape == (0, 24)
    assert weight_bytes(layer) == 24 * 96 * 5 // 8 + (0 if bias is None else bias.nbytes)


@pytest.mark.parametrize("rows", [1, MOST_ROWS, MOST_ROWS + 1])
def test_on_a_cuda_device_nothing_is_read_back_from_it(rows: int) -> None:
    """A fake tensor has no values: what needs one, which a CUDA graph cannot capture, raises an error."""
    with FakeTensorMode():
        scale = torch.empty(48, 3, device="cuda")
        layer = CudaInt4Linear(GroupedWeights(torch.empty(48, 96, dtype=torch.uint8, device="cuda"), scale, scale, 4), None)
        out = layer(torch.empty(2, rows, 96, dtype=torch.bfloat16, device="cuda"))
    assert (layer.packed.shape, layer.scales.shape) == ((6, 3, 32, 1), (3, 48, 2))
    assert (out.shape, out.dtype, out.device.type) == ((2, rows, 48), torch.bfloat16, "cuda")


def test_a_model_is_rounded_and_packed_but_its_vocabulary_projection(
    on_cuda: Packed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(int4, "ROUNDED_WEIGHTS", 24 * 64)
    tiny("Llama").save_pretrained(tmp_path)
    source, model = source_of(str(tmp_path)), tiny("Llama").bfloat16()
    before, parameters = model.get_output_embeddings().weight.clone(), model.num_parameters()
    down = quantize_4_bits(model.model.layers[0].mlp.down_proj.weight)
    round_layers(model, CPU)
    assert torch.equal(model.model.layers[0].mlp.down_proj.unpack().dequantize(), down.dequantize())
    dequantize_others(model, CPU)
    with torch.no_grad():
        expected = model(IDS).logits
        assert parameter_count(source, model) == parameters
        pack_layers(model)
        torch.testing.assert_close(model(IDS).logits, expected, atol=3e-2, rtol=3e-2)
    assert torch.equal(model.get_output_embeddings().weight, before)
    assert sum(isinstance(module, CudaInt4Linear) for module in model.modules()) == 7 * model.config.num_hidden_layers
    assert weight_bytes(model) == pytest.approx(
        footprint(source, skeleton_of(source), Form("int4", torch.bfloat16, "cuda")).total(), rel=1e-3
    )


@pytest.mark.parametrize(("dtype", "kind"), [("auto", GroupedLinear), ("float16", nn.Linear)])
def test_a_model_for_a_card_is_rounded_there_as_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str, kind: type[nn.Module]
) -> None:
    """torch's meta device stands for the card. In float16 the product cannot compute."""
    monkeypatch.setattr(int4, "runs_on", lambda device: True)
    tiny("Llama").save_pretrained(tmp_path)
    source, card = source_of(str(tmp_path)), torch.device("meta")
    settings = ModelSettings(path=str(tmp_path), quantize="int4", dtype=dtype, device="cuda")  # type: ignore[arg-type]
    model = load_model(source, settings, card)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert engine_scheme(settings, card) == "none" and type(layer) is kind and type(model.get_output_embeddings()) is nn.Linear
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    if isinstance(layer, GroupedLinear):
        assert layer.unpack().levels.is_meta and parameter_count(source, model) == tiny("Llama").num_parameters()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_a_gguf_file_the_4_bit_layers_stay(on_cuda: Packed, tmp_path: Path, dtype: torch.dtype) -> None:
    shape = Shape(hidden=64, layers=1, heads=4, kv_heads=2, ff=96, vocabulary=700, context=64)
    file = write_gguf(save(shape, tmp_path / "model", 0), tmp_path / "model.gguf", "Q4_0", {"attn_v": "Q8_0", "token_embd": "Q4_1"})
    model = load_gguf(GGUFFile(file), dtype, CPU)
    dequantize_others(model, CPU)
    with torch.no_grad():
        expected = model(IDS).logits
        pack_layers(model)
        torch.testing.assert_close(model(IDS).logits, expected, atol=3e-2, rtol=3e-2)
    packed = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, CudaInt4Linear)}
    four_bits = {"q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # 700 tokens do not divide by 8
    assert packed == (four_bits if dtype == torch.bfloat16 else set())
    source = source_of(str(file))
    assert weight_bytes(model) == pytest.approx(footprint(source, skeleton_of(source), Form("none", dtype, "cuda")).total(), rel=1e-3)


def test_a_whole_model_gives_the_logits_of_its_rounded_weights_in_steps_of_few_rows_and_of_many(
    on_cuda: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With queries, keys and values joined; at its start the model is compared with its own forward, in one piece and in chunks."""
    monkeypatch.setattr(flat, "prepack_layers", lambda model, harmed: pack_layers(model) or [])
    model = tiny("Llama").bfloat16()
    round_layers(model, CPU)
    prompts = [IDS[0].tolist(), [(7 * position + 3) % 300 for position in range(MOST_ROWS + 1)]]
    with torch.no_grad():
        expected = [model(torch.tensor([prompt])).logits[0] for prompt in prompts]
    served = flat.create_flat_model(model, flat.CacheLimits(2, 128))
    joined = [module.outputs for module in model.modules() if isinstance(module, CudaInt4Linear)]
    assert max(joined) > model.config.hidden_size and len(joined) == 5 * model.config.num_hidden_layers
    for prompt, logits in zip(prompts, expected, strict=True):
        error = (served.head(served.forward_uncached(prompt)) - logits).norm() / logits.norm()
        assert error < 0.03


def test_a_torch_that_packs_in_another_order_is_refused(on_cuda: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack", lambda pairs, tiles: packed_as_torch_does(pairs.flip(1), tiles))
    weights = rounded(8, 32)
    model = nn.ModuleDict({"layer": GroupedLinear(lambda: weights, (8, 32), (4, 32), torch.bfloat16)})
    with pytest.raises(UnsupportedModel, match="in an order that Litmus does not know; use nf4"):
        pack_layers(model)
