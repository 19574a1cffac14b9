"""The C structures of `csrc` that Python fills: each has the fields of its namesake in a header or source there, in their order.
`declare` gives the functions that take them their types. Tensors that are pointed at are the caller's to keep.
"""

import ctypes

import torch

from app.engine.packing import PackedWeights
from app.engine.scores import Scores

ACTIVATIONS = {"none": 0, "swish": 1, "gelu": 2, "limited swish": 3, "limited plus one": 4}  # numbered as in csrc/kernels.h
BINARY_OPS = {"none": 0, "mul": 1, "add": 2}
KINDS = {torch.bfloat16: 0, torch.float32: 1, torch.int8: 2}  # of rows and caches, numbered as in csrc/kernels.h


class CacheArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("page_stride", "head_stride", "page")),
        ("kind", ctypes.c_int),
    )


class ScoresArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_float) for name in ("scale", "cap")),
        ("sinks", ctypes.c_void_p),
        ("window", ctypes.c_int64),
    )


class DecodeArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((name, ctypes.c_int64) for name in ("query_stride", "key_stride", "value_stride")),
        ("cache", CacheArgs),
        *((name, ctypes.c_void_p) for name in ("pages", "firsts", "positions")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "dim")),
        ("scores", ScoresArgs),
        ("out", ctypes.c_void_p),
        ("kind", ctypes.c_int),
    )


class WriteArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("key", "value")),
        *((name, ctypes.c_int64) for name in ("key_stride", "value_stride")),
        ("cache", CacheArgs),
        ("pages", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("start", "rows", "kv_heads", "dim")),
        ("kind", ctypes.c_int),
    )


class PrefillArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((name, ctypes.c_int64) for name in ("query_stride", "key_stride", "key_head_stride", "value_stride", "value_head_stride")),
        ("pages", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("page_stride", "page")),
        *((name, ctypes.c_int64) for name in ("rows", "start", "heads", "kv_heads", "dim")),
        ("scores", ScoresArgs),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("kind", "key_kind")),
    )


class StatisticsArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "observer_logits")),
        *((name, ctypes.c_int64) for name in ("logits_stride", "observer_stride", "rows", "vocabulary")),
        *((name, ctypes.c_void_p) for name in ("targets", "out")),
        ("are_float", ctypes.c_int),
    )


class SamplingRowArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("uniform", "top_p")),
        *((name, ctypes.c_float) for name in ("inverse_temperature", "min_p")),
        ("top_k", ctypes.c_int64),
        ("allowed", ctypes.c_void_p),
        ("allowed_count", ctypes.c_int64),
    )


class SamplingArgs(ctypes.Structure):
    _fields_ = (
        ("scores", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "vocabulary")),
        ("row", ctypes.POINTER(SamplingRowArgs)),
        ("tokens", ctypes.POINTER(ctypes.c_int64)),
        ("are_float", ctypes.c_int),
    )


class WeightsArgs(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p),)


class GroupedWeightsArgs(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("bits", ctypes.c_int),
        ("group", ctypes.c_int),
        ("planes", ctypes.c_int),
        ("weight_scale", ctypes.c_float),
    )


class EpilogueArgs(ctypes.Structure):
    _fields_ = (
        ("bias", ctypes.c_void_p),
        ("activation", ctypes.c_int),
        ("binary_op", ctypes.c_int),
        ("operand", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("is_float", ctypes.c_int),
        *((name, ctypes.c_float) for name in ("steepness", "limit")),
    )


class LinearArgs(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.POINTER(WeightsArgs)),
        ("groups", ctypes.POINTER(GroupedWeightsArgs)),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


class ExpertsArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.POINTER(LinearArgs)) for name in ("gate", "up", "down")),
        *((name, ctypes.c_int64) for name in ("experts", "hidden", "width")),
        *((name, EpilogueArgs) for name in ("gated", "product")),
        *((name, ctypes.c_void_p) for name in ("counts", "x", "activated", "out")),
    )


class MixtureArgs(ctypes.Structure):
    _fields_ = (
        ("router", LinearArgs),
        ("chosen", ctypes.c_int64),
        ("of_all", ctypes.c_int),
        ("experts", ExpertsArgs),
        *((name, ctypes.c_void_p) for name in ("given", "given_shares")),
    )


class ConvolutionArgs(ctypes.Structure):
    _fields_ = (("taps", ctypes.c_int64), *((name, ctypes.c_void_p) for name in ("weights", "bias")))


class LayerArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input_norm", "mlp_norm", "attended_norm", "fed_norm", "query_norm", "key_norm")),
        ("qkv", LinearArgs * 3),
        ("convolution", ctypes.POINTER(ConvolutionArgs)),
        *((name, LinearArgs) for name in ("out", "gate", "up", "down")),
        ("mixture", ctypes.POINTER(MixtureArgs)),
        *((name, CacheArgs) for name in ("slots", "texts")),
        ("scores", ScoresArgs),
        *((name, ctypes.c_int64) for name in ("norms_together", "rotation")),
        ("activation", ctypes.c_int),
    )


class SpanArgs(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("row", "rows", "start", "first", "is_text"))


class DecoderArgs(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(LayerArgs)),
        *((name, ctypes.c_int64) for name in ("layer_count", "hidden", "heads", "kv_heads", "dim", "intermediate")),
        *((name, ctypes.c_float) for name in ("eps", "shift", "residual_scale")),
        ("norm", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "decodes", "spans")),
        *((name, ctypes.c_void_p) for name in ("pages", "firsts", "positions")),
        ("span", ctypes.POINTER(SpanArgs)),
        *((name, ctypes.c_void_p * 2) for name in ("cos", "sin")),
        *((name, ctypes.c_void_p) for name in ("query_scale", "x", "out")),
    )


class DeltaRowsArgs(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("row", "rows", "source", "target"))


class DeltaArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("mixed", "taps", "decay", "rate", "steepness", "shift")),
        *((name, ctypes.c_int64) for name in ("tap_count", "channels", "key_heads", "heads", "key_dim", "value_dim")),
        ("kept", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("sequence", ctypes.POINTER(DeltaRowsArgs)),
        *((name, ctypes.c_int64) for name in ("rows", "sequences")),
        ("rounds", ctypes.c_int),
        ("out", ctypes.c_void_p),
    )


class RoundingArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "levels", "scale", "minimum")),
        *((name, ctypes.c_int64) for name in ("rows", "inputs")),
        *((name, ctypes.c_int) for name in ("bits", "kind")),
    )


def cache_args(keys: torch.Tensor, values: torch.Tensor) -> CacheArgs:
    """Keys and values `[pages, kv_heads, page, elements of a head]` of one layer, with the same strides."""
    return CacheArgs(keys.data_ptr(), values.data_ptr(), *keys.stride()[:2], keys.shape[2], KINDS[keys.dtype])


def scores_args(scores: Scores, dim: int, sinks: torch.Tensor | None = None) -> ScoresArgs:
    """For heads of `dim` values. `sinks`: those of the scores in float32, contiguous, kept by the caller."""
    return ScoresArgs(dim**-0.5 if scores.scale is None else scores.scale, scores.cap or 0, address(sinks), scores.window or 0)


def weights_args(weights: PackedWeights) -> WeightsArgs:
    """For weights that are not grouped."""
    return WeightsArgs(weights.data.data_ptr())


def groups_args(weights: PackedWeights) -> GroupedWeightsArgs:
    size, planes = 1 << weights.log2_group, weights.input_bits // 8
    return GroupedWeightsArgs(weights.data.data_ptr(), address(weights.table), weights.bits, size, planes, weights.weight_scale)


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def declare(library: ctypes.CDLL) -> None:
    """Tell `library` the arguments of its functions, and what they return where it is no int."""
    pointer, int64, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    weights, groups, epilogue = (ctypes.POINTER(structure) for structure in (WeightsArgs, GroupedWeightsArgs, EpilogueArgs))
    library.linear.argtypes = [pointer, int64, int64, weights, epilogue, threads]
    library.linear_grouped.argtypes = [pointer, int64, int64, groups, epilogue, threads]
    library.rms_norm.argtypes = [pointer, int64, int64, pointer, ctypes.c_float, ctypes.c_float, pointer, threads]
    library.attend_decode.argtypes = [ctypes.POINTER(DecodeArgs), threads]
    library.attend_prefill.argtypes = [ctypes.POINTER(PrefillArgs), threads]
    library.write_cache.argtypes = [ctypes.POINTER(WriteArgs), threads]
    library.token_statistics.argtypes = [ctypes.POINTER(StatisticsArgs), threads]
    library.sample_tokens.argtypes = [ctypes.POINTER(SamplingArgs), threads]
    library.run_decoder.argtypes = [ctypes.POINTER(DecoderArgs), threads]
    library.run_delta_rule.argtypes = [ctypes.POINTER(DeltaArgs), threads]
    library.run_experts.argtypes = [ctypes.POINTER(ExpertsArgs), threads]
    library.run_mixture.argtypes = [ctypes.POINTER(MixtureArgs), pointer, int64, pointer, pointer, threads]
    library.round_weights.argtypes = [ctypes.POINTER(RoundingArgs), threads]
    library.block_columns.argtypes = library.has_dot_products.argtypes = []
    library.choose_dot_products.argtypes = [ctypes.c_int]
    library.block_columns.restype = int64
    for function in (library.rms_norm, library.write_cache, library.token_statistics, library.choose_dot_products, library.round_weights):
        function.restype = None
