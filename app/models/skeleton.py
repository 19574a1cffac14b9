"""A model without its weights: its modules on torch's meta device, made of the config alone, and the precision it would be served in."""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.engine.experts import separate_experts
from app.errors import SetupError, UnsupportedModel, first_line
from app.models.method import is_prequantized, method_of
from app.models.source import Source

# Up to this many parameters a CPU serves float32: it is as fast, and answers do not depend on the batch.
MAX_FLOAT32_PARAMETERS = 64_000_000
SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def skeleton_of(source: Source, field: str = "model.path") -> PreTrainedModel:
    """The model on the meta device, in bfloat16. Raises `SetupError` if there is no usable config."""
    config = source.config(field)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise UnsupportedModel(f"{source.path}: its config makes no causal language model: {first_line(error)}") from error
    separate_experts(model)
    return model.eval()


def served_dtype(source: Source, dtype: str, quantize: str, device: str, parameters: int) -> torch.dtype:
    """What weights and cache are served in. `dtype` and `quantize` are those of the settings, `device` is "cpu" or "cuda"."""
    if dtype != "auto":
        return _named(dtype)
    if source.gguf is not None or quantize != "none":
        return torch.bfloat16
    config = source.config("model.path")
    if is_prequantized(config):
        return torch.bfloat16
    is_quantized = method_of(config) is not None
    if serves_float32(dtype, quantize, device, parameters, is_quantized):
        return torch.float32
    own = getattr(config, "dtype", None)
    return own if isinstance(own, torch.dtype) else _saved_dtype(source) or torch.float32


def serves_float32(dtype: str, quantize: str, device: str, parameters: int, is_quantized: bool) -> bool:
    """Whether a small model is served in float32, if nobody asked for another precision."""
    return quantize == "none" and dtype == "auto" and device == "cpu" and not is_quantized and parameters <= MAX_FLOAT32_PARAMETERS


def _named(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype)
    return found


def _saved_dtype(source: Source) -> torch.dtype | None:
    """The first float type in the header of the weights, as transformers' "auto" takes it; None without safetensors at hand."""
    folder = Path(source.base)
    file = next(iter(sorted(folder.glob("*.safetensors"))), None) if folder.is_dir() else None
    if file is None:
        return None
    types = (SAFETENSORS_DTYPES.get(str(tensor.get("dtype"))) for tensor in _header(file).values())
    return next((dtype for dtype in types if dtype is not None), None)


def _header(file: Path) -> dict[str, Any]:
    """The table in front of a safetensors file. Raises `SetupError` if it cannot be read."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            return dict(json.loads(stream.read(min(length, file.stat().st_size))))
    except (OSError, ValueError, struct.error, OverflowError) as error:
        raise SetupError(f"{file.name}: its header cannot be read, is it complete? {first_line(error)}") from error
