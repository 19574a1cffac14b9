"""Builds a model of a checkpoint that others rounded: GPTQ, AWQ, compressed-tensors, FP8, MXFP4.

As with a GGUF file, levels of 4 and 8 bits stay in the files until the engine packs them, layer by layer, and are not rounded again. What
has no place in the engine's groups is dequantized, and so is FP8.
"""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from app.engine.experts import separate_experts
from app.engine.grouped import GroupedLinear, GroupedWeights
from app.errors import SetupError
from app.models.checkpoint import PARTS, Checkpoint
from app.models.packings import Shape
from app.models.source import Source
from app.models.tensors import tensor_problem

# Ends of names beside the weights: buffers of older checkpoints, and scales of activations and of the KV cache, which are not rounded here.
LEFT_OUT = tuple(
    "rotary_emb.inv_freq .masked_bias .attention.bias .k_scale .v_scale .q_scale .kv_scale .output_scale .input_zero_point "
    ".activation_scale .act_scale".split()
)


def load_prequantized(source: Source, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Build the model: rounded layers are unpacked on `device`, all else is left on the CPU in `dtype`.

    Raises `SetupError` that names missing, unexpected or misshapen tensors.
    """
    config, checkpoint = source.config("model.path"), Checkpoint(source)
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        separate_experts(model)
    tied = check_names(checkpoint, model)
    for name, _ in list(model.named_parameters(remove_duplicate=False)):
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and checkpoint.is_rounded(layer):
            _place_rounded(model, layer, checkpoint, dtype, device)
        elif name not in tied:
            _place(model, name, checkpoint, dtype)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model.eval()


def check_names(checkpoint: Checkpoint, model: PreTrainedModel) -> set[str]:
    """The parameters that are not stored because they are tied to others. Raises `SetupError` for tensors that are missing or left over."""
    needed = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    head = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    tied = head - checkpoint.names - {f"lm_head.{part}" for part in PARTS if f"lm_head.{part}" in checkpoint.names}
    rounded = {
        name.removesuffix(".weight") for name in needed if name.endswith(".weight") and checkpoint.is_rounded(name[: -len(".weight")])
    }
    stored = {f"{layer}.{part}" for layer in rounded for part in PARTS}
    missing = sorted(needed - tied - checkpoint.names - stored)
    if any(".experts." in name for name in missing):
        raise SetupError(
            f"{checkpoint.path} is a mixture of experts that is quantized by '{checkpoint.rounding.method}' and names its experts in a way "
            f"that Litmus does not read ({missing[0]} is missing); serve the original weights"
        )
    empty = {f"{layer}.bias" for layer in rounded}  # AutoGPTQ gave every layer a bias, which is 0 where there was none
    patterns: Any = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    unexpected = sorted(
        name
        for name in checkpoint.names - needed - stored
        if not (name.endswith(LEFT_OUT) or (name in empty and not checkpoint.tensor(name).any()))
        and not any(re.search(pattern, name) for pattern in patterns)
    )
    if missing or unexpected:
        raise SetupError(f"{checkpoint.path} cannot be served: {tensor_problem(missing, unexpected, [])}")
    return tied


def _place_rounded(model: PreTrainedModel, layer: str, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    module = model.get_submodule(layer)
    if type(module) is not nn.Linear:
        raise SetupError(f"{checkpoint.path} cannot be served: {layer} is rounded, and is no linear layer")
    shape = (module.out_features, module.in_features)
    kept = checkpoint.format(layer, shape)
    if kept is None:
        module.weight = nn.Parameter(checkpoint.floats(layer, shape).to(dtype), requires_grad=False)
        return
    parent, _, child = layer.rpartition(".")
    unpack = partial(_unpack, checkpoint, layer, shape, device)
    setattr(model.get_submodule(parent), child, GroupedLinear(unpack, shape, kept, dtype, module.bias))


def _unpack(checkpoint: Checkpoint, layer: str, shape: Shape, device: torch.device) -> GroupedWeights:
    weights = checkpoint.grouped(layer, shape)
    return replace(weights, **{part: getattr(weights, part).to(device) for part in ("levels", "scale", "minimum")})


def _place(model: PreTrainedModel, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    path, _, kind = name.rpartition(".")
    module, tensor = model.get_submodule(path), checkpoint.tensor(name)
    needed = tuple(getattr(module, kind).shape)
    if tuple(tensor.shape) != needed:
        raise SetupError(f"{checkpoint.path}: tensor {name} is {list(tensor.shape)}, the model needs {list(needed)}")
    setattr(module, kind, nn.Parameter(tensor.to(dtype), requires_grad=False))
