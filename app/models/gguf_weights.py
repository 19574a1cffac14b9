"""The weights of a GGUF file in transformers' model, mapped from the file.

Those in 4 and 8 bits stay in the file until the engine packs them, layer by layer. Those of other types are dequantized, tensor by tensor.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gguf
import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from app.engine.experts import separate_experts
from app.engine.grouped import GroupedEmbedding, GroupedLinear, GroupedWeights, is_groupable
from app.errors import SetupError
from app.models import blocks
from app.models.architectures import NO_PARAMETERS, ROPE_FACTORS, architecture_of, config_of
from app.models.gguf import GGUFFile
from app.models.header import Tensor
from app.models.tensors import tensor_problem

CPU = torch.device("cpu")
CONVOLUTION = "shortconv.conv.weight"  # a matrix, of which transformers' convolution makes one for each channel
ONE_ROW = "ffn_gate_inp_shexp.weight"  # a matrix of one row, of which llama-quantize makes a vector
EXPERT_BIAS = "expert_bias"  # of LFM2's routers
KINDS = {"sinks": "weight", EXPERT_BIAS: "bias"}  # what the file's tensors of these are
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that stays in the file. `order` is the one of its rows, None for the file's; `device` is where it is unpacked; `shift` is
    what was added to its values.
    """

    tensor: Tensor
    order: torch.Tensor | None
    device: torch.device
    shift: int = 0

    def unpack(self) -> GroupedWeights:
        raw = _as_torch(self.tensor.raw)
        return blocks.unpack((raw if self.order is None else raw[self.order]).to(self.device), self.tensor.type)

    def values(self) -> torch.Tensor:
        """Dequantized, in float32."""
        values = floats(self.tensor)
        return (values if self.order is None else values[self.order]) - self.shift


def load_gguf(file: GGUFFile, dtype: torch.dtype, device: torch.device = CPU) -> PreTrainedModel:
    """Build the model, its quantized weights still in the file: those are unpacked on `device`, all else is left on the CPU.

    Raises `SetupError` that names missing, unexpected or misshapen tensors.
    """
    config, architecture = config_of(file), architecture_of(file)
    config.dtype = dtype
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        separate_experts(model)
    model.generation_config.eos_token_id = config.eos_token_id
    names, tensors = tensor_names(model, file), separate_tensors(file.tensors)
    _check_tensors(file, names, tensors)
    for name, parameter in _stored_parts(model):
        tensor = tensors.get(names.get(name, ""))
        if tensor is None:
            continue  # the tied projection, which follows below
        if tensor.shape != tuple(parameter.shape):
            raise SetupError(f"{file.path.name}: tensor {tensor.name} is {list(tensor.shape)}, the model needs {list(parameter.shape)}")
        shift = int(architecture.norm_plus_one and tensor.name.endswith("norm.weight"))
        _place(model, name, Stored(tensor, _row_order(file, tensor, config), device, shift), dtype)
    if config.tie_word_embeddings:
        _tie(model, file, dtype)
    if ROPE_FACTORS in file.tensors:
        rotary: Any = model.base_model.rotary_emb
        rotary.inv_freq = rotary.inv_freq / floats(file.tensors[ROPE_FACTORS])
    return model.eval()


def tensor_names(model: PreTrainedModel, file: GGUFFile) -> dict[str, str]:
    """transformers' parameter names to the file's tensor names, by the table that llama.cpp's converter uses."""
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    table = gguf.get_tensor_name_map(arch, int(model.config.num_hidden_layers))
    names = {}
    for name, _ in _stored_parts(model):
        stem, _, suffix = name.rpartition(".")
        if suffix in KINDS:
            stem, suffix = name, KINDS[suffix]
        expert = EXPERT.fullmatch(stem)
        found = table.get_name(stem if expert is None else f"{expert[1]}.{expert[3]}")
        if found is not None:
            names[name] = f"{found}.{suffix}" if expert is None else f"{found}.{expert[2]}.{suffix}"
    return names


def _stored_parts(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """Parameters, and the buffers that a checkpoint has."""
    biases = ((name, buffer) for name, buffer in model.named_buffers() if name.endswith(f".{EXPERT_BIAS}"))
    return [*model.named_parameters(remove_duplicate=False), *biases]


def separate_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of all experts together as one for each expert: blk.0.ffn_up_exps.weight becomes blk.0.ffn_up_exps.0.weight and so on."""
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(ONE_ROW) and len(tensor.shape) == 1:
            separate[name] = replace(tensor, shape=(1, *tensor.shape), raw=tensor.raw[None])
        if name.endswith(CONVOLUTION) and len(tensor.shape) == 2:
            separate[name] = replace(tensor, shape=(tensor.shape[0], 1, tensor.shape[1]))
        if len(tensor.shape) < 3 and not name.endswith("_exps.bias"):
            separate.setdefault(name, tensor)
            continue
        stem, _, suffix = name.rpartition(".")
        parts = (Tensor(f"{stem}.{index}.{suffix}", tensor.type, tensor.shape[1:], tensor.raw[index]) for index in range(tensor.shape[0]))
        separate |= {part.name: part for part in parts}
    return separate


def _check_tensors(file: GGUFFile, names: dict[str, str], tensors: Mapping[str, Tensor]) -> None:
    tied = "output.weight" not in tensors
    needed = {name for name in names.values() if not (tied and name == "output.weight")}
    missing, unexpected = sorted(needed - tensors.keys()), sorted(tensors.keys() - needed - NO_PARAMETERS)
    if missing or unexpected:
        raise SetupError(f"{file.path.name} cannot be served: {tensor_problem(missing, unexpected, [])}")


def _row_order(file: GGUFFile, tensor: Tensor, config: PretrainedConfig) -> torch.Tensor | None:
    """The order in which transformers wants the rows of a query or key projection."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    kind = tensor.name.split(".")[-2]
    if not architecture_of(file).interleaved or kind not in heads:
        return None
    rows = torch.arange(tensor.shape[0])
    return rows.view(heads[kind], -1, 2).transpose(1, 2).reshape(-1)


def _place(model: PreTrainedModel, name: str, stored: Stored, dtype: torch.dtype) -> None:
    """Put a tensor into the model: layers in groups as they are in the file, all else dequantized."""
    tensor = stored.tensor
    path, _, kind = name.rpartition(".")
    parent_path, _, child = path.rpartition(".")
    parent, module = model.get_submodule(parent_path), model.get_submodule(path)
    grouped = kind == "weight" and tensor.type in blocks.TYPES
    if grouped and type(module) is nn.Linear:
        bias = module.bias
        shape = (module.out_features, module.in_features)
        setattr(parent, child, GroupedLinear(stored.unpack, shape, blocks.group_format(tensor.type), dtype, bias))
    elif grouped and is_groupable(module):
        setattr(parent, child, GroupedEmbedding(stored.unpack, module))
    elif kind == EXPERT_BIAS:
        setattr(module, kind, stored.values())
    else:
        setattr(module, kind, nn.Parameter(stored.values().to(dtype), requires_grad=False))


def _tie(model: PreTrainedModel, file: GGUFFile, dtype: torch.dtype) -> None:
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if isinstance(embedding, GroupedEmbedding):
        group_format = blocks.group_format(file.tensors["token_embd.weight"].type)
        model.set_output_embeddings(GroupedLinear(embedding.unpack, (head.out_features, head.in_features), group_format, dtype))
    else:
        head.weight = embedding.weight


def floats(tensor: Tensor) -> torch.Tensor:
    """Dequantize to float32, whatever the type. Raises `SetupError` for a type that cannot be read."""
    try:
        values = gguf.dequantize(tensor.raw, gguf.GGMLQuantizationType[tensor.type])
    except NotImplementedError as error:
        raise SetupError(f"tensor {tensor.name} has the type {tensor.type}, which cannot be read") from error
    return _as_torch(np.require(values, requirements=["C", "A"])).view(tensor.shape)


def _as_torch(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the file's pages cannot be written to: nobody does
        return torch.from_numpy(array)
