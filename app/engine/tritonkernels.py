"""What lies between the products of a Llama-shaped layer on CUDA, as three kernels in Triton, which comes with torch for CUDA.

Each reads its inputs once and writes its outputs once, and computes in float32. Knows no model. Import it only where Triton is installed.
"""

from subprocess import SubprocessError
from typing import Any

import torch
import triton
from triton import language as tl
from triton.errors import TritonError

from app.engine.cudadecoder import Rotation, Target
from app.engine.decoderlayer import Norm

BLOCK_VALUES = 1024  # of a rotation or a gate, in one program
VALUES_OF_WARP, MOST_WARPS = 512, 16  # of a norm, whose row is one program's
FAILURES = (TritonError, SubprocessError, RuntimeError, OSError)  # of its compiler, and of the C compiler that it calls


@triton.jit
def _norm(x, added, weight, out, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, HAS_ADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    values = tl.load(x + row + columns, mask=inside, other=0.0)
    if HAS_ADDED:
        more = tl.load(added + row + columns, mask=inside, other=0.0)
        values = (values.to(tl.float32) + more.to(tl.float32)).to(values.dtype)  # rounded as it is kept
        tl.store(x + row + columns, values, mask=inside)
    exact = values.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(exact * exact) / HIDDEN + eps)
    factors = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + columns, (exact * scale * factors).to(values.dtype), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["places"])
def _rotate(
    qkv,
    cos,
    sin,
    query_weight,
    key_weight,
    places,
    query,
    keys,
    values,
    query_eps,
    key_eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    HAS_PLACES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, BLOCK_HALF)
    half: tl.constexpr = DIM // 2
    inside = (head < HEADS + 2 * KV_HEADS)[:, None] & (column < half)[None, :]
    at = (row * (HEADS + 2 * KV_HEADS) + head)[:, None] * DIM + column[None, :]
    first = tl.load(qkv + at, mask=inside, other=0.0)  # [heads, half]
    second = tl.load(qkv + at + half, mask=inside, other=0.0)
    low, high = first.to(tl.float32), second.to(tl.float32)
    is_query = (head < HEADS)[:, None]
    if HAS_NORMS:
        eps = tl.where(is_query, query_eps, key_eps)
        scale = 1 / tl.sqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1))[:, None] / DIM + eps)
        of_half = column < half
        query_low = tl.load(query_weight + column, mask=of_half, other=0.0).to(tl.float32)[None, :]
        query_high = tl.load(query_weight + half + column, mask=of_half, other=0.0).to(tl.float32)[None, :]
        key_low = tl.load(key_weight + column, mask=of_half, other=0.0).to(tl.float32)[None, :]
        key_high = tl.load(key_weight + half + column, mask=of_half, other=0.0).to(tl.float32)[None, :]
        low = low * scale * tl.where(is_query, query_low, key_low)
        high = high * scale * tl.where(is_query, query_high, key_high)
    angle = row * DIM + column
    cos_low = tl.load(cos + angle, mask=column < half, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos + angle + half, mask=column < half, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin + angle, mask=column < half, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin + angle + half, mask=column < half, other=0.0).to(tl.float32)[None, :]
    rotated_low = (low * cos_low + high * sin_low).to(first.dtype)
    rotated_high = (high * cos_high + low * sin_high).to(first.dtype)

    of_query = inside & is_query
    at = (row * HEADS + head)[:, None] * DIM + column[None, :]
    tl.store(query + at, rotated_low, mask=of_query)
    tl.store(query + at + half, rotated_high, mask=of_query)

    place = row
    if HAS_PLACES:
        place = tl.load(places + row)
    of_key = inside & (head >= HEADS)[:, None] & (head < HEADS + KV_HEADS)[:, None]
    at = (place * KV_HEADS + head - HEADS)[:, None] * DIM + column[None, :]
    tl.store(keys + at, rotated_low, mask=of_key)
    tl.store(keys + at + half, rotated_high, mask=of_key)

    of_value = inside & (head >= HEADS + KV_HEADS)[:, None]
    at = (place * KV_HEADS + head - HEADS - KV_HEADS)[:, None] * DIM + column[None, :]
    tl.store(values + at, first, mask=of_value)
    tl.store(values + at + half, second, mask=of_value)


@triton.jit
def _gate(gate, up, out, INNER: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * INNER + column
    inside = column < INNER
    gated = tl.load(gate + at, mask=inside, other=0.0)
    exact = gated.to(tl.float32)
    factor = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (exact / (1 + tl.exp(-exact)) * factor).to(gated.dtype), mask=inside)


class TritonKernels:
    """See `cudadecoder.Kernels`. The tensors' device is the current one."""

    def norm(self, x: torch.Tensor, added: torch.Tensor | None, norm: Norm) -> torch.Tensor:
        out, (rows, hidden) = torch.empty_like(x), x.shape
        block = triton.next_power_of_2(hidden)
        warps = max(1, min(MOST_WARPS, block // VALUES_OF_WARP))
        sizes: dict[str, Any] = {"HIDDEN": hidden, "BLOCK": block, "HAS_ADDED": added is not None, "num_warps": warps}
        _norm[(rows,)](x, x if added is None else added, norm.weight, out, norm.eps, **sizes)
        return out

    def rotate(self, rotation: Rotation, target: Target) -> torch.Tensor:
        qkv, heads, places, norms = rotation.qkv, rotation.heads, target.places, rotation.norms
        rows, all_heads, dim = qkv.shape
        query = qkv.new_empty(rows, heads, dim)
        half = triton.next_power_of_2(dim // 2)
        block = max(1, min(triton.next_power_of_2(all_heads), BLOCK_VALUES // (2 * half)))
        sizes: dict[str, Any] = {"HEADS": heads, "KV_HEADS": rotation.kv_heads, "DIM": dim, "BLOCK_HEADS": block, "BLOCK_HALF": half}
        has: dict[str, Any] = {"HAS_NORMS": norms is not None, "HAS_PLACES": places is not None}
        weights = (qkv, qkv) if norms is None else (norms[0].weight, norms[1].weight)  # not read without norms
        eps = (0.0, 0.0) if norms is None else (norms[0].eps, norms[1].eps)
        tensors = (rotation.cos, rotation.sin, *weights, qkv if places is None else places, query, target.keys, target.values)
        _rotate[(rows, triton.cdiv(all_heads, block))](qkv, *tensors, *eps, **sizes, **has)
        return query

    def gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        out, (rows, inner) = torch.empty_like(gate), gate.shape
        _gate[(rows, triton.cdiv(inner, BLOCK_VALUES))](gate, up, out, INNER=inner, BLOCK=BLOCK_VALUES)
        return out
