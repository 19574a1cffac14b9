"""Merges a LoRA adapter into the float weights of its base.

peft builds and merges the layers; it is imported for adapters only. It merely warns of weights that are missing or that fit no layer, and
merges some kinds of adapters wrongly; both are refused here by name.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from app.engine.proof import CHECK_TOKENS, MAX_ERROR, MAX_ERROR_FLOAT32
from app.errors import SetupError, first_line
from app.models.adapter import CONFIG, Adapter
from app.models.tensors import tensor_problem

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."  # of every name in an adapter's file


@dataclass(frozen=True, slots=True)
class Call:
    """What a layer was called with, and what it gave."""

    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor


def merge(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """`model`, the base with its float weights, with the adapter merged into them in place.

    Raises `SetupError` that names weights of the adapter that are missing, unexpected or misshapen, and layers that do not compute what
    those of base and adapter compute side by side.
    """
    weights = read_weights(adapter)
    _resize(model, adapter, weights)
    with _peft_errors(adapter), torch.no_grad():
        peft_model: Any = _attach(model, adapter, weights)
        calls = _recorded(model)
        _untie(model)
        merged: PreTrainedModel = peft_model.merge_and_unload()
        _tie(merged)
        _check(merged, calls, adapter)
    return merged


@contextmanager
def _peft_errors(adapter: Adapter) -> Iterator[None]:
    """peft's errors as a `SetupError`. Its warnings are left out: what they warn of is checked here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, ValueError, KeyError, TypeError, NotImplementedError, AttributeError, ImportError) as error:
        raise SetupError(f"{adapter.path} cannot be merged into {adapter.base}: {first_line(error)}") from error


def read_weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Raises `SetupError` for weights that are missing, cannot be read or are not finite."""
    file = next((file for name in WEIGHTS if (file := adapter.file(name))), None)
    if file is None:
        raise SetupError(f"{adapter.path} is an adapter without weights: {' or '.join(WEIGHTS)} is missing")
    try:
        weights = load_file(file) if file.suffix == ".safetensors" else dict(torch.load(file, map_location="cpu", weights_only=True))
        broken = sorted(name for name, tensor in weights.items() if not tensor.isfinite().all())
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, TypeError, AttributeError) as error:
        raise SetupError(f"{adapter.path}: {file.name} cannot be read, is it complete? {first_line(error)}") from error
    except UnpicklingError as error:  # whose words recommend to run what is in the file
        raise SetupError(f"{adapter.path}: {file.name} cannot be read: it holds more than tensors, or something else") from error
    if broken:
        raise SetupError(f"{adapter.path}: {file.name} has infinite values or NaN in {', '.join(broken[:4])}")
    return weights


def _resize(model: PreTrainedModel, adapter: Adapter, weights: dict[str, torch.Tensor]) -> None:
    """Give the base as many embeddings as the adapter brings: tokens were added when it was trained."""
    embedding, head = _owners(model)
    names = {module: name for name, module in model.named_modules()}
    brought, own = _full_weight(weights, names[embedding]), embedding.weight.shape[0]
    if brought is None or brought.shape[0] == own:
        return
    if head.weight is not embedding.weight and _full_weight(weights, names[head]) is None:
        raise SetupError(
            f"{adapter.path} has {brought.shape[0]} embeddings, its base {own}: {names[head]}.weight is missing in the adapter"
        )
    model.resize_token_embeddings(brought.shape[0], mean_resizing=False)


def _full_weight(weights: dict[str, torch.Tensor], module: str) -> torch.Tensor | None:
    return next((weights[key] for part in ("", "base_layer.") if (key := f"{PREFIX}{module}.{part}weight") in weights), None)


def _attach(model: PreTrainedModel, adapter: Adapter, weights: dict[str, torch.Tensor]) -> Any:
    """The base with the adapter's layers beside its own. Raises `SetupError` unless every weight of the adapter has its place."""
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    file = adapter.file(CONFIG)
    assert file is not None
    values = json.loads(file.read_text(encoding="utf-8"))
    unknown = sorted(name for name, value in values.items() if value and name not in {field.name for field in fields(LoraConfig)})
    if unknown:
        raise SetupError(f"{adapter.path}: its {CONFIG} has settings that the installed peft does not know: {', '.join(unknown)}")
    config = LoraConfig.from_pretrained(str(file.parent))
    config.inference_mode = True
    peft_model = PeftModel(model, config).eval()
    needed, known = (get_peft_model_state_dict(peft_model, save_embedding_layers=embeddings) for embeddings in (False, True))
    named = convert_peft_adapter_state_dict_for_transformers(peft_model, config, dict(weights))
    misshapen = sorted(name for name in set(named) & set(known) if named[name].shape != known[name].shape)
    problem = tensor_problem(sorted(set(needed) - set(named)), sorted(set(named) - set(known)), misshapen)
    if problem:
        raise SetupError(f"{adapter.path} does not fit its base {adapter.base}: {problem}")
    set_peft_model_state_dict(peft_model, weights)
    return peft_model


def _recorded(model: Any) -> list[Call]:
    """One call of each layer that the adapter changes, with the inputs that it has on the check's tokens."""
    calls: list[Call] = []

    def record(name: str, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(Call(name, args, kwargs, _first(output)))

    handles = [layer.register_forward_hook(partial(record, name), with_kwargs=True) for name, layer in _changed_layers(model)]
    ids = [(7919 * i + 11) % int(_owners(model)[0].weight.shape[0]) for i in range(CHECK_TOKENS)]
    model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


def _changed_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What peft put in the place of layers; the outermost where it put one into another."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    outer = None
    for name, module in model.named_modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and (outer is None or not name.startswith(f"{outer}.")):
            outer = name
            yield name, module


def _first(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor.float()


def _check(model: PreTrainedModel, calls: list[Call], adapter: Adapter) -> None:
    limit = MAX_ERROR_FLOAT32 if model.dtype == torch.float32 else MAX_ERROR
    for call in calls:
        error = (_first(model.get_submodule(call.module)(*call.args, **call.kwargs)) - call.output).norm()
        if not error <= limit * call.output.norm():
            raise SetupError(
                f"{adapter.path} cannot be served: merged into its base, layer {call.module} gives another result by "
                f"{float(error / call.output.norm()):.1%}"
            )


def _owners(model: PreTrainedModel) -> tuple[Any, Any]:
    """The modules that hold the weights of the embedding and the vocabulary projection, below what peft put around them."""
    embedding, head = (
        getattr(module, "base_layer", getattr(module, "original_module", module))
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    return embedding, head


def _untie(model: PreTrainedModel) -> None:
    """Give the projection a copy of its weights if the adapter changes it or the embedding: peft would merge into both at once."""
    embedding, head = _owners(model)
    changed = model.get_input_embeddings() is not embedding or model.get_output_embeddings() is not head
    if changed and embedding.weight is head.weight:
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)


def _tie(model: PreTrainedModel) -> None:
    """Keep one copy where both are still the same, as with tokens that were trained in both."""
    embedding, head = _owners(model)
    same = embedding.weight is head.weight or torch.equal(embedding.weight, head.weight)
    if same:
        head.weight = embedding.weight
    model.config.tie_word_embeddings = same
