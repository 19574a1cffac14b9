"""Reads LoRA adapters that are served beside their base, on the same weights. What cannot be computed row by row is refused by name;
merged into its base (`app.models.merge`) it may be served.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from app.engine.facts import AdapterFacts, Facts
from app.engine.flat import FlatModel
from app.engine.lora import LoadedAdapter, Matrices, Shapes
from app.errors import SetupError, first_line
from app.models.adapter import CONFIG, Adapter
from app.models.merge import PREFIX, read_weights
from app.models.revision import fingerprint_of, further_parts
from app.models.source import Source, source_of
from app.models.tensors import tensor_problem

# Settings of peft that change nothing of what A and B are, or are read here.
UNDERSTOOD = frozenset(
    "peft_type task_type base_model_name_or_path revision inference_mode auto_mapping peft_version r target_modules exclude_modules "
    "lora_alpha lora_dropout fan_in_fan_out use_rslora init_lora_weights layers_to_transform layers_pattern rank_pattern alpha_pattern "
    "megatron_core qalora_group_size eva_config runtime_config loftq_config ensure_weight_tying bias".split()
)
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # of init_lora_weights: the others change the base's weights
A, B = ".lora_A.weight", ".lora_B.weight"


class LoraReader:
    """Reads adapters for a model that is served. `facts` are those of the model."""

    def __init__(self, model: FlatModel, path: str, facts: Facts) -> None:
        self._model, self._source, self._facts = model, source_of(path), facts

    def read(self, name: str, path: str) -> LoadedAdapter:
        """Any thread may call it. Raises `SetupError` that names the adapter, and what is wrong with it."""
        if len(self._model.devices) > 1:
            raise SetupError(f"adapter '{name}': none is served beside a model that is divided among {self._model.device_name}")
        try:
            weights, own_revision = read_lora(path, self._source, self._model.adapters.shapes)
            changes = self._model.adapters.prepare(weights)
        except SetupError as error:
            raise SetupError(f"adapter '{name}' ({path}): {error.message}") from error
        facts = self._facts
        revision = f"{facts.revision}+{own_revision}"
        further = further_parts(facts.cache_dtype, facts.template)
        fingerprint = fingerprint_of(name, revision, facts.quantize, facts.dtype, repr(facts.sampling), *further)
        file = Adapter(path, self._source.base).file(CONFIG)
        made = None if file is None else int(file.stat().st_mtime)
        return LoadedAdapter(AdapterFacts(name, path, revision, fingerprint, made), changes)


def read_lora(path: str, source: Source, shapes: Shapes) -> tuple[dict[str, Matrices], str]:
    """The adapter's matrices by the layers that they change, B scaled, and its revision. Raises `SetupError`."""
    adapter = Adapter(path, source.base)
    config = _config(adapter)
    _check_settings(path, config)
    _check_base(config, adapter, source)
    pairs = _pairs(path, read_weights(adapter), shapes)
    missing = [name for name in shapes.layers if name not in pairs and name != shapes.head and _is_target(config, name)]
    if missing:
        raise SetupError(f"it does not fit {source.path}: {tensor_problem(missing, [], [])}")
    return {name: _scaled(name, pair, config) for name, pair in pairs.items()}, adapter.weights_revision()


def _config(adapter: Adapter) -> dict[str, Any]:
    file = adapter.file(CONFIG)
    if file is None:
        raise SetupError(f"there is no {CONFIG}; give the folder or hub name of a LoRA adapter as peft saves it")
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SetupError(f"its {CONFIG} cannot be read: {first_line(error)}") from error


def _check_settings(path: str, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise SetupError(f"it is of the type {config.get('peft_type', 'unknown')}; only LORA is served beside a base")
    if config.get("task_type") not in {None, "CAUSAL_LM"}:
        raise SetupError(f"it is for the task {config['task_type']}; Litmus serves CAUSAL_LM")
    names = [name for name, value in config.items() if value and name not in UNDERSTOOD]
    names += ["bias"] if config.get("bias", "none") != "none" else []
    names += [] if config.get("init_lora_weights", True) in PLAIN_STARTS else ["init_lora_weights"]
    if names:
        raise SetupError(f"it has {', '.join(sorted(names))}, which cannot be computed beside the base: {_merged(path)}")


def _merged(path: str) -> str:
    return f"serve it merged into its base, as a model of its own with the path {path}"


def _check_base(config: dict[str, Any], adapter: Adapter, source: Source) -> None:
    """By place or name; a GGUF file's name begins with that of its model. Raises `SetupError`."""
    named, file = str(config.get("base_model_name_or_path") or ""), adapter.file(CONFIG)
    assert file is not None
    places = {Path(path).resolve() for path in (named, file.parent / named) if named}
    if named == source.path or Path(source.path).resolve() in places:
        return
    served, theirs = (Path(each.rstrip("/")).name.lower() for each in (source.path, named))
    if theirs and (served == theirs or (source.gguf is not None and served.startswith(theirs.removesuffix("-gguf")))):
        return
    raise SetupError(
        f"it is of {named or 'a base that it does not name'}, not of {source.path}; if that has the same weights, write its path "
        f"to base_model_name_or_path in the adapter's {CONFIG}"
    )


def _pairs(path: str, weights: Mapping[str, torch.Tensor], shapes: Shapes) -> dict[str, Matrices]:
    """A and B of each layer. Raises `SetupError` for what is missing, fits no linear layer or is of another shape."""
    unexpected = sorted(key for key in weights if not (key.startswith(PREFIX) and key.endswith((A, B))))
    names = {key.removeprefix(PREFIX).removesuffix(A).removesuffix(B) for key in weights if key not in unexpected}
    unknown = sorted(name for name in names if name not in shapes.layers) + [key for key in unexpected if "lora_embedding" in key]
    if shapes.head in names:
        raise SetupError(f"it changes the vocabulary projection {shapes.head}, which all rows share: {_merged(path)}")
    if unknown:
        raise SetupError(f"it changes what are no linear layers of the model: {', '.join(unknown[:4])}")
    missing = sorted(f"{PREFIX}{name}{suffix}" for name in names for suffix in (A, B) if f"{PREFIX}{name}{suffix}" not in weights)
    pairs = {name: (weights[f"{PREFIX}{name}{A}"], weights[f"{PREFIX}{name}{B}"]) for name in sorted(names)} if not missing else {}
    misshapen = [name for name, (down, up) in pairs.items() if not _fits(down, up, shapes.layers[name])]
    problem = tensor_problem(missing, unexpected, misshapen)
    if problem or not pairs:
        raise SetupError(f"it does not fit the model: {problem or 'it changes no layer'}")
    return pairs


def _fits(down: torch.Tensor, up: torch.Tensor, shape: tuple[int, int]) -> bool:
    return down.ndim == up.ndim == 2 and (len(up), down.shape[1]) == shape and len(down) == up.shape[1] > 0


def _is_target(config: Mapping[str, Any], name: str) -> bool:
    """Whether the configuration says that the adapter changes this layer, as peft reads it."""
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not targets or _matches(config.get("exclude_modules"), name):
        return False
    if isinstance(targets, str):
        return targets != "all-linear" and _matches(targets, name)
    number = re.search(r"\.(\d+)\.", f".{name}")
    if layers not in (None, []):
        return _matches(targets, name) and number is not None and int(number[1]) in ([layers] if isinstance(layers, int) else layers)
    return _matches(targets, name)


def _matches(patterns: str | list[str] | None, name: str) -> bool:
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns or ())


def _scaled(name: str, pair: Matrices, config: Mapping[str, Any]) -> Matrices:
    """B times the scaling, in float32. Raises `SetupError` where the configuration does not say the rank that A and B have."""
    down, up = pair
    rank = _pattern(config.get("rank_pattern"), name, config.get("r"))
    alpha = _pattern(config.get("alpha_pattern"), name, config.get("lora_alpha"))
    if rank != len(down) or not isinstance(alpha, int | float):
        raise SetupError(f"{name} has matrices of rank {len(down)}, but its {CONFIG} says rank {rank} and lora_alpha {alpha}")
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return down.float(), up.float() * scaling


def _pattern(patterns: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value of the first pattern that the layer's name ends with, as peft looks it up."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)
