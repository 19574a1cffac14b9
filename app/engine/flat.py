"""Serves a causal language model as two functions: a flat row of tokens to hidden states, and hidden states to logits.

Linear layers see one row `[1, T]` without padding, whatever sequences the tokens belong to; only `SlotAttention` knows the sequences.
`create_flat_model` checks, before anything is served, that the model computes the same logits this way as by its own forward.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from app.engine import varlen
from app.engine.attention import SlotAttention
from app.engine.capacity import CacheLimits, ledger_of, size_that_fits
from app.engine.cudadecoder import create_cuda_decoder
from app.engine.facts import Weights
from app.engine.fourbits import group_layers
from app.engine.fused import FusedDecoder, compile_experts, create_fused_decoder
from app.engine.int4 import pack_layers
from app.engine.kernel import kernel
from app.engine.keyvalues import Shape
from app.engine.layout import Layout, Span, layout_of
from app.engine.ledger import Ledger, device_memory, weight_bytes
from app.engine.linear import TiledLinear, prepack_layers
from app.engine.lora import Adapters, Changes, Shapes, shapes_of
from app.engine.pages import PAGE_TOKENS, PageCopy
from app.engine.proof import Check, Proof, check_ids, check_layers
from app.engine.rounding import quantize_layers
from app.engine.rows import check_bytes, has_supported_heads
from app.engine.transfer import to_device
from app.errors import SetupError, UnsupportedModel

log = logging.getLogger(__name__)


class FlatModel:
    """A model with its KV cache: `pages` pages for the slots of generation, and `scoring_pages` for a text that is scored in several
    chunks, which lie in a cache of their own.
    """

    def __init__(self, model: PreTrainedModel, attention: SlotAttention, decoder: FusedDecoder | None) -> None:
        self.model = model
        self.weights = Weights()
        self.proof: Proof | None = None
        self.attention = attention
        self.device: torch.device = model.device  # where ids go
        self.layer_devices = layer_devices(model)
        self._head: nn.Module = model.get_output_embeddings()
        self._head_device = _device_of(self._head) or self.device
        self._logits = logits_of(model.config)
        self.devices = tuple(dict.fromkeys([self.device, *self.layer_devices.values(), self._head_device]))
        self.slots = 0
        self.context = 0  # tokens of a sequence at most
        self.text_window = 0  # tokens of a text that are read in one piece
        self.pages = 0
        self.page_tokens = PAGE_TOKENS
        self.scoring_pages = range(0)
        self.hidden_size = 0
        self.convert_s = 0.0  # seconds that rounding and packing its layers took
        self.adapters = Adapters(Shapes({}, ""), model.dtype, model.device, decoder is None)
        self._decoder = decoder

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding; a tokenizer may know more."""
        return int(self.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]

    @property
    def context_pages(self) -> int:
        return -(-self.context // self.page_tokens)

    @property
    def device_name(self) -> str:
        """Such as "cuda:1", or "cuda:0,1" if it is divided."""
        return ",".join([str(self.device), *(str(device.index) for device in self.devices[1:])])

    @property
    def is_on_kernel(self) -> bool:
        """Whether its layers run on the compiled kernel, whose results do not depend on the number of threads."""
        return any(isinstance(module, TiledLinear) for module in self.model.modules())

    @cached_property
    def decodes_on_kernel(self) -> bool:
        """Whether its layers and the attention of its decoding rows do."""
        compiled = kernel() if self.is_on_kernel else None
        shapes = set(self.attention.shapes.values())
        return compiled is not None and all(has_supported_heads(key, value, compiled.columns) for _, key, value in shapes)

    @torch.inference_mode()
    def forward(
        self, ids: list[int], positions: list[int], layout: Layout, adapted: Mapping[str, Sequence[int]] | None = None
    ) -> torch.Tensor:
        """Compute hidden states `[T, hidden]` of the step's rows, where the head is. `adapted` says which rows have which adapter."""
        if not adapted:
            return self._forward(ids, positions, layout, False)
        with self.adapters.running(adapted):
            return self._forward(ids, positions, layout, True)

    def _forward(self, ids: list[int], positions: list[int], layout: Layout, adapted: bool) -> torch.Tensor:
        rows = to_device(torch.tensor([ids, positions], dtype=torch.long), self.device)
        self.attention.layout = layout
        try:
            return self.compute(rows, adapted).to(self._head_device)
        finally:
            self.attention.layout = None

    def compute(self, rows: torch.Tensor, adapted: bool = False) -> torch.Tensor:
        """The states `[T, hidden]` of ids and positions `rows` `[2, T]`. What each row attends to has been said to the attention."""
        if self._decoder is not None:
            return self._decoder(rows[0], rows[1], adapted)
        mask = _unused_mask(self.device) if self.attention.is_flash else None
        return self.model.base_model(input_ids=rows[:1], position_ids=rows[1:], attention_mask=mask, use_cache=False).last_hidden_state[0]

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits `[rows, vocab]` of hidden states `[rows, hidden]`."""
        return self._logits(self._head(hidden))

    def wait(self) -> None:
        """Return when the device has computed all that it was given: a GPU works on while calls return."""
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def forward_uncached(self, ids: list[int], adapted: Mapping[str, Sequence[int]] | None = None) -> torch.Tensor:
        """Compute hidden states `[T, hidden]` of a single sequence, without the KV cache."""
        return self.forward(ids, list(range(len(ids))), layout_of([], [Span(0, len(ids), 0, None)], self.page_tokens, self.device), adapted)

    def add_adapter(self, name: str, changes: Changes) -> None:
        """Raises `SetupError` if the model does not compute with it; then it is not there."""
        ids = check_ids(self.model)
        self.adapters.add(name, changes)
        try:
            self.adapters.prove(name, lambda adapted: self.forward_uncached(ids, adapted), len(ids))
        except SetupError:
            self.adapters.remove(name)
            raise

    def bind_cuda(self) -> None:
        """Let kernels of ours do what lies between products, where the cache is laid out for torch's flash kernel."""
        if self._decoder is not None and self.attention.is_flash:
            self._decoder.on_cuda = create_cuda_decoder(self._decoder) if len(self.devices) == 1 else None

    def bind_adapters(self, shapes: Shapes) -> None:
        """Know the layers that adapters may change. `shapes` are those before layers were joined."""
        model = self.model
        self.adapters = Adapters(shapes, model.dtype, self.device, self._decoder is None)
        if self._decoder is not None:
            self._decoder.bind_adapters(self.adapters, "" if model.base_model is model else f"{model.base_model_prefix}.")
            return
        for name in shapes.layers:
            if name != shapes.head:
                self.adapters.adapt(model.get_submodule(name), [name])

    @torch.inference_mode()
    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Copy tokens from page to page, one copy after the other."""
        self.attention.slots.copy(copies)


def logits_of(config: PretrainedConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a model does with its vocabulary projection: Cohere and Granite scale it, Gemma caps it softly."""
    scale, divisor, cap = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))

    def changed(logits: torch.Tensor) -> torch.Tensor:
        logits = logits if scale is None else logits * scale
        logits = logits if divisor is None else logits / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return changed


def layer_devices(model: PreTrainedModel) -> dict[int, torch.device]:
    """Where the attention of each layer is computed, by the number that it has for the cache."""
    numbered = ((getattr(module, "layer_idx", None), module) for module in model.modules())
    return {number: _device_of(module) or model.device for number, module in numbered if number is not None}


def _device_of(module: nn.Module) -> torch.device | None:
    """None for one whose weights are packed."""
    return next((parameter.device for parameter in module.parameters()), None)


def _unused_mask(device: torch.device) -> torch.Tensor:
    """A mask that nobody reads. Without one, transformers looks at the positions for where sequences begin, and waits for the device."""
    return torch.zeros(1, 1, 1, 1, device=device)


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
        hidden = _forward_in_chunks(flat, check.ids)
        check.compare("in chunks and decode steps", flat.head(hidden), attention.slots.dtype == torch.int8)
        check.end(model)
        proof = Proof(attention.shapes, attention.windows, attention.changes, flat.weights.inputs_of_16_bits, hidden.shape[-1])
    assert proof is not None
    flat.proof, flat.hidden_size = proof, proof.hidden_size
    flat.bind_adapters(shapes)
    return flat


def install_attention(model: PreTrainedModel) -> SlotAttention:
    attention = SlotAttention()
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
        splits = min(
            varlen.usable_splits(device, dtype, shapes.values(), context, attention.changes) for device, shapes in parts.items() if shapes
        )
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
