"""Python interface to the compiled kernels of `csrc`: bfloat16, 4-bit and 8-bit linear layers, RMSNorm, attention, sampling, statistics.

`kernel()` returns the process's `Kernel`, or None where it cannot be built (no x86-64, no gcc, or an OpenMP other than GCC's in the
process); the reason is logged. Weights come packed by `app.engine.packing`. Knows no layer and no model.
"""

import ctypes
import logging
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUTanh, SiLUActivation

from app.engine import codepath, packing
from app.engine.compiler import CompileError, library_path
from app.engine.grouped import GROUP_SIZE, GroupedWeights
from app.engine.packing import PackedWeights
from app.engine.rows import DecodeRows, PrefillRows, dense
from app.engine.structures import (
    ACTIVATIONS,
    BINARY_OPS,
    KINDS,
    DecodeArgs,
    DecoderArgs,
    DeltaArgs,
    EpilogueArgs,
    ExpertsArgs,
    MixtureArgs,
    PrefillArgs,
    RoundingArgs,
    SamplingArgs,
    SamplingRowArgs,
    StatisticsArgs,
    WriteArgs,
    address,
    cache_args,
    declare,
    groups_args,
    scores_args,
    weights_args,
)

log = logging.getLogger(__name__)

SWISH = nn.SiLU | SiLUActivation
LOGIT_TYPES = (torch.bfloat16, torch.float32)


class Epilogue(NamedTuple):
    """What is applied to a layer's float32 sums before they are written, in this order: bias, activation, multiply or add `operand`."""

    outputs: int
    bias: torch.Tensor | None = None  # [outputs, padded to whole blocks], float32
    activation: str = "none"  # "none", "swish" or "gelu"
    binary_op: str = "none"  # a key of BINARY_OPS
    operand: torch.Tensor | None = None  # [rows, outputs], bfloat16
    in_float32: bool = False  # the outputs; else in bfloat16


class Kernel:
    """The compiled functions. Products are summed in float32, and a row's result does not depend on the rows beside it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        declare(library)
        self.columns = int(library.block_columns())  # outputs in a block of packed weights
        self.name = Path(library._name).stem  # of this build for this processor
        self._library = library

    @property
    def has_dot_products(self) -> bool:
        """Whether the processor multiplies pairs of bfloat16 by itself."""
        return bool(self._library.has_dot_products())

    def choose_dot_products(self, chosen: bool) -> None:
        """Multiply bfloat16 weights that way, or in float32. For the whole process."""
        self._library.choose_dot_products(chosen)

    def linear(self, x: torch.Tensor, weights: PackedWeights, epilogue: Epilogue, threads: int | None = None) -> torch.Tensor:
        """Return `x` W^T after the `epilogue`: `[..., inputs]` bfloat16 to `[..., outputs]`, in bfloat16 or float32.
        Without `threads` by as many as torch uses. Raises `MemoryError`.
        """
        inputs = weights.inputs
        if x.shape[-1] < inputs:  # the packed weights are padded to an even number of inputs
            x = F.pad(x, (0, 1))
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], epilogue.outputs, dtype=torch.float32 if epilogue.in_float32 else torch.bfloat16)
        operand = None if epilogue.operand is None else epilogue.operand.contiguous()
        end = EpilogueArgs(
            address(epilogue.bias),
            ACTIVATIONS[epilogue.activation],
            BINARY_OPS[epilogue.binary_op],
            address(operand),
            out.data_ptr(),
            epilogue.outputs,
            epilogue.outputs,
            epilogue.in_float32,
        )
        rows = (x.data_ptr(), x.numel() // inputs, inputs)
        if weights.is_grouped:
            failed = self._library.linear_grouped(*rows, groups_args(weights), end, threads or torch.get_num_threads())
        else:
            failed = self._library.linear(*rows, weights_args(weights), end, threads or torch.get_num_threads())
        if failed:
            raise MemoryError("out of memory for a layer's activations")
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, shift: float = 0) -> torch.Tensor:
        """Return the RMSNorm of `x` `[..., inputs]` in bfloat16 (arXiv 1910.07467), whose weights are `weight` + `shift`."""
        x = x.contiguous()
        out = torch.empty_like(x)
        rows, threads = x.numel() // x.shape[-1], torch.get_num_threads()
        self._library.rms_norm(x.data_ptr(), rows, x.shape[-1], weight.data_ptr(), eps, shift, out.data_ptr(), threads)
        return out

    def attend_decode(self, batch: DecodeRows) -> torch.Tensor:
        """Write the rows' keys and values to the cache, and return each row's attention over its sequence, `[rows, heads, dim]`.

        Raises `MemoryError`.
        """
        rows, heads, dim = batch.query.shape
        kv_heads, sinks = batch.key.shape[1], batch.scores.float_sinks
        out = torch.empty(rows, heads, dim, dtype=batch.query.dtype)
        args = DecodeArgs(
            *(part.data_ptr() for part in (batch.query, batch.key, batch.value)),
            *(part.stride(0) for part in (batch.query, batch.key, batch.value)),
            cache_args(batch.key_cache, batch.value_cache),
            *(part.data_ptr() for part in (batch.pages, batch.firsts, batch.positions)),
            *(rows, heads, kv_heads, dim),
            scores_args(batch.scores, dim, sinks),
            out.data_ptr(),
            KINDS[batch.query.dtype],
        )
        if self._library.attend_decode(args, torch.get_num_threads()):
            raise MemoryError("out of memory for the attention scores of a decode step")
        return out

    def attend_prefill(self, batch: PrefillRows) -> torch.Tensor:
        """Write the rows' keys and values to the cache, if there is one, and return each row's attention over itself and the positions
        before it, `[rows, heads, dim]`. Raises `MemoryError`.
        """
        query, key, value = batch.query, batch.key, batch.value
        if batch.cache is not None:
            self._write(batch, *batch.cache)
            key, value = batch.cache
        rows, heads, dim = query.shape
        out, sinks = torch.empty(rows, heads, dim, dtype=query.dtype), batch.scores.float_sinks
        tokens, head = (0, 1) if batch.cache is None else (2, 1)  # the dimensions of keys and values
        args = PrefillArgs(
            *(part.data_ptr() for part in (query, key, value)),
            query.stride(0),
            *(part.stride(axis) for part in (key, value) for axis in (tokens, head)),
            address(batch.pages),
            *(key.stride(0), key.shape[2]),
            *(rows, batch.start, heads, key.shape[1], dim),
            scores_args(batch.scores, dim, sinks),
            out.data_ptr(),
            *(KINDS[query.dtype], KINDS[key.dtype]),
        )
        if self._library.attend_prefill(args, torch.get_num_threads()):
            raise MemoryError("out of memory for the attention scores of a prompt")
        return out

    def _write(self, batch: PrefillRows, keys: torch.Tensor, values: torch.Tensor) -> None:
        key, value = dense(batch.key), dense(batch.value)
        rows, kv_heads, dim = key.shape
        args = WriteArgs(
            *(part.data_ptr() for part in (key, value)),
            *(part.stride(0) for part in (key, value)),
            cache_args(keys, values),
            address(batch.pages),
            *(batch.start, rows, kv_heads, dim),
            KINDS[key.dtype],
        )
        self._library.write_cache(args, torch.get_num_threads())

    def run_decoder(self, args: DecoderArgs) -> None:
        """Run all layers; see decoder.c. Raises `MemoryError`."""
        if self._library.run_decoder(args, torch.get_num_threads()):
            raise MemoryError("out of memory for the activations of a step")

    def run_delta_rule(self, args: DeltaArgs) -> None:
        """Run it for some sequences; see delta.c. Raises `MemoryError`."""
        if self._library.run_delta_rule(args, torch.get_num_threads()):
            raise MemoryError("out of memory for the states of a layer")

    def run_experts(self, args: ExpertsArgs) -> None:
        """Run the experts of a layer; see mixture.c. Raises `MemoryError`."""
        if self._library.run_experts(args, torch.get_num_threads()):
            raise MemoryError("out of memory for the activations of a step")

    def run_mixture(self, args: MixtureArgs, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
        """Write to `out` what a mixture makes of `x`, and the `residual`, all `[rows, hidden]`; see mixture.c. Raises `MemoryError`."""
        if self._library.run_mixture(args, x.data_ptr(), len(x), residual.data_ptr(), out.data_ptr(), torch.get_num_threads()):
            raise MemoryError("out of memory for the activations of a step")

    def round_weights(self, weight: torch.Tensor, bits: int) -> GroupedWeights:
        """Round `[out, in]` in bfloat16 or float32 to groups of 32 levels of 4 or 8 bits; see rounding.c."""
        weight = weight.contiguous()
        outputs, inputs = weight.shape
        levels, scale = torch.empty(outputs, inputs, dtype=torch.uint8), torch.empty(outputs, inputs // GROUP_SIZE)
        minimum = torch.empty_like(scale)
        pointers = (part.data_ptr() for part in (weight, levels, scale, minimum))
        args = RoundingArgs(*pointers, outputs, inputs, bits, KINDS[weight.dtype])
        self._library.round_weights(args, torch.get_num_threads())
        return GroupedWeights(levels, scale, minimum, bits)

    def sample_tokens(self, scores: torch.Tensor, rows: Sequence[SamplingRowArgs]) -> list[int]:
        """Draw the next token of each row of `scores` `[rows, vocab]`, in bfloat16 or float32. Raises `MemoryError`."""
        scores = scores.contiguous()
        tokens = (ctypes.c_int64 * len(rows))()
        row_args = (SamplingRowArgs * len(rows))(*rows)
        args = SamplingArgs(scores.data_ptr(), *scores.shape, row_args, tokens, scores.dtype == torch.float32)
        if self._library.sample_tokens(args, torch.get_num_threads()):
            raise MemoryError("out of memory for the weights of a vocabulary")
        return list(tokens)

    def token_statistics(self, logits: torch.Tensor, targets: torch.Tensor, observer_logits: torch.Tensor | None) -> torch.Tensor:
        """Return the statistics that scoring needs, `[rows, 6]` in float64, of `logits` `[rows, vocab]`, bfloat16 or float32, and
        `targets` `[rows]`.

        The columns are: the target's log-probability, its rank, the mean and the variance of log p under p, and, with
        `observer_logits`, the cross-entropy and the observer's log-probability of the target (0 without).
        """
        out = torch.empty(len(logits), 6, dtype=torch.float64)
        vocabulary = logits.shape[1] if observer_logits is None else min(logits.shape[1], observer_logits.shape[1])
        if observer_logits is not None and observer_logits.dtype != logits.dtype:
            logits, observer_logits = logits.float(), observer_logits.float()
        observer_stride = 0 if observer_logits is None else observer_logits.stride(0)
        sizes = (logits.stride(0), observer_stride, len(logits), vocabulary)
        args = StatisticsArgs(
            logits.data_ptr(), address(observer_logits), *sizes, targets.data_ptr(), out.data_ptr(), logits.dtype == torch.float32
        )
        self._library.token_statistics(args, torch.get_num_threads())
        return out


def activation_of(module: nn.Module) -> str:
    """The activation that is the module's; "none" if it is no such."""
    is_gelu = isinstance(module, GELUTanh) or (isinstance(module, nn.GELU) and module.approximate == "tanh")
    return "swish" if isinstance(module, SWISH) else "gelu" if is_gelu else "none"


@cache
def kernel() -> Kernel | None:
    """Compile, load and check the kernel once per process; None where it cannot be used, for a reason that is logged."""
    try:
        path = library_path()
        candidate = Kernel(ctypes.CDLL(str(path)))
    except (OSError, subprocess.SubprocessError, CompileError) as error:
        log.warning("no compiled kernel, so bfloat16 layers run on oneDNN, about half as fast: %s", error)
        return None
    if candidate.has_dot_products:
        candidate.choose_dot_products(codepath.uses_dot_products(path, lambda: _time_products(candidate)))
    return candidate if _agrees_with_torch(candidate) else None


def kernel_for(logits: torch.Tensor) -> Kernel | None:
    """The kernel, if it can sample from these logits and compute their statistics."""
    return kernel() if logits.device.type == "cpu" and logits.dtype in LOGIT_TYPES else None


def _time_products(candidate: Kernel) -> dict[str, float]:
    """Return the milliseconds that decode steps of 1, 8 and 32 rows take a layer of 1,024 inputs, added, for each way to multiply."""
    packed = packing.pack_bfloat16(torch.ones(1024, 1024, dtype=torch.bfloat16), candidate.columns)
    batches = [torch.ones(rows, 1024, dtype=torch.bfloat16) for rows in (1, 8, 32)]
    times = {}
    for name, chosen in (("float32", False), ("dot_products", True)):
        candidate.choose_dot_products(chosen)
        times[name] = 1e3 * sum(min(_time_linear(candidate, x, packed) for _ in range(7)) for x in batches)
    return times


def _time_linear(candidate: Kernel, x: torch.Tensor, packed: PackedWeights) -> float:
    start = time.perf_counter()
    candidate.linear(x, packed, Epilogue(1024))
    return time.perf_counter() - start


def _agrees_with_torch(candidate: Kernel) -> bool:
    """Whether the kernel's products are right on this machine."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(size, generator=generator).bfloat16() for size in ((2 * candidate.columns + 3, 96), (17, 96)))
    cases = [(packing.pack_bfloat16(weight, candidate.columns), weight.float())]
    table = tuple(range(0, 256, 17))  # of sixteen levels
    for bits, groups, stand_for in ((4, 3, None), (4, 6, None), (4, 3, table), (8, 3, None), (8, 6, None)):
        levels = torch.randint(1 << bits, weight.shape, generator=generator, dtype=torch.uint8)
        scale = torch.rand(len(weight), groups, generator=generator)
        grouped = GroupedWeights(levels, scale, -scale * (1 << bits - 1), bits, stand_for)
        packed = packing.pack_grouped(grouped, candidate.columns)
        planes = (16,) if (bits, groups) == (8, 6) else (8, 16)
        cases += [(replace(packed, input_bits=input_bits), grouped.dequantize()) for input_bits in planes]
    for packed, plain in cases:
        expected = x.float() @ plain.T
        product = candidate.linear(x, packed, Epilogue(len(weight))).float()
        if not torch.allclose(product, expected, atol=0.02 * expected.abs().max().item(), rtol=0.01):
            log.error("the compiled kernel computes wrong products on this machine, so bfloat16 layers run on oneDNN")
            return False
    return True
