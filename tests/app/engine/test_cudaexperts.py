"""Experts as on CUDA: joined, in floats and in 4 bits, by torch and by Triton's kernel in its interpreter."""

from collections.abc import Callable
from concurrent.futures import Executor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_families import FAMILIES, VOCABULARY, create_model, write_family
from tinygemm import Packed
from torch import nn
from tritoncode import CAPABILITIES, compiled

from app.engine import conversion, cudaexperts, int4
from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.cudaexperts import CudaExperts, PackedProjection, PlainProjection, join_experts, probe
from app.engine.experts import Experts, Routes, separate_experts, set_routes
from app.engine.grouped import FLOAT_4, GROUP_FORMAT, GroupedLinear, GroupedWeights, GroupFormat
from app.engine.int4 import dequantize_others, pack_layers, round_layers
from app.engine.ledger import weight_bytes
from app.engine.proof import MAX_ERROR
from app.engine.rounding import quantize_4_bits
from app.errors import SetupError
from app.models.footprint import Form, footprint
from app.models.gguf import GGUFFile
from app.models.gguf_weights import load_gguf
from app.models.skeleton import skeleton_of
from app.models.source import source_of
from app.models.weights import load_model
from app.settings import ModelSettings
from models.synthetic import Shape, create_tokenizer, save

SHAPES = {"whole blocks": (5, 128, 72), "half a block more": (3, 96, 200), "one expert": (1, 32, 16)}  # experts, inputs, outputs
CPU = torch.device("cpu")
FILES = [
    ("qwen3moe", ("Q4_0",), [PackedProjection, PackedProjection]),
    ("gpt-oss", ("MXFP4",), [PackedProjection, PackedProjection]),
    ("qwen3moe", ("Q8_0",), [PlainProjection, PlainProjection]),
]
MOST_ERROR = {torch.float32: 1e-6, torch.float16: 1e-3}  # the interpreter has no product in bfloat16


def layer(
    outputs: int, inputs: int, form: GroupFormat, seed: int, has_bias: bool = False, dtype: torch.dtype = torch.bfloat16
) -> GroupedLinear:
    generator = torch.Generator().manual_seed(seed)
    if form == GROUP_FORMAT:
        weights = quantize_4_bits(torch.randn(outputs, inputs, generator=generator))
    else:
        levels = torch.randint(0, 16, (outputs, inputs), generator=generator, dtype=torch.uint8)
        scale = torch.randint(-9, 2, (outputs, inputs // 32), generator=generator).float().exp2()
        weights = GroupedWeights(levels, scale, -12 * scale, 4, form.table)
    bias = torch.randn(outputs, generator=generator).to(dtype) if has_bias else None
    return GroupedLinear(lambda: weights, (outputs, inputs), form, dtype, bias)


def projection(shape: str, form: GroupFormat, dtype: torch.dtype) -> PackedProjection:
    experts, inputs, outputs = SHAPES[shape]
    has_bias = dtype == torch.float32
    return PackedProjection([(layer(outputs, inputs, form, number, has_bias, dtype),) for number in range(experts)], False)


@pytest.mark.parametrize("by_turns", [False, True])
@pytest.mark.parametrize("form", [GROUP_FORMAT, FLOAT_4], ids=["int4", "MXFP4"])
def test_what_is_packed_is_what_was_in_the_layers(form: GroupFormat, by_turns: bool) -> None:
    experts = [(layer(24, 96, form, number), layer(24, 96, form, 9 - number)) for number in range(3)]
    packed = PackedProjection(experts, by_turns)
    for number, layers in enumerate(experts):
        gate, up = (each.unpack().dequantize() for each in layers)
        expected = torch.stack([gate, up], 1).flatten(0, 1) if by_turns else torch.cat([gate, up])
        torch.testing.assert_close(
            packed.weights(number), expected, atol=2e-3 if form == GROUP_FORMAT else 0, rtol=2e-3 if form == GROUP_FORMAT else 0
        )


def rows_of(counts: list[int], inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(sum(counts) + 2, inputs, generator=torch.Generator().manual_seed(1)).bfloat16()  # two behind the last end
    return x, torch.tensor(counts).cumsum(0).int()


@pytest.mark.parametrize("kind", ["packed", "plain"])
def test_each_row_is_multiplied_by_its_expert(kind: str) -> None:
    layers = [(layer(40, 64, GROUP_FORMAT, number, True),) for number in range(4)]
    made: nn.Module = PackedProjection(layers, False) if kind == "packed" else PlainProjection(layers, False)
    x, ends = rows_of([3, 0, 1, 5], 64)
    out = made(x, ends)
    for row, number in enumerate([0, 0, 0, 2, 3, 3, 3, 3, 3]):
        torch.testing.assert_close(out[row], layers[number][0](x[row]), atol=6e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss"])
@pytest.mark.parametrize("kind", ["floats", "mixed", "packed"])
def test_joined_experts_compute_what_separate_ones_do(name: str, kind: str) -> None:
    model = create_model(FAMILIES[name]).bfloat16()
    separate_experts(model)
    experts = next(module for module in model.modules() if isinstance(module, Experts))
    for expert in experts:
        for part in {"floats": (), "mixed": ("down_proj",), "packed": ("gate_proj", "up_proj", "down_proj")}[kind]:
            plain = getattr(expert, part)
            weights = quantize_4_bits(plain.weight.detach().float())
            rounded = GroupedLinear(
                lambda weights=weights: weights, (plain.out_features, plain.in_features), GROUP_FORMAT, torch.bfloat16, plain.bias
            )
            setattr(expert, part, rounded)
    joined, width = CudaExperts(experts), experts[0].gate_proj.in_features
    kinds = [type(each).__name__ == "PackedProjection" for each in (joined.gate_up, joined.down)]
    assert kinds == {"floats": [False, False], "mixed": [False, True], "packed": [True, True]}[kind]
    hidden = torch.randn(11, width, generator=torch.Generator().manual_seed(2)).bfloat16()
    chosen = torch.stack([torch.randperm(len(experts) + 1, generator=torch.Generator().manual_seed(row))[:2] for row in range(11)])
    weights = torch.rand(11, 2, generator=torch.Generator().manual_seed(3))
    assert (chosen == len(experts)).any(), "a row that no expert is for"
    found, expected = joined(hidden, chosen, weights).float(), experts(hidden, chosen, weights).float()
    assert (found - expected).norm() / expected.norm() < 1e-2


def interpret() -> dict[Any, float]:
    from app.engine.tritonexperts import multiply

    cases = product(SHAPES, (GROUP_FORMAT, FLOAT_4), MOST_ERROR)
    return {case: probe(projection(*case), multiply) for case in cases}


@pytest.fixture(scope="module")
def errors(interpreter: Executor) -> dict[Any, float]:
    """What `probe` finds in Triton's interpreter."""
    return interpreter.submit(interpret).result()


@pytest.mark.parametrize("form", [GROUP_FORMAT, FLOAT_4], ids=["int4", "MXFP4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_computes_what_torch_does(shape: str, form: GroupFormat, errors: dict[Any, float]) -> None:
    for dtype, most in MOST_ERROR.items():
        assert errors[shape, form, dtype] < most


@pytest.mark.parametrize(("capability", "is_even"), tuple(zip(CAPABILITIES, (True, False), strict=True)))
def test_the_kernel_compiles_for_cards_without_spilled_registers(
    capability: int, is_even: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from app.engine import tritonexperts

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"x": "*bf16", "ends": "*i32", "levels": "*u8", "scales": "*fp16", "minima": "*fp16", "bias": "*bf16", "out": "*bf16"}
    sizes = {"EXPERTS": 32, "ALL": 32, "INPUTS": 2880, "BLOCKS": 45, "OUTPUTS": 5760}
    for rows, columns in (tritonexperts.FEW, tritonexperts.MANY):
        own = {"ROWS": rows, "COLUMNS": columns, "IS_EVEN": is_even, "HAS_BIAS": not is_even}
        code = compiled(tritonexperts._multiply, types | {"factor": "fp32"}, sizes | own, capability)
        assert "cp.async" in code and "mma" in code, "levels are fetched ahead, and multiplied by the tensor cores"


@pytest.mark.parametrize("fault", ["fails", "is wrong"])
def test_a_kernel_that_is_of_no_use_is_not_used(fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    triton = pytest.importorskip("app.engine.tritonexperts", reason="Triton is not installed")

    def multiply(packed: PackedProjection, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        if fault == "fails":
            raise RuntimeError("no kernel image is available")
        return cudaexperts.multiply_plainly(packed, x, ends) * 1.1

    monkeypatch.setattr(triton, "multiply", multiply)
    model = nn.ModuleDict({"experts": mixture(lambda outputs, inputs, number: layer(outputs, inputs, GROUP_FORMAT, number))})
    join_experts(model)
    assert model["experts"].down.kernel is None and "each step dequantizes them" in caplog.messages[0]


def mixture(create: Callable[[int, int, int], GroupedLinear]) -> Experts:
    model = create_model(FAMILIES["qwen3moe"])
    separate_experts(model)
    experts = next(module for module in model.modules() if isinstance(module, Experts))
    for number, expert in enumerate(experts):
        for name, part in list(expert.named_children()):
            setattr(expert, name, create(part.out_features, part.in_features, number))
    return experts


def test_nothing_is_read_back_from_the_device() -> None:
    """On the meta device what needs a value, which a CUDA graph cannot capture, raises an error."""
    for kind in ("packed", "floats"):
        joined = CudaExperts(
            mixture(lambda outputs, inputs, number: layer(outputs, inputs, GROUP_FORMAT, number)) if kind == "packed" else separate()
        )
        for part in (joined.gate_up, joined.down):
            if isinstance(part, PackedProjection):
                part.kernel = lambda packed, x, ends: x.new_empty(len(x), packed.outputs)
        row, card = torch.empty(7, 64, dtype=torch.bfloat16), torch.device("meta")
        out = joined.to(card)(row.to(card), torch.empty(7, 2, dtype=torch.long, device=card), torch.empty(7, 2, device=card))
        assert (out.shape, out.dtype, out.device) == (row.shape, row.dtype, card)


def separate() -> Experts:
    model = create_model(FAMILIES["qwen3moe"]).bfloat16()
    separate_experts(model)
    return next(module for module in model.modules() if isinstance(module, Experts))


@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss"])
def test_a_mixture_is_rounded_to_4_bits(on_cuda: Packed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(conversion, "prepack_layers", lambda model, harmed: pack_layers(model) or [])
    model = create_model(FAMILIES[name])
    model.save_pretrained(tmp_path)
    create_tokenizer(VOCABULARY).save_pretrained(tmp_path)
    source, model = source_of(str(tmp_path)), model.bfloat16()
    separate_experts(model)
    round_layers(model, CPU)
    dequantize_others(model, CPU)
    served = create_flat_model(model, CacheLimits(2, 64))  # its logits are compared with its own forward's, by the same routes
    kinds = {type(part) for each in model.modules() if isinstance(each, CudaExperts) for part in (each.gate_up, each.down)}
    assert kinds == {PackedProjection} and served.proof is not None
    estimated = footprint(source, skeleton_of(source), Form("int4", torch.bfloat16, "cuda")).total()
    assert weight_bytes(model) == pytest.approx(estimated, rel=1e-3)


@pytest.mark.parametrize(("name", "types", "kinds"), FILES)
def test_a_gguf_files_experts_stay_in_4_bits(
    on_cuda: Packed, tmp_path: Path, name: str, types: tuple[str, ...], kinds: list[type[nn.Module]]
) -> None:
    tokenizer = save(Shape(hidden=64, layers=1, heads=2, kv_heads=2, ff=64, vocabulary=VOCABULARY, context=64), tmp_path / "tokenizer", 0)
    path = write_family(FAMILIES[name], create_model(FAMILIES[name]), tokenizer, tmp_path / "model.gguf", *types)
    model = load_gguf(GGUFFile(path), torch.bfloat16)
    dequantize_others(model, CPU)
    ids = torch.arange(24)[None]
    with torch.inference_mode():
        set_routes(model, Routes)
        expected = model(ids).logits
        pack_layers(model)
        assert [
            type(part) for part in next((each.gate_up, each.down) for each in model.modules() if isinstance(each, CudaExperts))
        ] == kinds
        found = model(ids).logits
    assert (found - expected).norm() / expected.norm() < MAX_ERROR
    source = source_of(str(path))
    estimated = footprint(source, skeleton_of(source), Form("none", torch.bfloat16, "cuda")).total()
    assert weight_bytes(model) == pytest.approx(estimated, rel=1e-3)


@pytest.mark.parametrize("quantize", ["int4", "nf4"])
def test_experts_of_a_model_for_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quantize: str) -> None:
    """torch's meta device stands for the card."""
    monkeypatch.setattr(int4, "runs_on", lambda device: True)
    create_model(FAMILIES["qwen3moe"]).save_pretrained(tmp_path)
    settings = ModelSettings(path=str(tmp_path), quantize=quantize, device="cuda")  # type: ignore[arg-type]
    if quantize == "nf4":
        with pytest.raises(SetupError, match="nf4 would leave the experts of .* as they are; use int4 or none"):
            load_model(source_of(str(tmp_path)), settings, torch.device("meta"))
        return
    model = load_model(source_of(str(tmp_path)), settings, torch.device("meta"))
    layer = model.get_submodule("model.layers.0.mlp.experts.0.up_proj")
    assert isinstance(layer, GroupedLinear) and layer.unpack().levels.is_meta
