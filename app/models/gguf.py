"""A GGUF file as transformers' configuration and model: metadata and tensors, mapped from the file.

Weights in 4 and 8 bits stay in the file until the engine packs them, layer by layer. Those of other types are dequantized, tensor by
tensor. Knows no tokenizer.
"""

import struct
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import read_gguf_metadata
from transformers.models.auto import CONFIG_MAPPING

from app.engine.grouped import GroupedEmbedding, GroupedLinear, GroupedWeights
from app.errors import SetupError, UnsupportedModel
from app.models import blocks
from app.models.names import part_names
from app.models.tensors import tensor_problem

# GGUF's architecture -> transformers' model type: dense decoders whose tensors carry over one by one.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma3": "gemma3_text",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
}
NORM_PLUS_ONE = frozenset({"gemma3_text"})  # model types of whose norms llama.cpp stores weight + 1
INTERLEAVED_ROPE = ("llama", "mistral")  # llama.cpp rotates neighbouring rows of a head, transformers its halves
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1: each frequency is divided by its factor
FLOAT_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: `raw` is mapped from it, `[rows, bytes of a row]` or for one dimension `[bytes]`."""

    name: str
    type: str  # as GGML names it: Q4_1, F16 ...
    shape: tuple[int, ...]  # as torch has it: [out, in]
    raw: np.ndarray

    def floats(self) -> torch.Tensor:
        """Dequantize to float32, whatever the type. Raises `SetupError` for a type that cannot be read."""
        try:
            values = gguf.dequantize(self.raw, gguf.GGMLQuantizationType[self.type])
        except NotImplementedError as error:
            raise SetupError(f"tensor {self.name} has the type {self.type}, which cannot be read") from error
        return torch.from_numpy(np.ascontiguousarray(values)).view(self.shape)


class GGUFFile:
    """A GGUF model, all parts of it if it is split. Opening reads the metadata only. Raises `SetupError` if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = parts_of(path)
        try:
            self.metadata: dict[str, Any] = read_gguf_metadata(str(path), ("tokenizer.ggml.tokens",))[0]
        except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
            raise SetupError(f"{path} is not a GGUF file that can be read: {error}") from error

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name, mapped from the file. Raises `SetupError` if the file is cut short or a part lacks tensors."""
        try:
            found = {tensor.name: _tensor(tensor) for part in self.parts for tensor in gguf.GGUFReader(part).tensors}
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise SetupError(f"{self.path}: its tensors cannot be read, is it complete? {error}") from error
        count = self.metadata.get("split.tensors.count")
        if count is not None and count != len(found):
            raise SetupError(f"{self.path}: its parts hold {len(found)} tensors of {count}")
        return found


def parts_of(path: Path) -> list[Path]:
    """The files of a model: `path`, and if it is the first part of several, the others. Raises `SetupError` if one is missing."""
    parts = [path.with_name(name) for name in part_names(path.name)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise SetupError(f"{path}: parts of the split file are missing: {', '.join(missing)}")
    return parts


def _tensor(tensor: Any) -> Tensor:
    raw = tensor.data if tensor.data.dtype == np.uint8 or tensor.tensor_type.name in FLOAT_TYPES else tensor.data.view(np.uint8)
    return Tensor(tensor.name, tensor.tensor_type.name, tuple(int(size) for size in reversed(tensor.shape)), raw)


def config_of(file: GGUFFile) -> PretrainedConfig:
    """Build transformers' configuration from the metadata. Raises `UnsupportedModel` for an architecture that Litmus does not read."""
    architecture = file.architecture
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"{file.path.name}: GGUF files of the architecture '{architecture}' are not read; these are: {known}")
    values: dict[str, Any] = dict(GGUF_CONFIG_DEFAULTS_MAPPING.get(architecture, {}))
    table: dict[str, str | None] = GGUF_CONFIG_MAPPING[architecture]  # type: ignore[assignment]
    for key, name in table.items():
        value = file.metadata.get(f"{architecture}.{key}")
        if name and value is not None:
            values[name] = value
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    values["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    for name in ("bos", "eos"):
        values[f"{name}_token_id"] = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    values |= _architecture_values(file, architecture)
    config: PretrainedConfig = CONFIG_MAPPING[ARCHITECTURES[architecture]].from_dict(values)
    return config


def _architecture_values(file: GGUFFile, architecture: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    scaling = file.metadata.get(f"{architecture}.rope.scaling.type")
    if scaling not in {None, "none"}:
        factor = file.metadata.get(f"{architecture}.rope.scaling.factor", 1.0)
        if scaling != "linear":
            raise UnsupportedModel(f"{file.path.name}: its rope scaling '{scaling}' is not supported")
        theta = file.metadata.get(f"{architecture}.rope.freq_base", 10000.0)
        values["rope_parameters"] = {"rope_type": "linear", "factor": factor, "rope_theta": theta}
    if architecture in INTERLEAVED_ROPE:
        values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        values["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if architecture == "stablelm":
        values["use_qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
        values["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in file.tensors
    return values


def load_gguf(file: GGUFFile, dtype: torch.dtype) -> PreTrainedModel:
    """Build the model, its quantized weights still in the file. Raises `SetupError` that names missing, unexpected or misshapen tensors."""
    config = config_of(file)
    config.dtype = dtype
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = config.eos_token_id
    names = _tensor_names(model, file)
    _check_tensors(file, names)
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        tensor = file.tensors.get(names.get(name, ""))
        if tensor is None:
            continue  # the tied projection, which follows below
        if tensor.shape != tuple(parameter.shape):
            raise SetupError(f"{file.path.name}: tensor {tensor.name} is {list(tensor.shape)}, the model needs {list(parameter.shape)}")
        _place(model, name, tensor, _row_order(file, tensor, config), dtype)
    if config.tie_word_embeddings:
        _tie(model, file, dtype)
    if ROPE_FACTORS in file.tensors:
        rotary: Any = model.base_model.rotary_emb
        rotary.inv_freq = rotary.inv_freq / file.tensors[ROPE_FACTORS].floats()
    return model.eval()


def _tensor_names(model: PreTrainedModel, file: GGUFFile) -> dict[str, str]:
    """transformers' parameter names to the file's tensor names, by the table that llama.cpp's converter uses."""
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    table = gguf.get_tensor_name_map(arch, int(model.config.num_hidden_layers))
    names = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        stem, _, suffix = name.rpartition(".")
        found = table.get_name(stem)
        if found is not None:
            names[name] = f"{found}.{suffix}"
    return names


def _check_tensors(file: GGUFFile, names: dict[str, str]) -> None:
    tied = "output.weight" not in file.tensors
    needed = {name for name in names.values() if not (tied and name == "output.weight")}
    missing, unexpected = sorted(needed - set(file.tensors)), sorted(set(file.tensors) - needed - {ROPE_FACTORS})
    if missing or unexpected:
        raise SetupError(f"{file.path.name} cannot be served: {tensor_problem(missing, unexpected, [])}")


def _row_order(file: GGUFFile, tensor: Tensor, config: PretrainedConfig) -> torch.Tensor | None:
    """The order in which transformers wants the rows of a query or key projection."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    kind = tensor.name.split(".")[-2]
    if file.architecture not in INTERLEAVED_ROPE or kind not in heads:
        return None
    rows = torch.arange(tensor.shape[0])
    return rows.view(heads[kind], -1, 2).transpose(1, 2).reshape(-1)


def _place(model: PreTrainedModel, name: str, tensor: Tensor, order: torch.Tensor | None, dtype: torch.dtype) -> None:
    """Put a tensor into the model: layers in groups as they are in the file, all else dequantized."""
    path, _, kind = name.rpartition(".")
    parent_path, _, child = path.rpartition(".")
    parent, module = model.get_submodule(parent_path), model.get_submodule(path)
    grouped = kind == "weight" and tensor.type in blocks.TYPES
    if grouped and type(module) is nn.Linear:
        bias = module.bias
        layer = GroupedLinear(
            partial(_unpack, tensor, order), (module.out_features, module.in_features), blocks.group_format(tensor.type), dtype, bias
        )
        setattr(parent, child, layer)
    elif grouped and type(module) is nn.Embedding:
        setattr(parent, child, GroupedEmbedding(partial(_unpack, tensor, None), module.num_embeddings, dtype))
    else:
        values = tensor.floats() if order is None else tensor.floats()[order]
        if "norm" in path and model.config.model_type in NORM_PLUS_ONE:
            values = values - 1
        setattr(module, kind, nn.Parameter(values.to(dtype), requires_grad=False))


def _unpack(tensor: Tensor, order: torch.Tensor | None) -> GroupedWeights:
    raw = torch.from_numpy(tensor.raw)
    return blocks.unpack(raw if order is None else raw[order], tensor.type)


def _tie(model: PreTrainedModel, file: GGUFFile, dtype: torch.dtype) -> None:
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if isinstance(embedding, GroupedEmbedding):
        group_format = blocks.group_format(file.tensors["token_embd.weight"].type)
        model.set_output_embeddings(GroupedLinear(embedding.unpack, (head.out_features, head.in_features), group_format, dtype))
    else:
        head.weight = embedding.weight
