"""Loads a model's weights: plain ones, those of a GGUF file, quantized by bitsandbytes, or with an adapter merged into them.

Whatever cannot be loaded whole and as it was meant raises a `SetupError`.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import dispatch_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, modeling_utils

from app.engine.experts import Experts, has_joined_experts, separate_experts
from app.engine.fourbits import BNB_BLOCK_OUTPUTS
from app.engine.grouped import is_four_bit_layer, layers_of
from app.engine.int4 import dequantize_others, round_layers
from app.errors import SetupError, first_line
from app.models.gguf import GGUFFile
from app.models.gguf_weights import load_gguf
from app.models.merge import merge
from app.models.method import METHODS, is_prequantized, method_of
from app.models.prequantized import load_prequantized
from app.models.skeleton import serves_float32
from app.models.source import Source
from app.models.tensors import tensor_problem
from app.settings import ModelSettings

FOUR_BITS = ("nf4", "fp4")  # of bitsandbytes
BNB_BLOCK = 64  # weights of a row with a scale of their own


def load_model(
    source: Source, settings: ModelSettings, device: torch.device, places: Mapping[str, torch.device] | None = None
) -> PreTrainedModel:
    """The model on `device`, ready to be served; but what the engine rounds on a CPU is left as it is here. With `places`, which
    `check_divisible` must have let pass, each module is on its own one. Raises `SetupError`.
    """
    if source.gguf is not None:
        return _load_gguf(source.gguf, source.path, settings, device)
    if is_prequantized(source.config("model.path")) and source.adapter is None:
        return _load_prequantized(source, settings, device)
    is_quantized = _is_quantized(source)
    dtype = "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype)
    if settings.quantize != "none" and settings.dtype == "auto":
        dtype = torch.bfloat16
    rounds_here = device.type != "cpu" and not is_quantized and rounds_itself(settings, device)
    place = torch.device("cpu") if rounds_here else device  # a model that is rounded need not fit the card as it was
    device_map = {"": place} if places is None else dict(places)
    options = {"device_map": device_map, "dtype": dtype, **_quantization(settings, device, dtype)}
    with _as_setup_errors(source, settings, str(device) if places is None else settings.device):
        if is_quantized or "quantization_config" in options:
            import_bitsandbytes()
        if source.adapter is None:
            model = _as_float32(_load(source, **options), settings, device)
        else:
            model = merge(_as_float32(_load(source, dtype=dtype), settings, device), source.adapter)
            if "quantization_config" in options:
                model = _load_again(model, **options)
                _prepare_experts(model, source.path, settings, device)
                return model.eval()
        _prepare_experts(model, source.path, settings, device)
        if rounds_here:
            round_layers(model, device)
            dequantize_others(model, device)
        if places is not None and source.adapter is not None:
            model = dispatch_model(model, device_map, device, skip_keys=model._skip_keys_device_placement)
        elif rounds_here or source.adapter is not None:
            model = _moved(model, device)
        return model.eval()


def _moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    return cast(PreTrainedModel, cast(Any, model).to(device))


def _prepare_experts(model: PreTrainedModel, path: str, settings: ModelSettings, device: torch.device) -> None:
    """Each expert of a mixture gets layers of its own, which are rounded as all others are; but on a card, where they are joined again,
    only what `int4` rounds. Raises `SetupError` for other precisions there.
    """
    if device.type == "cpu" or settings.quantize == "int4":
        separate_experts(model)
    if device.type == "cpu":
        _spare_narrow_layers(model)
    if device.type == "cpu" and settings.quantize in FOUR_BITS:
        round_experts(model, settings.quantize)
    if device.type != "cpu" and settings.quantize != "none" and has_joined_experts(model):
        use = "none" if settings.quantize == "int4" else "int4 or none"
        raise SetupError(f"model.quantize: on {device}, {settings.quantize} would leave the experts of {path} as they are; use {use}")


def _spare_narrow_layers(model: PreTrainedModel) -> None:
    """Let bitsandbytes compute 4-bit layers without its layout for processors with AVX512-BF16 where their outputs are no whole number of
    its blocks: it would fail at the first row. Such are the gates of heads in LFM3, and of the shared expert in Qwen 2 MoE.
    """
    layers: list[Any] = [module for module in model.modules() if is_four_bit_layer(module)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu &= layer.out_features % BNB_BLOCK_OUTPUTS == 0


def round_experts(model: PreTrainedModel, kind: str) -> None:
    """Round their layers to `kind`, nf4 or fp4: transformers rounds a model before they have any. Layers that bitsandbytes cannot divide
    into its blocks stay.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for experts in [module for module in model.modules() if isinstance(module, Experts)]:
        for parent, name, layer in layers_of(experts):
            if type(layer) is nn.Linear and layer.in_features % BNB_BLOCK == 0 and layer.out_features % BNB_BLOCK == 0:
                rounded = Linear4bit(layer.in_features, layer.out_features, False, layer.weight.dtype, False, kind, device="meta")
                rounded.weight = Params4bit(layer.weight.detach().contiguous(), False, compress_statistics=False, quant_type=kind)
                rounded.bias = layer.bias
                setattr(parent, name, rounded.to("cpu"))


def import_bitsandbytes() -> None:
    """Without torch's compiler, 77 MB and a second of each worker: bitsandbytes would import it for what stands in for its own library
    where that is missing.
    """
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)  # it misses a package that is not needed
    compiler = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda decorated: decorated)  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiler


def rounds_itself(settings: ModelSettings, device: torch.device) -> bool:
    """Whether Litmus rounds the weights, and not bitsandbytes."""
    return settings.quantize == "int4" or (settings.quantize == "int8" and device.type == "cpu")


def engine_scheme(settings: ModelSettings, device: torch.device) -> str:
    """What `create_flat_model` has to round to: "none" where `load_model` has done it."""
    return settings.quantize if device.type == "cpu" and rounds_itself(settings, device) else "none"


def _load(source: Source, **options: Any) -> PreTrainedModel:
    """transformers' model. Raises `SetupError` if weights are missing or left over."""
    auto: Any = AutoModelForCausalLM
    checks = {"ignore_mismatched_sizes": True, "output_loading_info": True}  # so that what is wrong is named below, all of it
    place = {} if source.place is not None else source.revision
    with _taking_memory_by_tensor():
        model, info = auto.from_pretrained(source.place or source.base, **place, **options, **checks)
    _check_complete(source.base, info)
    return model


def _load_again(model: PreTrainedModel, **options: Any) -> PreTrainedModel:
    """Quantize a model that is in memory: transformers quantizes while it loads."""
    model_class: Any = type(model)
    return model_class.from_pretrained(None, config=model.config, state_dict=model.state_dict(), **options)


@contextmanager
def _taking_memory_by_tensor() -> Iterator[None]:
    """Keep transformers from taking a card's memory for all tensors at once: what joined layers leave of it could not be given back, a
    tenth of a Llama in bfloat16.
    """
    own = modeling_utils.caching_allocator_warmup
    modeling_utils.caching_allocator_warmup = lambda *_: None
    try:
        yield
    finally:
        modeling_utils.caching_allocator_warmup = own


@contextmanager
def _as_setup_errors(source: Source, settings: ModelSettings, device: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SetupError(f"{source.path}: its weights do not fit the memory of {device}: {first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, ArithmeticError) as error:
        raise SetupError(f"{source.path} cannot be loaded on {device} with quantize={settings.quantize}: {first_line(error)}") from error


def _load_gguf(file: GGUFFile, path: str, settings: ModelSettings, device: torch.device) -> PreTrainedModel:
    if settings.quantize != "none":
        raise SetupError(f"model.quantize: {path} is a GGUF file, whose weights keep their own precision; use none")
    model = load_gguf(file, torch.bfloat16 if settings.dtype == "auto" else getattr(torch, settings.dtype), device)
    if device.type != "cpu":
        dequantize_others(model, device)
    return _moved(model, device)


def _load_prequantized(source: Source, settings: ModelSettings, device: torch.device) -> PreTrainedModel:
    if settings.quantize != "none":
        raise SetupError(f"model.quantize: {source.path} is {source.own_precision}, whose weights keep their own precision; use none")
    with _as_setup_errors(source, settings, str(device)):
        model = load_prequantized(source, torch.bfloat16 if settings.dtype == "auto" else getattr(torch, settings.dtype), device)
        if device.type != "cpu":
            dequantize_others(model, device)
        return _moved(model, device)


def _as_float32(model: PreTrainedModel, settings: ModelSettings, device: torch.device) -> PreTrainedModel:
    """A small model in float32, if nobody asked for another precision."""
    is_quantized = bool(getattr(model, "is_quantized", False))
    small = serves_float32(settings.dtype, settings.quantize, device.type, model.num_parameters(), is_quantized)
    return model.float() if small else model


def _check_complete(path: str, info: dict[str, Any]) -> None:
    """Raises `SetupError` that names the tensors for which the checkpoint has no, or no fitting, weights, and those of no use."""
    misshapen = [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
    missing = sorted(set(map(str, info["missing_keys"])) - set(misshapen))
    problem = tensor_problem(missing, sorted(map(str, info["unexpected_keys"])), sorted(misshapen))
    if problem:
        raise SetupError(f"{path} cannot be served: {problem}")


def _is_quantized(source: Source) -> bool:
    """Whether bitsandbytes saved the checkpoint. Raises `SetupError` for another quantization, and for any of an adapter's base."""
    name = method_of(source.config("model.path"))
    if name is None:
        return False
    if source.adapter is not None:
        raise SetupError(
            f"{source.path}: its base {source.base} is quantized by '{name}'; an adapter is merged into float weights: write the folder or "
            "hub name of the original weights to base_model_name_or_path in its adapter_config.json"
        )
    if name != "bitsandbytes":
        raise SetupError(
            f"{source.path} is quantized by '{name}', which Litmus does not load; serve the original weights "
            f"with model.quantize, a checkpoint of bitsandbytes, {', '.join(METHODS)}, or a GGUF file"
        )
    return True


def _quantization(settings: ModelSettings, device: torch.device, dtype: object) -> dict[str, BitsAndBytesConfig]:
    """The option for transformers. Without one, a checkpoint that bitsandbytes saved is loaded as it is."""
    if settings.quantize == "none" or rounds_itself(settings, device):
        return {}
    if settings.quantize == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=settings.quantize, bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": four_bits}
