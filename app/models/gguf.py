"""A GGUF file as transformers' configuration and model: metadata and tensors, mapped from the file.

Weights in 4 and 8 bits stay in the file until the engine packs them, layer by layer. Those of other types are dequantized, tensor by
tensor. Knows no tokenizer.
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING
from transformers.models.auto import CONFIG_MAPPING

from app.engine.grouped import GroupedEmbedding, GroupedLinear, GroupedWeights
from app.errors import SetupError, UnsupportedModel, first_line
from app.models import blocks
from app.models.header import Header, Tensor
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
WIDTHS = frozenset({"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"})
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1: each frequency is divided by its factor


class GGUFFile:
    """A GGUF model, all parts of it if it is split; its weights stay in the file. Raises `SetupError` if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = parts_of(path)
        headers = [_read_header(part) for part in self.parts]
        self.metadata: dict[str, Any] = headers[0].metadata
        self.tensors: dict[str, Tensor] = {name: tensor for header in headers for name, tensor in header.tensors.items()}
        count = self.metadata.get("split.tensors.count", len(self.tensors))
        if count != len(self.tensors):
            raise SetupError(f"{self.path}: its parts hold {len(self.tensors)} tensors of {count}")

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))


def _read_header(path: Path) -> Header:
    try:
        return Header(path)
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} is not a GGUF file that can be read: {first_line(error)}") from error


def parts_of(path: Path) -> list[Path]:
    """The files of a model: `path`, and if it is the first part of several, the others. Raises `SetupError` if one is missing."""
    parts = [path.with_name(name) for name in part_names(path.name)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise SetupError(f"{path}: parts of the split file are missing: {', '.join(missing)}")
    return parts


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


def config_of(file: GGUFFile) -> PretrainedConfig:
    """Build transformers' configuration from the metadata. Raises `UnsupportedModel` for an architecture that Litmus does not read."""
    architecture = file.architecture
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"{file.path.name}: GGUF files of the architecture '{architecture}' are not read; these are: {known}")
    values: dict[str, Any] = dict(GGUF_CONFIG_DEFAULTS_MAPPING.get(architecture, {}))
    table: dict[str, str | None] = GGUF_CONFIG_MAPPING[architecture]  # type: ignore[assignment]
    if "token_embd.weight" not in file.tensors:
        raise SetupError(f"{file.path.name}: it has no tensor token_embd.weight, so no language model")
    for key, name in table.items():
        value = file.metadata.get(f"{architecture}.{key}")
        if name and value is not None:
            _check_size(file, f"{architecture}.{key}", name, value)
            values[name] = value
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    values["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    for name in ("bos", "eos"):
        values[f"{name}_token_id"] = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    values |= _architecture_values(file, architecture)
    try:
        config: PretrainedConfig = CONFIG_MAPPING[ARCHITECTURES[architecture]].from_dict(values)
    except StrictDataclassError as error:
        raise SetupError(f"{file.path.name}: its metadata make no {architecture} model: {' '.join(str(error).split())[:300]}") from error
    return config


def _check_size(file: GGUFFile, key: str, name: str, value: Any) -> None:
    """Raises `SetupError` for sizes that the tensors contradict, before a model of such a size is made."""
    blocks_of = {tensor.split(".")[1] for tensor in file.tensors if tensor.startswith("blk.")}
    widest = max(max(tensor.shape) for tensor in file.tensors.values())
    if name == "num_hidden_layers" and value != len(blocks_of):
        raise SetupError(f"{file.path.name}: its metadata {key} is {value!r}, its tensors are those of {len(blocks_of)} layers")
    if name in WIDTHS and not (isinstance(value, int) and 1 <= value <= widest):
        raise SetupError(
            f"{file.path.name}: its metadata {key} is {value!r}, not a number from 1 to {widest}, the width of its largest tensor"
        )


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
        rotary.inv_freq = rotary.inv_freq / floats(file.tensors[ROPE_FACTORS])
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
        values = floats(tensor) if order is None else floats(tensor)[order]
        if "norm" in path and model.config.model_type in NORM_PLUS_ONE:
            values = values - 1
        setattr(module, kind, nn.Parameter(values.to(dtype), requires_grad=False))


def _unpack(tensor: Tensor, order: torch.Tensor | None) -> GroupedWeights:
    raw = _as_torch(tensor.raw)
    return blocks.unpack(raw if order is None else raw[order], tensor.type)


def _tie(model: PreTrainedModel, file: GGUFFile, dtype: torch.dtype) -> None:
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if isinstance(embedding, GroupedEmbedding):
        group_format = blocks.group_format(file.tensors["token_embd.weight"].type)
        model.set_output_embeddings(GroupedLinear(embedding.unpack, (head.out_features, head.in_features), group_format, dtype))
    else:
        head.weight = embedding.weight
