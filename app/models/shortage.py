"""Whether a model surely does not fit the memory that a CPU has left, by the sizes of its files and its configuration.

A guess for the sake of an early answer. What counts is the ledger of the worker, which knows the weights. Needs no torch.
"""

import contextlib
from math import prod
from pathlib import Path

import psutil
from transformers import PretrainedConfig

from app.engine.ledger import SLOT_TOKENS, Ledger, activation_bytes, cpu_memory, gib, widths_of
from app.models.context import context_of, wanted_context
from app.models.hub import find_file
from app.models.names import is_hub_name
from app.models.source import Source, source_of
from app.settings import ModelSettings

BITS = {"int4": 5.0, "int8": 9.0, "nf4": 4.5, "fp4": 4.5}  # of a weight, scales included
DTYPE_BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0}
SUFFIXES = (".safetensors", ".bin")
MAX_FLOAT32_PARAMETERS = 64_000_000  # as in `app.models.skeleton`
SCALE_BYTES = 4  # of a head's key or value in 8 bits; as in `app.engine.keyvalues`
HEAD_ROWS = 256  # at least so many rows have logits at once; as in `app.engine.capacity`


def shortage(settings: ModelSettings) -> str | None:
    """Why the model does not fit beside what the machine holds now, and how much is missing; None where it may fit.

    Raises `SetupError` for what is no model. What is on the hub is not looked at: that could be a download.
    """
    paths = [path for path in (settings.path, settings.observer_path, settings.draft) if path is not None]
    if any(is_hub_name(path) and not Path(path).exists() for path in paths):
        return None
    ledgers = [_ledger(settings, path) for path in paths]
    weights = settings.replicas * sum(ledger.weights for ledger in ledgers)
    slots, own = settings.slots or 1, ledgers[0]
    needed = weights + settings.replicas * (own.activations + _cache_bytes(settings, own, slots))
    if needed <= own.memory:
        return None
    largest = _largest(settings, slots)
    return (
        f"weights of {gib(weights)} and {largest}{f' in each of {settings.replicas} replicas' if settings.replicas > 1 else ''} need "
        f"{gib(needed)}, and {gib(own.memory)} are free: {gib(needed - own.memory)} are missing"
    )


def _largest(settings: ModelSettings, slots: int) -> str:
    """What decides the size of the cache."""
    if settings.cache_tokens is not None:
        return f"a cache of {settings.cache_tokens} tokens"
    if settings.context is not None and settings.context > slots * SLOT_TOKENS:
        return f"a context of {settings.context} tokens"
    return f"{slots} slots"


def _cache_bytes(settings: ModelSettings, ledger: Ledger, slots: int) -> int:
    """Of a replica, with a window for long texts. One slot with a context that the settings leave to the memory takes what there is."""
    if settings.context is None and settings.cache_tokens is None and slots == 1:
        return 0
    context = wanted_context(settings.context, context_of("path", source_of(settings.path)))
    slot_tokens = min(context, SLOT_TOKENS)
    asked = slots * slot_tokens if settings.context is None else max(slots * slot_tokens, context)
    return ledger.slot * (settings.cache_tokens or asked) // slot_tokens + ledger.text


def _ledger(settings: ModelSettings, path: str) -> Ledger:
    source = source_of(path)
    config = source.config("path")
    parameters, stored_bytes = _stored(source, config)
    dtype = _dtype(settings, source, config, parameters)
    kept = source.own_precision is not None and settings.dtype != "float32"
    bits = BITS.get(settings.quantize, DTYPE_BITS[dtype]) if settings.dtype != "float32" else DTYPE_BITS["float32"]
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    context = wanted_context(settings.context, context_of("path", source))
    rows = max(HEAD_ROWS, settings.slots or 0)
    elements = config.num_hidden_layers * heads * 2 * head  # of a token
    slot_elements, item = min(context, SLOT_TOKENS) * elements, int(DTYPE_BITS[dtype] / 8)
    return Ledger(
        memory=cpu_memory(_resident_bytes()),
        weights=stored_bytes if kept else int(parameters * bits / 8),
        activations=activation_bytes(settings.step_tokens, widths_of(config), rows),
        slot=slot_elements // head * (head + SCALE_BYTES) if settings.cache_dtype == "int8" else slot_elements * item,
        text=min(context, settings.text_window) * elements * item,
    )


def _stored(source: Source, config: PretrainedConfig) -> tuple[int, int]:
    """Number of weights, and the bytes of their files."""
    if source.gguf is not None:
        return sum(prod(tensor.shape) for tensor in source.gguf.tensors.values()), sum(part.stat().st_size for part in source.gguf.parts)
    file = find_file(source.base, "config.json", **source.revision)
    folder = file.parent if file is not None else Path(source.base)
    for suffix in SUFFIXES:
        sizes = [file.stat().st_size for file in folder.glob(f"*{suffix}")]
        if sizes:
            return int(8 * sum(sizes) / DTYPE_BITS.get(_name(config.dtype), 32.0)), sum(sizes)
    return 0, 0


def _dtype(settings: ModelSettings, source: Source, config: PretrainedConfig, parameters: int) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    if source.own_precision is not None or settings.quantize != "none":
        return "bfloat16"
    stored = _name(config.dtype)
    return "float32" if parameters <= MAX_FLOAT32_PARAMETERS or stored not in DTYPE_BITS else stored


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _resident_bytes() -> int:
    """Memory of this server's processes, which counts in the limit of a container."""
    total, parent = 0, psutil.Process().parent()
    for process in [] if parent is None else [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total
