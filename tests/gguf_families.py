"""Tiny models of many architectures, and GGUF files of them with the keys and tensors that llama.cpp's converter writes."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto import CONFIG_MAPPING

from models.gguf import add_tokenizer, interleave_heads

VOCABULARY, CONTEXT = 700, 256
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 20_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 20_000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + i / 10 for i in range(8)],
    "long_factor": [2.0 + i / 5 for i in range(8)],
}


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture of GGUF, a tiny model of it, and what its file has beyond the keys that all have."""

    architecture: str
    model_type: str
    values: Mapping[str, Any] = field(default_factory=dict)  # of the configuration
    keys: Mapping[str, Any] = field(default_factory=dict)  # of the file, after the architecture's name
    interleaved: bool = False  # llama.cpp rotates neighbouring rows
    norm_plus_one: bool = False

    def config(self) -> PretrainedConfig:
        return CONFIG_MAPPING[self.model_type](**deepcopy(SIZES | dict(self.values)))  # transformers adds to what it is given


def rope(theta: float = 20_000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | more}


EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
EXPERT_KEYS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 20_000.0},
}
GEMMA3 = {
    "rope_parameters": GEMMA3_ROPE,
    "head_dim": 32,
    "sliding_window": 16,
    "num_hidden_layers": 7,
    "query_pre_attn_scalar": 32,
    "final_logit_softcapping": None,
}
CONVOLVED, CONVOLVED_HEADS = ["conv", "full_attention", "conv", "full_attention"], [0, 2, 0, 2]
FAMILIES = {
    "llama": Family("llama", "llama", rope(), {"rope.dimension_count": 16}, interleaved=True),
    "llama-wide-heads": Family("llama", "llama", rope() | {"head_dim": 32}, {"rope.dimension_count": 32}, interleaved=True),
    "llama-yarn": Family("llama", "llama", {"rope_parameters": YARN}, {"rope.dimension_count": 16}, interleaved=True),
    "qwen2": Family("qwen2", "qwen2", rope()),
    "qwen2-yarn": Family("qwen2", "qwen2", {"rope_parameters": YARN}),
    "qwen3": Family("qwen3", "qwen3", rope() | {"head_dim": 32}),
    "qwen3-yarn": Family("qwen3", "qwen3", {"rope_parameters": YARN, "head_dim": 32}),
    "qwen2moe": Family(
        "qwen2moe",
        "qwen2_moe",
        rope() | EXPERTS | {"shared_expert_intermediate_size": 64, "norm_topk_prob": False},
        EXPERT_KEYS | {"expert_shared_feed_forward_length": 64},
    ),
    "qwen3moe": Family("qwen3moe", "qwen3_moe", rope() | EXPERTS | {"head_dim": 32, "norm_topk_prob": True}, EXPERT_KEYS),
    "olmoe": Family(
        "olmoe",
        "olmoe",
        rope() | EXPERTS | {"norm_topk_prob": False, "num_key_value_heads": 4},
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "gpt-oss": Family(
        "gpt-oss",
        "gpt_oss",
        rope() | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "sliding_window": 16},
        EXPERT_KEYS | {"expert_feed_forward_length": 96, "attention.sliding_window": 16},
    ),
    "mixtral": Family(
        "llama",
        "mixtral",
        rope() | EXPERTS | {"sliding_window": None},
        {"rope.dimension_count": 16, "expert_count": 4, "expert_used_count": 2},
        interleaved=True,
    ),
    "phi3": Family("phi3", "phi3", rope() | {"sliding_window": 16}, {"rope.dimension_count": 16, "attention.sliding_window": 16}),
    "phi4": Family("phi3", "phi3", rope() | {"sliding_window": None}, {"rope.dimension_count": 16, "attention.sliding_window": 0}),
    "phi4-mini": Family(
        "phi3",
        "phi3",
        rope(partial_rotary_factor=0.75) | {"sliding_window": None},
        {"rope.dimension_count": 12, "attention.sliding_window": 0},
    ),
    "phi3-long": Family(
        "phi3",
        "phi3",
        {"rope_parameters": LONG, "sliding_window": None, "original_max_position_embeddings": 64},
        {
            "rope.dimension_count": 16,
            "attention.sliding_window": 0,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(64))),
        },
    ),
    "gemma": Family("gemma", "gemma", rope(10_000.0) | {"head_dim": 32}, norm_plus_one=True),
    "gemma2": Family(
        "gemma2",
        "gemma2",
        rope(10_000.0)
        | {
            "head_dim": 32,
            "sliding_window": 16,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        {"attention.sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        norm_plus_one=True,
    ),
    "gemma3": Family(
        "gemma3",
        "gemma3_text",
        GEMMA3,
        {"attention.sliding_window": 16},
        norm_plus_one=True,
    ),
    "starcoder2": Family("starcoder2", "starcoder2", rope() | {"sliding_window": None, "use_bias": True}),
    "stablelm": Family(
        "stablelm",
        "stablelm",
        rope(partial_rotary_factor=0.25) | {"use_qkv_bias": True},
        {"rope.dimension_count": 4, "use_parallel_residual": False},
    ),
    "smollm3": Family("smollm3", "smollm3", rope() | {"no_rope_layers": [1, 1, 1, 0]}, {"rope.dimension_count": 16}, interleaved=True),
    "olmo2": Family("olmo2", "olmo2", rope()),
    "olmo3": Family(
        "olmo2",
        "olmo3",
        rope() | {"sliding_window": 16, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        {"attention.sliding_window": 16, "attention.sliding_window_pattern": [True, True, True, False]},
    ),
    "granite": Family(
        "granite",
        "granite",
        rope() | {"attention_multiplier": 0.1, "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "logits_scaling": 2.0},
        {"rope.dimension_count": 16, "attention.scale": 0.1, "embedding_scale": 3.0, "residual_scale": 0.3, "logit_scale": 2.0},
        interleaved=True,
    ),
    "glm4": Family("glm4", "glm4", rope(partial_rotary_factor=0.5) | {"head_dim": 16, "attention_bias": True}, {"rope.dimension_count": 8}),
    "seed_oss": Family("seed_oss", "seed_oss", rope() | {"head_dim": 32, "attention_bias": True, "attention_out_bias": False}),
    "exaone4": Family(
        "exaone4", "exaone4", rope() | {"sliding_window": None, "sliding_window_pattern": 4, "layer_types": ["full_attention"] * 4}
    ),
    "exaone4-windows": Family(
        "exaone4",
        "exaone4",
        rope() | {"sliding_window": 16, "sliding_window_pattern": 4, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        {"attention.sliding_window": 16, "attention.sliding_window_pattern": [True, True, True, False]},
    ),
    "mistral3": Family(
        "mistral3",
        "ministral3",
        {
            "rope_parameters": YARN
            | {"original_max_position_embeddings": 32, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
            "head_dim": 32,
            "sliding_window": None,
        },
        {"rope.dimension_count": 32, "attention.temperature_scale": 0.1, "rope.scaling.yarn_log_multiplier": 1.0},
        interleaved=True,
    ),
    "gemma3-linear": Family(
        "gemma3",
        "gemma3_text",
        GEMMA3 | {"rope_parameters": GEMMA3_ROPE | {"full_attention": {"rope_type": "linear", "rope_theta": 20_000.0, "factor": 8.0}}},
        {"attention.sliding_window": 16},
        norm_plus_one=True,
    ),
    "olmo3-yarn": Family(
        "olmo2",
        "olmo3",
        {"rope_parameters": YARN, "sliding_window": 16, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        {"attention.sliding_window": 16, "attention.sliding_window_pattern": [True, True, True, False]},
    ),
    "gemma3-capped": Family(
        "gemma3",
        "gemma3_text",
        GEMMA3 | {"final_logit_softcapping": 3.0},
        {"attention.sliding_window": 16, "final_logit_softcapping": 3.0},
        norm_plus_one=True,
    ),
    "lfm2": Family(
        "lfm2",
        "lfm2",
        rope() | {"layer_types": CONVOLVED, "block_auto_adjust_ff_dim": False, "pad_token_id": 0},
        {"attention.head_count_kv": CONVOLVED_HEADS, "shortconv.l_cache": 3},
    ),
    "lfm2moe": Family(
        "lfm2moe",
        "lfm2_moe",
        rope() | EXPERTS | {"layer_types": CONVOLVED, "num_dense_layers": 1, "pad_token_id": 0},
        EXPERT_KEYS | {"attention.head_count_kv": CONVOLVED_HEADS, "shortconv.l_cache": 3, "leading_dense_block_count": 1},
    ),
    "command-r": Family("command-r", "cohere", rope() | {"logit_scale": 0.5, "use_qk_norm": False}, {"logit_scale": 0.5}),
    "cohere2": Family(
        "cohere2",
        "cohere2",
        rope() | {"logit_scale": 0.5, "sliding_window": 16, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        {"logit_scale": 0.5, "attention.sliding_window": 16, "rope.dimension_count": 16},
    ),
}


def create_model(family: Family) -> PreTrainedModel:
    """A model in float32 whose weights are random, those of norms and biases too, so that none can be left out unnoticed."""
    torch.manual_seed(5)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(family.config(), dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            scale = 1.0 if "embed" in name else parameter.shape[-1] ** -0.5
            parameter.data.normal_(0, scale)
        else:
            parameter.data.normal_(0, 0.2)
            if "norm" in name and name.endswith("weight") and not family.norm_plus_one:
                parameter.data += 1
    for name, buffer in model.named_buffers():
        if name.endswith("expert_bias"):
            buffer.normal_(0, 0.2)
    return model.eval()


def write_family(family: Family, model: PreTrainedModel, tokenizer: Path, path: Path, type_name: str = "F32") -> Path:
    """Writes the model with the tokenizer of a folder. `type_name` is that of its matrices, all else is in float32."""
    config: Any = model.config
    writer = gguf.GGUFWriter(str(path), family.architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if "attention.head_count_kv" not in family.keys:
        writer.add_head_count_kv(config.num_key_value_heads)
    for attribute, add in _norms(writer).items():
        if hasattr(config, attribute):
            add(getattr(config, attribute))
    parameters = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(parameters["rope_theta"])
    if parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(parameters["factor"])
    if parameters["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    if "head_dim" in family.values:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for key, value in family.keys.items():
        _add(writer, f"{family.architecture}.{key}", value)
    add_tokenizer(writer, tokenizer)
    for name, tensor in _tensors(family, model):
        kind = gguf.GGMLQuantizationType[type_name if tensor.ndim > 1 and not any(part in name for part in IN_FLOAT32) else "F32"]
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


IN_FLOAT32 = ("ffn_gate_inp", "shortconv.conv")


def _norms(writer: Any) -> dict[str, Callable[[float], None]]:
    return {
        "rms_norm_eps": writer.add_layer_norm_rms_eps,
        "norm_eps": writer.add_layer_norm_rms_eps,
        "layer_norm_eps": writer.add_layer_norm_eps,
        "norm_epsilon": writer.add_layer_norm_eps,
    }


def _add(writer: Any, key: str, value: Any) -> None:
    adds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    adds[type(value)](key, value)


def _by_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters as the converter names them: of experts, the gates of all as one tensor, and so their values and projections."""
    turns = model.config.model_type == "gpt_oss"  # gates and values by turns, and transposed
    biases = ((name, buffer) for name, buffer in model.named_buffers() if name.endswith("expert_bias"))
    for name, parameter in itertools.chain(model.named_parameters(), biases):
        stem, _, last = name.rpartition(".")
        kind = "bias" if last.endswith("_bias") else "weight"
        tensor = parameter.transpose(1, 2) if turns and ".experts." in name and kind == "weight" else parameter
        if ".experts.gate_up_proj" in name:
            gate, up = (tensor[:, ::2], tensor[:, 1::2]) if turns else tensor.chunk(2, dim=1)
            yield from ((f"{stem}.gate_proj.{kind}", gate), (f"{stem}.up_proj.{kind}", up))
        elif ".experts.down_proj" in name:
            yield f"{stem}.down_proj.{kind}", tensor
        else:
            yield name + {"sinks": ".weight", "expert_bias": ".bias"}.get(last, ""), tensor


def _tensors(family: Family, model: PreTrainedModel) -> list[tuple[str, np.ndarray]]:
    config: Any = model.config
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = []
    for name, parameter in _by_layers(model):
        stem, _, suffix = name.rpartition(".")
        found = table.get_name(stem)
        assert found is not None, name
        values = parameter.detach().numpy()
        values = values[:, 0] if values.ndim == 3 and values.shape[1] == 1 else values  # of a convolution
        if family.norm_plus_one and name.endswith("norm.weight"):
            values = values + 1
        count = next((count for projection, count in heads.items() if projection in name), None)
        if family.interleaved and count is not None:
            values = interleave_heads(values, count)
        tensors.append((f"{found}.{suffix}", np.ascontiguousarray(values)))
    parameters = config.rope_parameters
    for key in ("long_factor", "short_factor"):
        if key in parameters:
            tensors.append((f"rope_factors_{key.removesuffix('_factor')}.weight", np.array(parameters[key], dtype=np.float32)))
    return tensors
