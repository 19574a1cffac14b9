"""Writes a Llama as a GGUF file, in one type or several, as llama.cpp mixes them: to measure llama.cpp beside Litmus, and for tests."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file

TOP_LEVEL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(folder: Path, path: Path, type_name: str = "F16", others: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Writes a Llama with plain RoPE and a byte-level tokenizer, such as `models.synthetic.save` makes. `type_name` is that of matrices, as
    GGML names it: F32, F16, BF16, IQ4_NL, Q3_K, Q4_0, Q4_1, Q5_0, Q5_1, Q6_K or Q8_0. `others` has another type for some of them, by the
    last part of their names, such as `attn_v`.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    _add_config(writer, config)
    add_tokenizer(writer, folder)
    for name, tensor in _tensors(folder, config):
        kind = gguf.GGMLQuantizationType["F32" if tensor.ndim == 1 else others.get(name.split(".")[-2], type_name)]
        writer.add_tensor(name, _quantize(tensor.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_config(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def add_tokenizer(writer: Any, folder: Path) -> None:
    model, config = (json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    special, model = {config["bos_token"], config["eos_token"]}, model["model"]
    entries = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(entries)
    writer.add_token_types([gguf.TokenType.CONTROL if entry in special else gguf.TokenType.NORMAL for entry in entries])
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.float().numpy()
        head_count = next((count for projection, count in heads.items() if projection in name), None)
        yield _gguf_name(name), values if head_count is None else interleave_heads(values, head_count)


def _gguf_name(name: str) -> str:
    if name in TOP_LEVEL_NAMES:
        return TOP_LEVEL_NAMES[name]
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[module]}.weight"


def interleave_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of each head: RoPE rotates neighbouring rows in llama.cpp, but the two halves of a head in transformers."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _quantize(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    own = {"IQ4_NL": quantize_iq4_nl, "Q3_K": quantize_q3_k, "Q6_K": quantize_q6_k}.get(kind.name)
    return gguf.quantize(values, kind) if own is None else own(values)


def _groups_of_16(values: np.ndarray, largest_level: float, largest_scale: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values `[rows, blocks, 16, 16]`, the step of each block, float16 `[rows, blocks, 1]`, and the scales of its groups in steps,
    whole numbers rounded upwards `[rows, blocks, 16]`.
    """
    groups = values.reshape(len(values), -1, 16, 16)
    scales = np.abs(groups).max(-1) / largest_level
    step = np.maximum(scales.max(-1, keepdims=True) / largest_scale, 1e-7).astype(np.float16)
    return groups, step, np.ceil(scales / step).clip(0, largest_scale)


def quantize_iq4_nl(values: np.ndarray) -> np.ndarray:
    """Rounds float32 `[rows, columns]` to IQ4_NL, which the gguf package reads but does not write: blocks of 32 values with a scale, levels
    at uneven distances. Returns bytes `[rows, 18 a block]`.
    """
    blocks = values.reshape(len(values), -1, 32)
    table = np.array(gguf.quants.IQ4_NL.kvalues, dtype=np.float32)
    scale = (np.abs(blocks).max(-1, keepdims=True) / -table[0]).astype(np.float16)
    middles = (table[1:] + table[:-1]) / 2
    levels = np.searchsorted(middles, blocks / np.maximum(scale.astype(np.float32), 1e-7)).astype(np.uint8)
    packed = levels[..., :16] | levels[..., 16:] << 4
    return np.concatenate([scale.view(np.uint8), packed], -1).reshape(len(values), -1)


def quantize_q3_k(values: np.ndarray) -> np.ndarray:
    """Rounds float32 `[rows, columns]` to Q3_K, which the gguf package reads but does not write: blocks of 256 values, in groups of 16 with
    a scale of 6 bits each. Returns bytes `[rows, 110 a block]`.
    """
    groups, step, whole = _groups_of_16(values, 3.5, 31)
    whole = whole.clip(1)
    levels = (np.round(groups / (step * whole)[..., None]).clip(-4, 3) + 4).astype(np.uint8)
    eighths = levels.reshape(*groups.shape[:2], 8, 32)
    bits = np.arange(8, dtype=np.uint8)[:, None]
    high = np.bitwise_or.reduce(eighths >> 2 << bits, -2)
    low = np.bitwise_or.reduce((eighths & 3).reshape(*groups.shape[:2], 2, 4, 32) << bits[:4] * 2, -2)
    six = (whole + 32).astype(np.uint8)
    fours = np.bitwise_or.reduce((six >> 4).reshape(*groups.shape[:2], 4, 4) << bits[:4] * 2, -2)
    parts = (high, low, six[..., :8] & 15 | (six[..., 8:] & 15) << 4, fours, step.view(np.uint8))
    return np.concatenate([part.reshape(*groups.shape[:2], -1) for part in parts], -1).reshape(len(values), -1)


def quantize_q6_k(values: np.ndarray) -> np.ndarray:
    """Rounds float32 `[rows, columns]` to Q6_K, which the gguf package reads but does not write: blocks of 256 values, in groups of 16 with
    a scale of 8 bits each. Returns bytes `[rows, 210 a block]`.
    """
    groups, step, whole = _groups_of_16(values, 31, 127)
    levels = np.round(groups / np.maximum(step * whole, 1e-7)[..., None]).clip(-32, 31).astype(np.int8) + 32
    quarters = levels.astype(np.uint8).reshape(*groups.shape[:2], 2, 4, 32)  # [rows, blocks, halves, quarters, values]
    low, high = quarters & 15, quarters >> 4
    low = low[..., :2, :] | low[..., 2:, :] << 4
    high = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    parts = (low, high, whole.astype(np.int8).view(np.uint8), step.view(np.uint8))
    return np.concatenate([part.reshape(*groups.shape[:2], -1) for part in parts], -1).reshape(len(values), -1)
