"""Adapters for tests: random matrices in the form in which peft saves them. peft itself is not imported, which takes seconds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save_adapter(
    folder: Path, base: str | Path, shapes: dict[str, tuple[int, int]], seed: int, targets: Sequence[str] = EVERY, **config: Any
) -> Path:
    """Write an adapter of `base` that changes the layers whose last name is one of `targets`. `shapes` are outputs and inputs of the base's
    layers by name; `config` replaces settings. A row's change is as large as what the layer gives.
    """
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 4, "lora_alpha": 8} | config
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (outputs, inputs) in shapes.items():
        if name.split(".")[-1] in targets:
            down = torch.randn(settings["r"], inputs, generator=generator) / inputs**0.5
            up = torch.randn(outputs, settings["r"], generator=generator) / settings["r"]
            tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"target_modules": list(targets), **settings}))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def llama_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the linear layers of a Llama."""
    hidden, wide = config.hidden_size, config.intermediate_size
    dim = hidden // config.num_attention_heads
    inner = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (config.num_key_value_heads * dim, hidden),
        "self_attn.v_proj": (config.num_key_value_heads * dim, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    return {f"model.layers.{layer}.{name}": shape for layer in range(config.num_hidden_layers) for name, shape in inner.items()}
