"""Checkpoints as GPTQ, AWQ, compressed-tensors and FP8 tools save them, made of a plain one, and the floats that they stand for.

Packed by the layouts that these formats document, not by the product's own code.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Made = tuple[Tensors, torch.Tensor]  # the tensors of a layer by the last part of their names, and its weights
AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight outputs lies where in a word
HIGHEST_FLOAT8 = 448.0
FLOATS_4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])  # OCP MX, version 1.0: e2m1


def rounded(weight: torch.Tensor, bits: int, size: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels `[out, in]`, scales and zeros `[out, groups]`."""
    groups = weight.float().unflatten(1, (-1, size))
    largest, middle = (1 << bits) - 1, 1 << bits - 1
    if symmetric:
        scale = groups.abs().amax(-1) / (middle - 1)
        zero = torch.full_like(scale, middle)
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (high - low) / largest
        zero = (-low / scale).round().clamp(0, largest)
    scale = scale.half().float()
    levels = (groups / scale[..., None] + zero[..., None]).round().clamp(0, largest)
    return levels.flatten(1).int(), scale, zero.int()


def values(levels: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    size = levels.shape[1] // scale.shape[1]
    return (levels - zero.repeat_interleave(size, 1)) * scale.repeat_interleave(size, 1)


def packed(levels: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """int32 words along `dim`, the first level in the lowest bits."""
    words = levels.long().unflatten(dim, (-1, 32 // bits)).movedim(dim + 1, -1)
    sums = (words << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(sums >= 1 << 31, sums - (1 << 32), sums).to(torch.int32).contiguous()


def gptq(bits: int = 4, size: int = 32, symmetric: bool = False, is_v2: bool = False, shuffled: bool = False) -> Callable:
    def make(weight: torch.Tensor) -> Made:
        inputs = weight.shape[1]
        order = torch.randperm(inputs, generator=torch.Generator().manual_seed(1)) if shuffled else torch.arange(inputs)
        width = inputs if size == -1 else size
        levels, scale, zero = rounded(weight[:, order], bits, width, symmetric)
        back = order.argsort()
        stored = zero if is_v2 else (zero - 1) & (1 << bits) - 1
        parts = {
            "qweight": packed(levels[:, back].T, bits, 0),
            "qzeros": packed(stored.T, bits, 1),
            "scales": scale.T.half().contiguous(),
            "g_idx": (torch.arange(inputs) // width)[back].int(),
        }
        return parts, values(levels, scale, zero)[:, back]

    return make


def awq(weight: torch.Tensor) -> Made:
    levels, scale, zero = rounded(weight, 4, 32, False)
    qweight, qzeros = (packed(part.T.unflatten(1, (-1, 8))[..., AWQ_PLACES].flatten(1), 4, 1) for part in (levels, zero))
    return {"qweight": qweight, "qzeros": qzeros, "scales": scale.T.half().contiguous()}, values(levels, scale, zero)


def compressed(bits: int = 4, size: int = 32, symmetric: bool = True) -> Callable:
    def make(weight: torch.Tensor) -> Made:
        levels, scale, zero = rounded(weight, bits, weight.shape[1] if size == -1 else size, symmetric)
        parts = {"weight_packed": packed(levels, bits, 1), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}
        return parts | ({} if symmetric else {"weight_zero_point": packed(zero, bits, 0)}), values(levels, scale, zero)

    return make


def compressed_before(weight: torch.Tensor) -> Made:
    """As older versions of compressed-tensors saved zeros: in bytes, not packed."""
    parts, floats = compressed(symmetric=False)(weight)
    _, _, zero = rounded(weight, 4, 32, False)
    return parts | {"weight_zero_point": (zero - 8).to(torch.int8)}, floats


def in_bytes(weight: torch.Tensor) -> Made:
    """compressed-tensors' int-quantized: a scale for each output."""
    levels, scale, zero = rounded(weight, 8, weight.shape[1], True)
    return {"weight": (levels - 128).to(torch.int8), "weight_scale": scale}, values(levels, scale, zero)


def float8(weight: torch.Tensor) -> Made:
    """compressed-tensors' float-quantized: a scale for each output."""
    scale = weight.float().abs().amax(1, keepdim=True) / HIGHEST_FLOAT8
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def float8_blocks(weight: torch.Tensor) -> Made:
    """As DeepSeek and Qwen publish FP8, in blocks of 48 outputs by 40 inputs, the last ones smaller."""
    scale = (
        torch.stack([torch.stack([part.abs().amax() for part in rows.float().split(40, 1)]) for rows in weight.split(48)]) / HIGHEST_FLOAT8
    )
    wide = scale.repeat_interleave(48, 0)[: len(weight)].repeat_interleave(40, 1)[:, : weight.shape[1]]
    stored = (weight / wide).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale_inv": scale}, stored.float() * wide


COMPRESSED = {"quant_method": "compressed-tensors", "config_groups": {}, "ignore": ["lm_head"]}
PACKED, BYTES = {**COMPRESSED, "format": "pack-quantized"}, {**COMPRESSED, "format": "int-quantized"}
ASYMMETRIC = {**PACKED, "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "symmetric": False}}}}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
# name -> quantization_config, how a layer is made, what `weights.types` says of the layers
KINDS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], Made], str]] = {
    "gptq": (GPTQ, gptq(), "4 bits"),
    "gptq, symmetric, one group a row": (GPTQ, gptq(size=-1, symmetric=True), "4 bits"),
    "gptq, groups of 16": (GPTQ, gptq(size=16), "4 bits"),
    "gptq v2": ({**GPTQ, "checkpoint_format": "gptq_v2"}, gptq(is_v2=True), "4 bits"),
    "gptq, 8 bits": ({**GPTQ, "bits": 8}, gptq(bits=8), "8 bits"),
    "gptq, groups in another order": ({**GPTQ, "desc_act": True}, gptq(shuffled=True), "dequantized"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq, "4 bits"),
    "compressed-tensors": (PACKED, compressed(), "4 bits"),
    "compressed-tensors with zeros": (ASYMMETRIC, compressed(symmetric=False), "4 bits"),
    "compressed-tensors with zeros in bytes": (ASYMMETRIC, compressed_before, "4 bits"),
    "compressed-tensors, 8 bits": (PACKED, compressed(bits=8, size=-1), "8 bits"),
    "compressed-tensors in bytes": (BYTES, in_bytes, "8 bits"),
    "compressed-tensors in 8-bit floats": ({**COMPRESSED, "format": "float-quantized"}, float8, "dequantized"),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [48, 40]}, float8_blocks, "dequantized"),
}


def save_rounded(plain: Path, folder: Path, kind: str) -> Path:
    """The model of `plain` with its layers' projections rounded; beside it, in FOLDER-floats, the floats that they stand for."""
    config, make, _ = KINDS[kind]
    floats = folder.with_name(f"{folder.name}-floats")
    for each in (folder, floats):
        shutil.copytree(plain, each, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors, weights = {}, {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weights[name] = tensor
            continue
        parts, weights[name] = make(tensor)
        tensors |= {f"{name.removesuffix('weight')}{part}": stored.contiguous() for part, stored in parts.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    save_file({name: weight.contiguous() for name, weight in weights.items()}, floats / "model.safetensors", {"format": "pt"})
    edit_config(folder, quantization_config=config)
    return folder


def save_mxfp4(plain: Path, folder: Path) -> Path:
    """A GPT-OSS whose experts are in MXFP4, those of all experts in one tensor, as its own checkpoints have them."""
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            groups = tensor.transpose(1, 2).float().unflatten(2, (-1, 32))  # [experts, outputs, groups, 32]
            exponent = groups.abs().amax(-1).log2().floor() - 2  # 6 is the largest float of 4 bits
            levels = (groups[..., None] / exponent.exp2()[..., None, None] - FLOATS_4).abs().argmin(-1).to(torch.uint8)
            tensors[f"{name}_blocks"] = levels[..., ::2] | levels[..., 1::2] << 4
            tensors[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
        else:
            tensors[name] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    return folder


def edit_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
