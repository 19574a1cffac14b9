"""Checkpoints in safetensors whose weights others rounded: GPTQ, AWQ, compressed-tensors, FP8.

As with a GGUF file, levels of 4 and 8 bits stay in the files until the engine packs them, layer by layer, and are not rounded again. What
has no place in the engine's groups is dequantized, and so is FP8.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from app.engine.grouped import GroupedLinear, GroupedWeights, GroupFormat
from app.errors import SetupError, first_line
from app.models import packings
from app.models.files import weight_files
from app.models.method import method_of, saved_values
from app.models.packings import Levels, Shape
from app.models.source import Source
from app.models.tensors import tensor_problem

COMPRESSED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
BITS = (4, 8)
PARTS = tuple(
    "weight qweight qzeros scales g_idx weight_packed weight_shape weight_scale weight_scale_inv weight_zero_point weight_g_idx "
    "input_scale".split()
)  # last parts of the names of a rounded layer's tensors
BUFFERS = ("rotary_emb.inv_freq", "masked_bias")  # ends of names that older checkpoints have beside their weights


@dataclass(frozen=True, slots=True)
class Rounding:
    """What config.json says of how the checkpoint was rounded."""

    method: str
    bits: int  # of GPTQ's and AWQ's levels; those of others are told by their tensors
    is_v2: bool  # of GPTQ: zeros are stored as they are
    block: tuple[int, int] | None = None  # of FP8: outputs and inputs that share a scale


def rounding_of(path: str, config: PretrainedConfig) -> Rounding:
    """Raises `SetupError` that names what Litmus does not read."""
    values, method = saved_values(config), method_of(config) or ""
    bits, form = values.get("bits", values.get("w_bit", 4)), str(values.get("format", ""))
    problem = None
    if method in ("awq", "gptq") and bits not in (BITS if method == "gptq" else (4,)):
        problem = f"its levels have {bits} bits"
    elif method == "awq" and str(values.get("version", "gemm")).lower() != "gemm":
        problem = f"its version is {values['version']}, only gemm is read"
    elif method == "gptq" and values.get("checkpoint_format", "gptq") not in ("gptq", "gptq_v2"):
        problem = f"its checkpoint_format is {values['checkpoint_format']}, only gptq and gptq_v2 are read"
    elif method == "compressed-tensors" and form not in COMPRESSED_FORMATS:
        problem = f"its format is {form or 'not named'}, only {', '.join(COMPRESSED_FORMATS)} are read"
    if problem is not None:
        raise SetupError(f"{path} is quantized by '{method}', and {problem}; serve another quantization, or the original weights")
    return Rounding(method, int(bits), values.get("checkpoint_format") == "gptq_v2", _block_of(values))


def _block_of(values: dict[str, Any]) -> tuple[int, int] | None:
    groups = (values.get("config_groups") or {}).values()
    sizes = [values.get("weight_block_size"), *((group.get("weights") or {}).get("block_structure") for group in groups)]
    found = next((size for size in sizes if size), None)
    return None if found is None else (int(found[0]), int(found[1]))


class Checkpoint:
    """The tensors of a checkpoint, which stay in its files. Raises `SetupError` if those cannot be read."""

    def __init__(self, source: Source) -> None:
        config = source.config("model.path")
        self.path, self.rounding = source.path, rounding_of(source.path, config)
        self._files: dict[str, Any] = {}
        for file in weight_files(source):
            if file.suffix != ".safetensors":
                raise SetupError(f"{source.path} is quantized by '{self.rounding.method}', and its weights are not in safetensors")
            try:
                opened: Any = safe_open(file, "pt")
            except (OSError, SafetensorError) as error:
                raise SetupError(f"{file} cannot be read, is it complete? {first_line(error)}") from error
            self._files |= dict.fromkeys(opened.keys(), opened)
        self.names = frozenset(self._files)

    def tensor(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._files[name].get_tensor(name)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name].get_slice(name).get_shape())

    def is_rounded(self, layer: str) -> bool:
        """Whether the linear layer with this name is."""
        return any(f"{layer}.{part}" in self.names for part in ("qweight", "weight_packed", "weight_scale", "weight_scale_inv"))

    def check(self, layer: str, shape: Shape) -> None:
        """Raises `SetupError` unless the tensors of a rounded layer `[out, in]` are there and fit each other."""
        shapes = self._shapes(layer, shape)
        missing = [f"{layer}.{part}" for part in shapes if f"{layer}.{part}" not in self.names]
        misshapen = [f"{layer}.{part}" for part, wanted in shapes.items() if not missing and self.shape(f"{layer}.{part}") != wanted]
        if missing or misshapen:
            raise SetupError(f"{self.path} cannot be served: {tensor_problem(missing, [], misshapen)}")

    def _shapes(self, layer: str, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Of the layer's tensors, by the last part of their names."""
        (outputs, inputs), per_word = shape, packings.WORD_BITS // self.rounding.bits
        if f"{layer}.qweight" in self.names:
            scales = f"{layer}.scales"
            groups = self.shape(scales)[0] if scales in self.names else 0
            packed = (inputs, outputs // per_word) if self.rounding.method == "awq" else (inputs // per_word, outputs)
            return {"qweight": packed, "qzeros": (groups, outputs // per_word), "scales": (groups, outputs)}
        if f"{layer}.weight_packed" in self.names:
            words = -(-inputs * self._bits(layer, inputs) // packings.WORD_BITS)
            scale = f"{layer}.weight_scale"
            return {"weight_packed": (outputs, words), "weight_scale": (outputs, *self.shape(scale)[1:]) if scale in self.names else ()}
        return {"weight": shape}

    def parts(self, layer: str) -> dict[str, torch.Tensor]:
        return {part: self.tensor(f"{layer}.{part}") for part in PARTS if f"{layer}.{part}" in self.names}

    def format(self, layer: str, inputs: int) -> GroupFormat | None:
        """How the engine keeps a rounded layer of so many inputs; None if it is dequantized. Reads no weights."""
        if f"{layer}.qweight" in self.names:
            groups = self.shape(f"{layer}.scales")[0]
            index = f"{layer}.g_idx"
            if self.rounding.method == "gptq" and index in self.names and not packings.has_ordered_groups(self.tensor(index), groups):
                return None
            return packings.format_of(inputs, groups, self.rounding.bits)
        if f"{layer}.weight_g_idx" in self.names or f"{layer}.weight_scale" not in self.names:
            return None
        scale = self.shape(f"{layer}.weight_scale")
        groups = scale[1] if len(scale) == 2 else 1
        if f"{layer}.weight_packed" in self.names:
            return packings.format_of(inputs, groups, self._bits(layer, inputs))
        is_float = self._files[f"{layer}.weight"].get_slice(f"{layer}.weight").get_dtype().startswith("F")
        return None if is_float else packings.format_of(inputs, groups, 8)

    def levels(self, layer: str, shape: Shape) -> Levels:
        """Those of a layer `[out, in]` that has them."""
        parts = self.parts(layer)
        if "qweight" in parts:
            return packings.unpack_awq(parts) if self.rounding.method == "awq" else self._gptq(parts)
        return packings.unpack_compressed(parts, shape, self._bits(layer, shape[1]) if "weight_packed" in parts else 8)

    def floats(self, layer: str, shape: Shape) -> torch.Tensor:
        """Dequantize a layer `[out, in]` to float32."""
        parts = self.parts(layer)
        weight, scale = parts.get("weight"), parts.get("weight_scale_inv", parts.get("weight_scale"))
        if weight is not None and weight.dtype in packings.FLOAT8 and scale is not None:
            return packings.unpack_float8(weight, scale, self.rounding.block)
        levels = self.levels(layer, shape)
        groups = levels.scale.shape[1]
        order = parts.get("g_idx", parts.get("weight_g_idx"))
        group = torch.arange(shape[1]) // -(-shape[1] // groups) if order is None else order.long()
        return (levels.levels.float() - levels.zero[:, group]) * levels.scale[:, group]

    def _gptq(self, parts: Mapping[str, torch.Tensor]) -> Levels:
        return packings.unpack_gptq(parts, self.rounding.bits, self.rounding.is_v2)

    def _bits(self, layer: str, inputs: int) -> int:
        """Of compressed-tensors' levels, by how many lie in a word."""
        bits = packings.WORD_BITS * self.shape(f"{layer}.weight_packed")[1] // inputs
        if bits not in BITS:
            raise SetupError(f"{self.path}: {layer} has levels of {bits} bits; 4 and 8 are read")
        return bits


def load_prequantized(source: Source, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Build the model: rounded layers are unpacked on `device`, all else is left on the CPU in `dtype`.

    Raises `SetupError` that names missing, unexpected or misshapen tensors.
    """
    config, checkpoint = source.config("model.path"), Checkpoint(source)
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    tied = {"lm_head.weight"} if config.tie_word_embeddings and "lm_head.weight" not in checkpoint.names else set()
    rounded = {layer for layer, kind in (name.rsplit(".", 1) for name in names) if kind == "weight" and checkpoint.is_rounded(layer)}
    _check_names(checkpoint, set(names) - tied, rounded)
    for name in names:
        layer, kind = name.rsplit(".", 1)
        if kind == "weight" and layer in rounded:
            _place_rounded(model, layer, checkpoint, dtype, device)
        elif name not in tied:
            _place(model, name, checkpoint, dtype)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model.eval()


def _check_names(checkpoint: Checkpoint, needed: set[str], rounded: Collection[str]) -> None:
    """Raises `SetupError` for tensors that are missing or left over."""
    stored = {f"{layer}.{part}" for layer in rounded for part in PARTS}
    missing = sorted(needed - set(checkpoint.names) - stored)
    empty = {f"{layer}.bias" for layer in rounded}  # AutoGPTQ gave every layer a bias, which is 0 where there was none
    unexpected = sorted(
        name
        for name in checkpoint.names - needed - stored
        if not (name.endswith(BUFFERS) or (name in empty and not checkpoint.tensor(name).any()))
    )
    if missing or unexpected:
        raise SetupError(f"{checkpoint.path} cannot be served: {tensor_problem(missing, unexpected, [])}")


def _place_rounded(model: PreTrainedModel, layer: str, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    module = model.get_submodule(layer)
    if type(module) is not nn.Linear:
        raise SetupError(f"{checkpoint.path} cannot be served: {layer} is rounded, and is no linear layer")
    shape = (module.out_features, module.in_features)
    checkpoint.check(layer, shape)
    kept = checkpoint.format(layer, module.in_features)
    if kept is None:
        module.weight = nn.Parameter(checkpoint.floats(layer, shape).to(dtype), requires_grad=False)
        return
    parent, _, child = layer.rpartition(".")
    unpack = partial(_unpack, checkpoint, layer, shape, device)
    setattr(model.get_submodule(parent), child, GroupedLinear(unpack, shape, kept, dtype, module.bias))


def _unpack(checkpoint: Checkpoint, layer: str, shape: Shape, device: torch.device) -> GroupedWeights:
    weights = checkpoint.levels(layer, shape).grouped()
    return GroupedWeights(weights.levels.to(device), weights.scale.to(device), weights.minimum.to(device), weights.bits)


def _place(model: PreTrainedModel, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    path, _, kind = name.rpartition(".")
    module, tensor = model.get_submodule(path), checkpoint.tensor(name)
    needed = tuple(getattr(module, kind).shape)
    if tuple(tensor.shape) != needed:
        raise SetupError(f"{checkpoint.path}: tensor {name} is {list(tensor.shape)}, the model needs {list(needed)}")
    setattr(module, kind, nn.Parameter(tensor.to(dtype), requires_grad=False))
