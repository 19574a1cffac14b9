"""A checkpoint in safetensors whose weights others rounded: what its config says of it, and its tensors, which stay in the files.

How a layer is stored is told by its tensors, and checked before any of them is read. Knows no model.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig

from app.engine.grouped import FLOAT_4, GroupedWeights, GroupFormat
from app.errors import SetupError, first_line
from app.models import packings
from app.models.files import weight_files
from app.models.method import method_of, saved_values
from app.models.packings import Levels, Shape
from app.models.source import Source
from app.models.stored import Stored, tensors_of
from app.models.tensors import tensor_problem

COMPRESSED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
BITS = (4, 8)
PARTS = tuple(
    "weight qweight qzeros scales g_idx weight_packed weight_shape weight_scale weight_scale_inv weight_zero_point weight_g_idx "
    "input_scale blocks".split()
)  # last parts of the names of a rounded layer's tensors
SIGNS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "blocks")  # those by one of which a layer is known to be rounded
WORDS, BYTES, UNSIGNED, INDICES = ("I32", "U32"), ("I8",), ("U8",), ("I32", "I64")  # types, as safetensors names them
FLOATS, FLOATS_8 = ("F16", "BF16", "F32"), ("F8_E4M3", "F8_E5M2")

Expected = dict[str, tuple[tuple[int, ...], tuple[str, ...]]]  # shape and types of a layer's tensors, by the last part of their names


@dataclass(frozen=True, slots=True)
class Rounding:
    """What config.json says of how the checkpoint was rounded."""

    method: str
    is_v2: bool  # of GPTQ: zeros are stored as they are
    has_zeros: bool  # of compressed-tensors: every rounded layer has them
    block: tuple[int, int] | None = None  # of FP8: outputs and inputs that share a scale


def rounding_of(path: str, config: PretrainedConfig) -> Rounding:
    """Raises `SetupError` that names what Litmus does not read."""
    values, method = saved_values(config), method_of(config) or ""
    problem = _problem(values, method)
    groups = values.get("config_groups") or {}
    weights = [(group.get("weights") or {}) for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    sizes = [size for size in (values.get("weight_block_size"), *(each.get("block_structure") for each in weights)) if size is not None]
    if any(not (isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)) for size in sizes):
        problem = f"its block size is {sizes[0]!r}, not two numbers"
    if problem is not None:
        raise SetupError(f"{path} is quantized by '{method}', and {problem}; serve another quantization, or the original weights")
    block = (int(sizes[0][0]), int(sizes[0][1])) if sizes else None
    has_zeros = bool(weights) and all(each.get("symmetric") is False for each in weights)
    return Rounding(method, values.get("checkpoint_format") == "gptq_v2", has_zeros, block)


def _problem(values: dict[str, Any], method: str) -> str | None:
    """What of the config Litmus does not read, in words. A value that is null or empty is the format's own default."""
    bits, form = values.get("bits") or values.get("w_bit") or 4, values.get("format")
    version, stored_as = values.get("version") or "gemm", values.get("checkpoint_format") or "gptq"
    sparse = values.get("sparsity_config")
    sparsity = (sparse.get("format") if isinstance(sparse, dict) else None) or "dense"
    known = {"gptq": BITS, "awq": (4,)}.get(method)
    problems = {
        f"its levels have {bits} bits": known is not None and str(bits) not in map(str, known),
        f"its version is {version}, only gemm is read": method == "awq" and str(version).lower() != "gemm",
        f"its checkpoint_format is {stored_as}, only gptq and gptq_v2 are read": method == "gptq" and stored_as not in ("gptq", "gptq_v2"),
        f"its format is {form or 'not named'}, only {', '.join(COMPRESSED_FORMATS)} are read": method == "compressed-tensors"
        and form not in COMPRESSED_FORMATS,
        "its transform_config changes what layers are given, which is not read": bool(values.get("transform_config")),
        f"its sparsity_config has the format {sparsity}, which is not read": sparsity != "dense",
    }
    return next((problem for problem, is_there in problems.items() if is_there), None)


class Checkpoint:
    """Raises `SetupError` for a checkpoint that is not read, or whose files cannot be."""

    def __init__(self, source: Source) -> None:
        config = source.config("model.path")
        self.path, self.rounding = source.path, rounding_of(source.path, config)
        self._stored: dict[str, Stored] = {}
        for file in weight_files(source):
            if file.suffix != ".safetensors":
                raise SetupError(f"{source.path} is quantized by '{self.rounding.method}', and its weights are not in safetensors")
            try:
                self._stored |= tensors_of(file)
            except (OSError, SafetensorError) as error:
                raise SetupError(f"{file} cannot be read, is it complete? {first_line(error)}") from error
        self.names = frozenset(self._stored)
        if any("language_model." in name for name in self.names):
            raise SetupError(
                f"{source.path} is a model of more than text that is quantized by '{self.rounding.method}', which Litmus does not load; "
                "serve the original weights with model.quantize, or a GGUF file"
            )

    def tensor(self, name: str) -> torch.Tensor:
        return self._stored[name].tensor()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def dtype(self, name: str) -> str:
        """As safetensors names it."""
        return self._stored[name].dtype

    def is_rounded(self, layer: str) -> bool:
        """Whether the linear layer with this name is."""
        return any(f"{layer}.{part}" in self.names for part in SIGNS)

    def format(self, layer: str, shape: Shape) -> GroupFormat | None:
        """How the engine keeps a rounded layer `[out, in]`; None if it is dequantized. Reads no weights. Raises `SetupError` unless its
        tensors are there and fit each other.
        """
        expected = self._expected(layer, shape)
        missing = [f"{layer}.{part}" for part in expected if f"{layer}.{part}" not in self.names]
        if missing:
            raise SetupError(f"{self.path} cannot be served: {tensor_problem(missing, [], [])}")
        wrong = [name for name, wanted in ((f"{layer}.{part}", each) for part, each in expected.items()) if not self._fits(name, *wanted)]
        if wrong:
            raise SetupError(f"{self.path} cannot be served: {tensor_problem([], [], wrong)}")
        if f"{layer}.blocks" in self.names:
            return FLOAT_4
        bits, inputs = self._bits(layer, shape), shape[1]
        if f"{layer}.qweight" in self.names:
            groups, order = self.shape(f"{layer}.scales")[0], f"{layer}.g_idx"
            if groups == 0 or (order in self.names and not packings.has_ordered_groups(self.tensor(order), groups)):
                return None
        else:
            scale = f"{layer}.weight_scale"
            if bits is None or f"{layer}.weight_g_idx" in self.names:
                return None
            groups = self.shape(scale)[1] if len(self.shape(scale)) == 2 else 1
        return None if bits is None else packings.format_of(inputs, groups, bits)

    def _fits(self, name: str, shape: tuple[int, ...], types: tuple[str, ...]) -> bool:
        return self.shape(name) == shape and self.dtype(name) in types

    def _bits(self, layer: str, shape: Shape) -> int | None:
        """Of the layer's levels, by the room that they take; None for floats, and where they have neither 4 nor 8."""
        word, (outputs, inputs) = packings.WORD_BITS, shape
        if f"{layer}.qweight" in self.names:
            packed = self.shape(f"{layer}.qweight")
            counts = (packed[-1], outputs) if self.rounding.method == "awq" else (packed[0], inputs)
        elif f"{layer}.weight_packed" in self.names:
            counts = (self.shape(f"{layer}.weight_packed")[-1], inputs)
        else:
            return 8 if self.dtype(f"{layer}.weight") in BYTES else None
        return next((bits for bits in BITS if -(-counts[1] * bits // word) == counts[0]), None)

    def _expected(self, layer: str, shape: Shape) -> Expected:
        if f"{layer}.qweight" in self.names:
            return self._expected_columns(layer, shape)
        if f"{layer}.weight_packed" in self.names:
            return self._expected_rows(layer, shape)
        if f"{layer}.blocks" in self.names:
            blocks = (shape[0], shape[1] // FLOAT_4.size)
            return {"blocks": ((*blocks, FLOAT_4.size // 2), UNSIGNED), "scales": (blocks, UNSIGNED)}
        weight = f"{layer}.weight"
        if weight not in self.names:
            return {"weight": (shape, BYTES)}
        if self.dtype(weight) not in (*BYTES, *FLOATS_8):
            raise SetupError(f"{self.path} cannot be served: {weight} has a scale, but is {self.dtype(weight)}, so it was not rounded")
        return {"weight": (shape, (self.dtype(weight),))} | self._expected_scale(layer, shape)

    def _expected_columns(self, layer: str, shape: Shape) -> Expected:
        """Of GPTQ and AWQ."""
        (outputs, inputs), word = shape, packings.WORD_BITS
        scales, bits = f"{layer}.scales", self._bits(layer, shape) or BITS[0]
        groups = self.shape(scales)[0] if scales in self.names and self.shape(scales) else 0
        packed = (inputs, outputs * bits // word) if self.rounding.method == "awq" else (-(-inputs * bits // word), outputs)
        order: Expected = {"g_idx": ((inputs,), INDICES)} if f"{layer}.g_idx" in self.names else {}
        zeros = (max(1, groups), outputs * bits // word)
        return {"qweight": (packed, WORDS), "scales": ((max(1, groups), outputs), FLOATS), "qzeros": (zeros, WORDS)} | order

    def _expected_rows(self, layer: str, shape: Shape) -> Expected:
        """Of compressed-tensors in words: zeros are packed along the outputs, or, by its older versions, in bytes."""
        (outputs, inputs), word = shape, packings.WORD_BITS
        bits, zero, scale = self._bits(layer, shape) or BITS[0], f"{layer}.weight_zero_point", f"{layer}.weight_scale"
        groups = self.shape(scale)[-1] if scale in self.names and self.shape(scale) else 1
        expected: Expected = {
            "weight_packed": ((outputs, -(-inputs * bits // word)), WORDS),
            "weight_scale": ((outputs, groups), FLOATS),
        }
        if self.rounding.has_zeros or zero in self.names:
            in_bytes = zero in self.names and self.dtype(zero) in BYTES
            packed = ((outputs, groups), BYTES) if in_bytes else ((-(-outputs * bits // word), groups), WORDS)
            expected["weight_zero_point"] = packed
        return expected

    def _expected_scale(self, layer: str, shape: Shape) -> Expected:
        """Of weights in bytes or 8-bit floats: one for all, one for each output, for each group, or for each block."""
        part = "weight_scale_inv" if f"{layer}.weight_scale_inv" in self.names else "weight_scale"
        found, block = self.shape(f"{layer}.{part}"), self.rounding.block
        if block is not None:
            return {part: ((-(-shape[0] // block[0]), -(-shape[1] // block[1])), FLOATS)}
        is_float = self.dtype(f"{layer}.weight") in FLOATS_8
        rows = found if prod(found) == 1 or found == (shape[0],) else (shape[0], 1 if is_float else found[-1])
        zero = f"{layer}.weight_zero_point"
        zeros: Expected = {"weight_zero_point": (rows, BYTES)} if not is_float and (self.rounding.has_zeros or zero in self.names) else {}
        return {part: (rows, FLOATS)} | zeros

    def grouped(self, layer: str, shape: Shape) -> GroupedWeights:
        """A layer `[out, in]` that has a `format`."""
        if f"{layer}.blocks" in self.names:
            return packings.unpack_float4(self.tensor(f"{layer}.blocks"), self.tensor(f"{layer}.scales"))
        return self._levels(layer, shape).grouped()

    def _levels(self, layer: str, shape: Shape) -> Levels:
        """Those of a layer `[out, in]` that has them."""
        parts = {part: self.tensor(f"{layer}.{part}") for part in PARTS if f"{layer}.{part}" in self.names}
        bits = self._bits(layer, shape)
        if bits is None:
            raise SetupError(f"{self.path} cannot be served: {layer} has levels of other than 4 or 8 bits")
        if "qweight" in parts:
            return packings.unpack_awq(parts) if self.rounding.method == "awq" else packings.unpack_gptq(parts, bits, self.rounding.is_v2)
        return packings.unpack_compressed(parts, shape, bits)

    def floats(self, layer: str, shape: Shape) -> torch.Tensor:
        """Dequantize a layer `[out, in]` to float32."""
        weight = f"{layer}.weight"
        if weight in self.names and self.dtype(weight) in FLOATS_8:
            scale = next(f"{layer}.{part}" for part in ("weight_scale_inv", "weight_scale") if f"{layer}.{part}" in self.names)
            return packings.unpack_float8(self.tensor(weight), self.tensor(scale), self.rounding.block)
        levels = self._levels(layer, shape)
        order = next((self.tensor(f"{layer}.{part}") for part in ("g_idx", "weight_g_idx") if f"{layer}.{part}" in self.names), None)
        groups = levels.scale.shape[1]
        group = torch.arange(shape[1]) // -(-shape[1] // groups) if order is None else order.long()
        if int(group.min()) < 0 or int(group.max()) >= groups:
            raise SetupError(f"{self.path} cannot be served: an input of {layer} is in a group that it does not have")
        return (levels.levels.float() - levels.zero[:, group]) * levels.scale[:, group]
