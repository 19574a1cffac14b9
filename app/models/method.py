"""How a checkpoint was quantized, by its config.json. Reads no weights."""

from typing import Any

from transformers import PretrainedConfig

METHODS = ("awq", "compressed-tensors", "fp8", "gptq", "mxfp4")  # those that `app.models.prequantized` loads


def saved_values(config: PretrainedConfig) -> dict[str, Any]:
    """The entry quantization_config of config.json; empty if there is none."""
    saved: Any = getattr(config, "quantization_config", None)
    if saved is None:
        return {}
    values: dict[str, Any] = saved if isinstance(saved, dict) else saved.to_dict()
    return values


def method_of(config: PretrainedConfig) -> str | None:
    """Such as gptq or bitsandbytes; None for a checkpoint that is not quantized."""
    values = saved_values(config)
    method = values.get("quant_method", "bitsandbytes" if values else None)
    return None if method is None else str(getattr(method, "value", method)).lower()


def is_prequantized(config: PretrainedConfig) -> bool:
    return method_of(config) in METHODS
