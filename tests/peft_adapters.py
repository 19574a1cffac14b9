"""Adapters that peft makes, and models that are loaded with them."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from app.models.source import source_of
from app.models.weights import import_bitsandbytes, load_model
from app.settings import ModelSettings

import_bitsandbytes()  # before peft imports it, and torch's compiler with it

import peft  # noqa: E402

IDS = torch.tensor([[1, 5, 9, 33, 7, 200, 8]])
CPU = torch.device("cpu")


def adapter(base: Path, folder: Path, rows: int | None = None, **options: Any) -> Path:
    """Save an adapter with random weights as peft does; with `rows`, of a base with so many embeddings."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], **options})
    peft_model = peft.get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens")):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    peft_model.save_pretrained(folder)
    return folder


def settings(folder: Path, **options: Any) -> ModelSettings:
    return ModelSettings(path=str(folder), device="cpu", slots=2, **options)


def loaded(folder: Path, **options: Any) -> Any:
    return load_model(source_of(str(folder)), settings(folder, **options), CPU)


def edit_config(folder: Path, **values: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder
