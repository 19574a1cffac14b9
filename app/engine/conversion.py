"""Converts a model, in place, to serve flat rows: its layers are rounded and packed, and it gets its KV cache.

Before anything is served, the logits are compared with those of the model's own forward.
"""

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from accelerate.hooks import remove_hook_from_module
from transformers import PreTrainedModel

from app.engine import varlen
from app.engine.attention import SlotAttention
from app.engine.capacity import CacheLimits, ledger_of, size_that_fits
from app.engine.convolution import install_convolutions
from app.engine.deltanet import PAGE_TOKENS as STATE_PAGE_TOKENS
from app.engine.deltanet import install_delta_nets
from app.engine.facts import Weights
from app.engine.flat import FlatModel
from app.engine.fourbits import group_layers
from app.engine.fused import compile_experts, create_fused_decoder
from app.engine.int4 import pack_layers
from app.engine.kernel import kernel
from app.engine.keyvalues import Shape, attends
from app.engine.layout import Span, layout_of
from app.engine.ledger import Ledger, device_memory, weight_bytes
from app.engine.linear import prepack_layers, widen_inputs
from app.engine.lora import shapes_of
from app.engine.proof import Check, Proof, check_layers
from app.engine.rounding import quantize_layers
from app.engine.rows import check_bytes
from app.errors import UnsupportedModel

log = logging.getLogger(__name__)


def create_flat_model(model: PreTrainedModel, limits: CacheLimits, scheme: str = "none", proof: Proof | None = None) -> FlatModel:
    """Convert `model`, in place, to serve flat rows. `scheme` is "int4" or "int8" where its layers are to be rounded first (CPU only: for
    CUDA they were rounded while loading). With the `proof` of an earlier conversion of the same model its logits are not compared again.

    Raises `UnsupportedModel` if the architecture does not use the attention interface or its logits differ, and `SetupError` if the
    cache does not fit the device's free memory.
    """
    shapes = shapes_of(model, model.get_output_embeddings())
    started_s = time.perf_counter()
    if scheme != "none":
        quantize_layers(model, scheme)
    convert_s = time.perf_counter() - started_s
    check = Check(model) if proof is None else None
    attention = install_attention(model)
    if check is not None:
        flat = FlatModel(model, attention, None)
        check.compare("in one piece", flat.head(flat.forward_uncached(check.ids)))
        check_layers(model, attention)
    if proof is not None:
        attention.shapes, attention.windows, attention.changes = dict(proof.shapes), dict(proof.windows), proof.changes
    started_s = time.perf_counter()
    flat = _optimize(model, attention, None if proof is None else proof.harmed)
    flat.convert_s = convert_s + time.perf_counter() - started_s
    _allocate_cache(flat, limits)
    flat.bind_cuda()
    if check is not None:
        hidden = _checked_in_chunks(flat, check)
        check.end(model)
        proof = Proof(attention.shapes, attention.windows, attention.changes, flat.weights.inputs_of_16_bits, hidden.shape[-1])
    assert proof is not None
    flat.proof, flat.hidden_size = proof, proof.hidden_size
    flat.bind_adapters(shapes)
    return flat


def install_attention(model: PreTrainedModel) -> SlotAttention:
    attention = SlotAttention()
    install_convolutions(model, attention)
    install_delta_nets(model, attention)
    try:
        model.set_attn_implementation(attention.name)
    except ValueError as error:
        raise UnsupportedModel(f"{type(model).__name__} cannot be served: it does not use transformers' AttentionInterface") from error
    return attention


def _optimize(model: PreTrainedModel, attention: SlotAttention, known_harmed: Collection[str] | None) -> FlatModel:
    group_layers(model)
    decoder = create_fused_decoder(model, attention)
    if decoder is not None and hasattr(model, "hf_device_map"):  # it moves states between cards itself, without a hook on every module
        remove_hook_from_module(model.base_model, recurse=True)
    harmed: list[str] = []
    if model.device.type == "cpu":
        harmed = prepack_layers(model, known_harmed)
        compile_experts(model)
    else:
        pack_layers(model)
    if decoder is not None:
        decoder.bind_layers()
    flat = FlatModel(model, attention, decoder)
    flat.weights = Weights(bytes=weight_bytes(model), inputs_of_16_bits=tuple(harmed))
    return flat


def _allocate_cache(flat: FlatModel, limits: CacheLimits) -> None:
    dtype, attention = flat.model.dtype, flat.attention
    if flat.has_states:
        limits = replace(limits, page_tokens=STATE_PAGE_TOKENS)
    slots_dtype = limits.dtype_for(dtype)
    if slots_dtype == torch.int8:
        compiled = kernel() if flat.device.type == "cpu" else None
        columns = None if compiled is None else compiled.columns
        check_bytes(type(flat.model).__name__, dtype, attention.shapes.values(), limits.page_tokens, columns)
    parts = {device: _shapes_on(flat, device) for device in flat.devices}
    ledgers = {device: _ledger_of(flat, device, parts[device], limits) for device in flat.devices}
    longest = max(limits.context, limits.text_tokens)  # whatever the memory holds
    sizes = [size_that_fits(ledger, limits, str(device)) for device, ledger in ledgers.items()]
    flat.slots = min(size.slots or 0 for size in sizes)
    context = min(size.context for size in sizes)
    limits = replace(limits, context=context, text_window=min(size.text_tokens for size in sizes))
    flat.context, flat.text_window = limits.context, limits.text_tokens
    flat.pages, flat.page_tokens = limits.pool_pages(flat.slots), limits.page_tokens
    flat.scoring_pages = range(limits.text_pages)
    splits, context = 0, -(-longest // flat.page_tokens) * flat.page_tokens  # no splits: not by torch's flash kernel
    if flat.page_tokens == varlen.PAGE_TOKENS:
        attending = {device: list(filter(attends, shapes.values())) for device, shapes in parts.items()}
        splits = min(varlen.usable_splits(device, dtype, own, context, attention.changes) for device, own in attending.items() if own)
    for cache, pages, kept_as in ((attention.slots, flat.pages, slots_dtype), (attention.texts, limits.text_pages, dtype)):
        for device, shapes in parts.items():
            if splits:
                cache.allocate_by_tokens(shapes, pages, kept_as, device, context=context, splits=splits)
            else:
                cache.allocate(shapes, pages, flat.page_tokens, kept_as, device)
    name = type(flat.model).__name__
    for device, ledger in ledgers.items():
        held = f" ({len(parts[device])} of {len(attention.shapes)} layers)" if len(ledgers) > 1 else ""
        log.info("%s on %s%s: %s", name, device, held, ledger)
    log.info("%s: %d slots, a cache of %d tokens", name, flat.slots, flat.pages * flat.page_tokens)


def _shapes_on(flat: FlatModel, device: torch.device) -> dict[int, Shape]:
    """Those of the layers on the device."""
    return {layer: shape for layer, shape in flat.attention.shapes.items() if flat.layer_devices.get(layer, flat.device) == device}


def _ledger_of(flat: FlatModel, device: torch.device, shapes: Mapping[int, Shape], limits: CacheLimits) -> Ledger:
    """Of one device. Each gets the activations of a whole step with its logits."""
    weights = flat.weights.bytes if len(flat.devices) == 1 else weight_bytes(flat.model, device)
    config, memory = flat.model.config.get_text_config(), device_memory(device, weights)
    return ledger_of(config, shapes.values(), limits, flat.model.dtype, memory, weights)


def _checked_in_chunks(flat: FlatModel, check: Check) -> torch.Tensor:
    """The hidden states, whose logits `check` has found right. Where they are not, because roundings grow in this model, inputs that are
    rounded to 8 bits are rounded to 16 instead, which is slower. Raises `UnsupportedModel`.
    """
    is_rounded = flat.attention.slots.dtype == torch.int8
    hidden = _forward_in_chunks(flat, check.ids)
    try:
        check.compare("in chunks and decode steps", flat.head(hidden), is_rounded)
    except UnsupportedModel:
        widened = widen_inputs(flat.model)
        if not widened:
            raise
        log.warning("%s: 8 bits for the inputs of its layers change its logits too much; they have 16, which is slower", check.name)
        flat.bind_layers()
        flat.weights = replace(flat.weights, inputs_of_16_bits=(*flat.weights.inputs_of_16_bits, *widened))
        hidden = _forward_in_chunks(flat, check.ids)
        check.compare("in chunks and decode steps", flat.head(hidden), is_rounded)
    return hidden


def _forward_in_chunks(flat: FlatModel, ids: list[int]) -> torch.Tensor:
    """Compute hidden states of `ids` as for a request: two prefill chunks, then four decode steps. It has the first pages. For a model
    without slots as a text.
    """
    is_text, size = flat.slots == 0, flat.page_tokens
    half, prefilled = len(ids) // 2, len(ids) if is_text else len(ids) - 4
    pages, parts = range(-(-len(ids) // size)), []
    for start, end in ((0, half), (half, prefilled)):
        span = Span(0, end - start, start, pages, is_text)
        parts.append(flat.forward(ids[start:end], list(range(start, end)), layout_of([], [span], size, flat.device)))
    for position in range(prefilled, len(ids)):
        parts.append(flat.forward([ids[position]], [position], layout_of([(pages, position)], [], size, flat.device)))
    return torch.cat(parts)
