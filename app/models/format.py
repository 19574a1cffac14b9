"""What a checkpoint's weights are: floats or quantized, of which types, and how many. Does not know what the settings make of them."""

from collections import Counter
from math import prod
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from app.engine.facts import WeightFormat
from app.engine.grouped import GroupedLinear
from app.models.architectures import NO_PARAMETERS
from app.models.gguf import GGUFFile
from app.models.method import METHODS, method_of, saved_values
from app.models.source import Source


def weight_format(source: Source, model: PreTrainedModel) -> tuple[WeightFormat, tuple[str, ...]]:
    """The format, and the types of the matrices, that of most weights first. If config.json has no dtype: what `model` was loaded in."""
    if source.gguf is not None:
        return "gguf", _matrix_types(source.gguf)
    config = source.config("model.path")
    method, values = method_of(config), saved_values(config)
    if method in METHODS:
        return cast(WeightFormat, method), _levels_of(model)
    if method is not None:
        return "bitsandbytes", (str(values["bnb_4bit_quant_type"]) if values.get("load_in_4bit") else "int8",)
    return "float", (str(getattr(config, "dtype", None) or model.config.dtype).removeprefix("torch."),)


def _levels_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Such as 4 bits, and the type of what is dequantized or was not rounded."""
    weights: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, GroupedLinear):
            weights[f"{module.group_format.bits} bits"] += module.in_features * module.out_features
        elif isinstance(module, nn.Linear):
            weights[str(module.weight.dtype).removeprefix("torch.")] += module.weight.numel()
    return tuple(kind for kind, _ in weights.most_common())


def _matrix_types(file: GGUFFile) -> tuple[str, ...]:
    weights: Counter[str] = Counter()
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            weights[tensor.type] += prod(tensor.shape)
    return tuple(kind for kind, _ in weights.most_common())


def parameter_count(source: Source, model: PreTrainedModel) -> int:
    """How many weights there are, tied ones counted once. `model` is as it was loaded: a packed layer no longer has its weights, and one
    that was rounded for CUDA has them beside its parameters.
    """
    if source.gguf is not None:
        return sum(prod(tensor.shape) for name, tensor in source.gguf.tensors.items() if name not in NO_PARAMETERS)
    grouped = (module for module in model.modules() if isinstance(module, GroupedLinear))
    return int(model.num_parameters()) + sum(layer.in_features * layer.out_features for layer in grouped)
