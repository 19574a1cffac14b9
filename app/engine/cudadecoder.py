"""The layers of a Llama-shaped decoder on CUDA, with all that lies between their products and the attention in three kernels.

By torch's operations it is a dozen kernels a layer, each of which reads and writes the activations once more. `PlainKernels` says what the
three compute; `tritonkernels.py` has them in Triton. Knows no requests.
"""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import torch
from torch.nn import functional as F

from app.engine import varlen
from app.engine.decoderlayer import Gated, Layer, Norm
from app.engine.fused import FusedDecoder, mix
from app.engine.kernel import SWISH
from app.engine.layout import Call
from app.engine.mixture import CompiledMixture
from app.errors import first_line

log = logging.getLogger(__name__)

MAX_PROBE_ERROR = 1e-2  # of the kernels' outputs for random numbers, relative to their norm
PROBED_ROWS = 3


@dataclass(frozen=True, slots=True)
class Rotation:
    """Queries, keys and values of some rows, `qkv` `[rows, heads + 2 kv_heads, dim]`, before queries and keys are normed, head by head, and
    rotated. `cos` and `sin` `[rows, dim]`, the first half of `sin` negated. All contiguous.
    """

    qkv: torch.Tensor
    heads: int
    cos: torch.Tensor
    sin: torch.Tensor
    norms: tuple[Norm, Norm] | None  # of queries and of keys

    @property
    def kv_heads(self) -> int:
        return (self.qkv.shape[1] - self.heads) // 2


@dataclass(frozen=True, slots=True)
class Target:
    """Where keys and values of rows are written: contiguous `[tokens, kv_heads, dim]`, and the token of each row, int64 `[rows]`; None: the
    row's own number.
    """

    keys: torch.Tensor
    values: torch.Tensor
    places: torch.Tensor | None


class Kernels(Protocol):
    def norm(self, x: torch.Tensor, added: torch.Tensor | None, norm: Norm) -> torch.Tensor:
        """Add `added` to `x` `[rows, hidden]`, which changes, and return the norm of it."""

    def rotate(self, rotation: Rotation, target: Target) -> torch.Tensor:
        """Return the queries `[rows, heads, dim]`; keys and values are written to the target."""

    def gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up, both `[rows, inner]`."""


class PlainKernels:
    """What the kernels compute, by torch's operations: for comparison."""

    def norm(self, x: torch.Tensor, added: torch.Tensor | None, norm: Norm) -> torch.Tensor:
        return norm(x if added is None else x.add_(added))

    def rotate(self, rotation: Rotation, target: Target) -> torch.Tensor:
        heads, kv_heads = rotation.heads, rotation.kv_heads
        query, key, value = rotation.qkv.split([heads, kv_heads, kv_heads], 1)
        if rotation.norms is not None:
            query, key = rotation.norms[0](query), rotation.norms[1](key)
        cos, sin = rotation.cos[:, None], rotation.sin[:, None]
        query, key = (torch.addcmul(part * cos, part.roll(part.shape[-1] // 2, -1), sin) for part in (query, key))
        places = torch.arange(len(query), device=query.device) if target.places is None else target.places
        target.keys.index_copy_(0, places, key)
        target.values.index_copy_(0, places, value)
        return query

    def gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return F.silu(gate) * up


class CudaDecoder:
    """For a model on one device, whose cache is laid out for torch's flash kernel."""

    def __init__(self, decoder: FusedDecoder, kernels: Kernels) -> None:
        self._layers, self._attention = decoder.layers, decoder.attention
        norms = [*(norm for layer in decoder.layers for norm in layer.own_norms), decoder.norm]
        self._first_norm, self._norms = norms[0], list(zip(norms[1::2], norms[2::2], strict=True))
        self._heads, self._dim, self.kernels = decoder.heads, decoder.dim, kernels

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Compute hidden states `[rows, hidden]` of embeddings `x` `[rows, hidden]`, which are changed. `cos` and `sin` `[rows, dim]`, the
        first half of `sin` negated.
        """
        with torch.cuda.device_of(x):  # where Triton launches its kernels
            return self._compute(x, cos.contiguous(), sin.contiguous())

    def _compute(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        calls, kernels = self._attention.running_calls(x.device), self.kernels
        h = kernels.norm(x, None, self._first_norm)
        for index, (layer, norms) in enumerate(zip(self._layers, self._norms, strict=True)):
            qkv = layer.qkv(h).view(len(h), -1, self._dim)
            rotations = [Rotation(qkv[call.rows], self._heads, cos[call.rows], sin[call.rows], layer.head_norms) for call in calls]
            parts = [self._attend(index, layer, *each) for each in zip(calls, rotations, strict=True)]
            attended = parts[0] if len(parts) == 1 else torch.cat(parts)
            h = kernels.norm(x, layer.out(attended.reshape(len(h), -1)), norms[0])
            h = kernels.norm(x, self._feed(layer, h), norms[1])
        return h

    def _feed(self, layer: Layer, h: torch.Tensor) -> torch.Tensor:
        mlp = layer.mlp
        if isinstance(mlp, Gated):
            fed: torch.Tensor = mlp.down(self.kernels.gate(mlp.gate(h), mlp.up(h)))
            return fed
        assert not isinstance(mlp, CompiledMixture)
        return mix(mlp, h)

    def _attend(self, index: int, layer: Layer, call: Call, rotation: Rotation) -> torch.Tensor:
        cached = self._attention.cache_of(call).by_tokens[index]
        if call.places is None:
            shape = len(rotation.qkv), rotation.kv_heads, self._dim
            target = Target(rotation.qkv.new_empty(shape), rotation.qkv.new_empty(shape), None)
        else:
            target = Target(cached.keys.flatten(0, 1), cached.values.flatten(0, 1), call.places)
        query = self.kernels.rotate(rotation, target)
        return varlen.attend(query, cached, (target.keys, target.values), call.reads, layer.scores)


def create_cuda_decoder(decoder: FusedDecoder) -> CudaDecoder | None:
    """None where Triton is absent, or its kernels do not run on its device or compute something else: the log says so."""
    acts = [layer.mlp.act for layer in decoder.layers if isinstance(layer.mlp, Gated)]
    if not all(isinstance(act, SWISH) for act in acts) or find_spec("triton") is None:
        return None
    from app.engine.tritonkernels import FAILURES, TritonKernels

    kernels = TritonKernels()
    try:
        with torch.cuda.device_of(decoder.norm.weight):
            error = probe(kernels, decoder)
    except FAILURES as problem:
        log.warning("Triton's kernels do not run here, and are not used: %s", first_line(problem))
        return None
    if not error <= MAX_PROBE_ERROR:
        log.warning("Triton's kernels are wrong by %.1f%% here, and are not used", 100 * error)
        return None
    return CudaDecoder(decoder, kernels)


@torch.inference_mode()
def probe(kernels: Kernels, decoder: FusedDecoder) -> float:
    """How far the kernels' outputs for random numbers in the decoder's shapes are from `PlainKernels`', relative to their norm: the largest
    difference, with every part of a step compiled that the decoder will run.
    """
    plain, layer = PlainKernels(), decoder.layers[0]
    input_norm, mlp_norm = layer.own_norms
    weight = input_norm.weight
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)

    x, added = numbers(PROBED_ROWS, len(weight)), numbers(PROBED_ROWS, len(weight))
    gate, up = numbers(PROBED_ROWS, decoder.inner), numbers(PROBED_ROWS, decoder.inner)
    shape = (PROBED_ROWS, decoder.kv_heads, decoder.dim)
    rotation = Rotation(
        numbers(PROBED_ROWS, decoder.heads + 2 * decoder.kv_heads, decoder.dim),
        decoder.heads,
        numbers(PROBED_ROWS, decoder.dim),
        numbers(PROBED_ROWS, decoder.dim),
        layer.head_norms,
    )
    places = torch.tensor([4, 0, 7], device=weight.device)
    outputs: list[list[torch.Tensor]] = []
    for each in (kernels, plain):
        first, second = x.clone(), x.clone()
        cached, own = ([weight.new_zeros(8, *shape[1:]) for _ in range(2)] for _ in range(2))
        outputs.append(
            [
                each.norm(first, None, input_norm),
                each.norm(second, added, mlp_norm),
                first,
                second,
                each.rotate(rotation, Target(cached[0], cached[1], places)),
                each.rotate(rotation, Target(own[0], own[1], None)),
                *cached,
                *own,
                each.gate(gate, up),
            ]
        )
    return max(float((found.float() - expected.float()).norm() / expected.float().norm()) for found, expected in zip(*outputs, strict=True))
