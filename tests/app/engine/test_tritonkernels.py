"""Triton's kernels without a GPU: what they compute, in Triton's interpreter, and that they compile to machine code for cards."""

from concurrent.futures import Executor
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tritoncode import CAPABILITIES, compiled

from app.engine.cudadecoder import probe
from app.engine.decoderlayer import Norm

pytest.importorskip("triton", reason="Triton is not installed")

Errors = dict[tuple[str, torch.dtype, bool], float]  # by shape, dtype, and whether heads have norms
MOST_ERROR = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
SHAPES = {  # heads, kv_heads, dim, hidden, inner
    "SmolLM2": (9, 3, 64, 576, 1536),
    "sizes that are no powers of 2": (3, 1, 80, 300, 1100),
    "wide heads": (2, 2, 256, 512, 64),
}


@pytest.fixture(scope="module")
def errors(interpreter: Executor) -> Errors:
    """What `probe` finds in Triton's interpreter."""
    return interpreter.submit(interpret).result()


def interpret() -> Errors:
    from app.engine.tritonkernels import TritonKernels

    kernels, cases = TritonKernels(), product(SHAPES, MOST_ERROR, (False, True))
    return {case: probe(kernels, decoder(SHAPES[case[0]], *case[1:])) for case in cases}


def decoder(shape: tuple[int, ...], dtype: torch.dtype, has_norms: bool) -> Any:
    heads, kv_heads, dim, hidden, inner = shape
    generator = torch.Generator().manual_seed(3)

    def norm(size: int, eps: float) -> Norm:
        return Norm(torch.randn(size, generator=generator).to(dtype), eps)

    head_norms = (norm(dim, 0.1), norm(dim, 0.9)) if has_norms else None
    layer = SimpleNamespace(own_norms=(norm(hidden, 1e-5), norm(hidden, 0.5)), head_norms=head_norms)
    return SimpleNamespace(layers=[layer], heads=heads, kv_heads=kv_heads, dim=dim, inner=inner)


@pytest.mark.parametrize("has_norms", [False, True], ids=["", "with norms of heads"])
@pytest.mark.parametrize("shape", SHAPES)
def test_they_compute_what_torch_does(shape: str, has_norms: bool, errors: Errors) -> None:
    for dtype, most in MOST_ERROR.items():
        assert errors[shape, dtype, has_norms] < most


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_they_compile_for_cards_without_spilled_registers(capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from app.engine import tritonkernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = ("x", "added", "weight", "out", "qkv", "cos", "sin", "query_weight", "key_weight", "query", "keys", "values", "gate", "up")
    types = dict.fromkeys(pointers, "*bf16") | {"places": "*i64", "eps": "fp32", "query_eps": "fp32", "key_eps": "fp32"}
    rotation = {"HEADS": 32, "KV_HEADS": 8, "DIM": 128, "BLOCK_HEADS": 8, "BLOCK_HALF": 64}
    for has in product((False, True), repeat=2):
        assert_compiles(kernels._rotate, types, rotation | dict(zip(("HAS_NORMS", "HAS_PLACES"), has, strict=True)), capability)
    for hidden, has_added in product((576, 8192), (False, True)):
        block = 1 << (hidden - 1).bit_length()
        assert_compiles(kernels._norm, types, {"HIDDEN": hidden, "BLOCK": block, "HAS_ADDED": has_added}, capability)
    assert_compiles(kernels._gate, types, {"INNER": 14336, "BLOCK": 1024}, capability)


def assert_compiles(function: Any, types: dict[str, str], sizes: dict[str, int], capability: int) -> None:
    code = compiled(function, types, sizes, capability)
    loads = [line for line in code.splitlines() if "ld.global" in line and ".b16" in line]
    assert not loads, f"{function} reads values one by one: {loads[0]}"
