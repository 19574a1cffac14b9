"""Loads the base of a run with weights that have a backward pass, and puts a LoRA adapter beside its linear layers."""

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from app.engine.grouped import dequantize_layers
from app.errors import SetupError, first_line
from app.ledger.recipe import Recipe
from app.models.device import cards_of
from app.models.skeleton import MAX_FLOAT32_PARAMETERS, skeleton_of
from app.models.source import source_of
from app.models.weights import load_model
from app.settings import ModelSettings
from app.tuning.schedule import alpha_of


def device_of(recipe: Recipe) -> torch.device:
    """Raises `SetupError` for one that is not there."""
    name = recipe.device if recipe.device != "auto" else "cuda" if torch.cuda.device_count() else "cpu"
    if len(cards_of(name)) > 1:
        raise SetupError(
            f"model.device: {name} divides the base among cards, and fine-tuning runs on one; fine-tune it where it has one card"
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SetupError(f"model.device: {name} does not exist: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices")
    return device


def dtype_of(recipe: Recipe, parameters: int) -> str:
    """float32 where it was asked for, and for a small model; float16, which loses small gradients, is trained in bfloat16."""
    small = recipe.dtype == "auto" and parameters <= MAX_FLOAT32_PARAMETERS
    return "float32" if small or recipe.dtype == "float32" else "bfloat16"


def load_base(recipe: Recipe, quantize: str) -> PreTrainedModel:
    """Raises `SetupError`."""
    source, device = source_of(recipe.path), device_of(recipe)
    dtype = dtype_of(recipe, int(skeleton_of(source).num_parameters()))
    settings = ModelSettings(path=recipe.path, quantize=quantize, dtype=dtype, device=recipe.device)
    model = load_model(source, settings, device)
    dequantize_layers(model)  # of a GGUF file, or of a checkpoint that others rounded
    model.config.use_cache = False
    _keep_unpacked(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _keep_unpacked(model: PreTrainedModel) -> None:
    """On a CPU with AVX-512 bitsandbytes packs a 4-bit layer for good in its first forward that is no training, and a packed layer has no
    backward pass: what is before it would learn nothing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False


def with_adapter(model: PreTrainedModel, recipe: Recipe) -> Any:
    """peft's model. The adapter is float32, its first weights are a function of the seed. Raises `SetupError`."""
    from peft import LoraConfig, get_peft_model

    asked = recipe.hyperparameters
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=asked.lora_rank,
        lora_alpha=alpha_of(asked),
        lora_dropout=asked.lora_dropout,
        target_modules="all-linear",
    )
    torch.manual_seed(recipe.seed)
    try:
        made = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise SetupError(f"{recipe.model} cannot be fine-tuned by LoRA: {first_line(error)}") from error
    made.peft_config["default"].base_model_name_or_path = recipe.path  # only now: peft would replace it by the model's, and warn of that
    return made.train()
