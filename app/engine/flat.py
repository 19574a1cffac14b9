"""Serves a causal language model as two functions: a flat row of tokens to hidden states, and hidden states to logits.

Linear layers see one row `[1, T]` without padding, whatever sequences the tokens belong to; only `SlotAttention` knows the sequences.
`create_flat_model` checks, before anything is served, that the model computes the same logits this way as by its own forward.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from app.engine.attention import SlotAttention
from app.engine.fused import FusedDecoder, create_fused_decoder
from app.engine.grouped import keep_inputs, quantize_layers
from app.engine.layout import Layout, Span, layout_of
from app.engine.ledger import MAX_DEFAULT_SLOTS, Ledger, activation_bytes, device_memory, weight_bytes
from app.engine.linear import TiledLinear, prepack_layers
from app.engine.lora import Adapters, Changes, Shapes, shapes_of
from app.engine.pages import PAGE_TOKENS, PageCopy
from app.engine.request import Weights
from app.errors import SetupError, UnsupportedModel

log = logging.getLogger(__name__)

CHECK_TOKENS = 24  # length of the sequence that the check computes both ways
MAX_ERROR_FLOAT32 = 2e-3  # relative to the norm of the expected logits
MAX_ERROR = 8e-2  # the same, in lower precisions
HEAD_ROWS = 256  # rows projected to the vocabulary at a time


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The size of a model's KV cache and steps."""

    slots: int | None  # 0: the model only scores texts; None: as many as fit this process's share of the device's memory
    context: int  # tokens of a slot at most
    step_tokens: int = 512  # most rows of a step, decoding rows aside
    sharers: int = 1  # processes that serve from the device's memory, this one included
    page_tokens: int = PAGE_TOKENS
    cache_tokens: int | None = None  # of all slots together; None: a whole context for each

    @property
    def context_pages(self) -> int:
        return -(-self.context // self.page_tokens)

    def pool_pages(self, slots: int) -> int:
        """Pages that so many slots share."""
        return slots * self.context_pages if self.cache_tokens is None else -(-self.cache_tokens // self.page_tokens)


class FlatModel:
    """A model with its KV cache: `pages` pages for the slots of generation, and behind them those for a text that is scored in several
    chunks.
    """

    def __init__(self, model: PreTrainedModel, attention: SlotAttention, decoder: FusedDecoder | None) -> None:
        self.model = model
        self.weights = Weights()
        self.attention = attention
        self.device: torch.device = model.device
        self.slots = 0
        self.pages = 0
        self.page_tokens = PAGE_TOKENS
        self.scoring_pages = range(0)
        self.hidden_size = 0
        self.convert_s = 0.0  # seconds that rounding and packing its layers took
        self.adapters = Adapters(Shapes({}, ""), model.dtype, model.device, decoder is None)
        self._decoder = decoder
        self._head: nn.Module = model.get_output_embeddings()

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding; a tokenizer may know more."""
        return int(self.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]

    @property
    def is_on_kernel(self) -> bool:
        """Whether its layers run on the compiled kernel, whose results do not depend on the number of threads."""
        return any(isinstance(module, TiledLinear) for module in self.model.modules())

    @torch.inference_mode()
    def forward(
        self, ids: list[int], positions: list[int], layout: Layout, adapted: Mapping[str, Sequence[int]] | None = None
    ) -> torch.Tensor:
        """Compute hidden states `[T, hidden]` of the step's rows. `adapted` says which rows have which adapter."""
        if not adapted:
            return self._forward(ids, positions, layout, False)
        with self.adapters.running(adapted):
            return self._forward(ids, positions, layout, True)

    def _forward(self, ids: list[int], positions: list[int], layout: Layout, adapted: bool) -> torch.Tensor:
        rows = torch.tensor([ids, positions], dtype=torch.long).to(self.device)
        self.attention.layout = layout
        try:
            if self._decoder is not None:
                return self._decoder(rows[0], rows[1], adapted)
            return self.model.base_model(input_ids=rows[:1], position_ids=rows[1:], use_cache=False).last_hidden_state[0]
        finally:
            self.attention.layout = None

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits `[rows, vocab]` of hidden states `[rows, hidden]`."""
        return self._head(hidden)

    def wait(self) -> None:
        """Return when the device has computed all that it was given: a GPU works on while calls return."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

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
        self.attention.copy(copies)


def create_flat_model(model: PreTrainedModel, limits: CacheLimits, scheme: str = "none") -> FlatModel:
    """Convert `model`, in place, to serve flat rows. `scheme` is "int4" or "int8" where its layers are to be rounded first (CPU only).

    Raises `UnsupportedModel` if the architecture does not use the attention interface or its logits differ, and `SetupError` if the
    cache does not fit the device's free memory.
    """
    name = type(model).__name__
    ids = check_ids(model)
    shapes = shapes_of(model, model.get_output_embeddings())
    started_s = time.perf_counter()
    if scheme != "none":
        quantize_layers(model, scheme)
    convert_s = time.perf_counter() - started_s
    with torch.inference_mode(), keep_inputs(model):
        expected = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()
    attention = install_attention(model)
    flat = FlatModel(model, attention, None)
    _check_logits(name, "in one piece", flat, flat.forward_uncached(ids), expected)
    check_layers(model, attention)
    started_s = time.perf_counter()
    flat = _optimize(model, attention)
    flat.convert_s = convert_s + time.perf_counter() - started_s
    _allocate_cache(flat, limits)
    hidden = _forward_in_chunks(flat, ids)
    _check_logits(name, "in chunks and decode steps", flat, hidden, expected)
    flat.hidden_size = hidden.shape[-1]
    flat.bind_adapters(shapes)
    return flat


def check_ids(model: PreTrainedModel) -> list[int]:
    """The tokens of the check."""
    return [(7919 * i + 11) % int(model.config.get_text_config().vocab_size) for i in range(CHECK_TOKENS)]


def check_layers(model: PreTrainedModel, attention: SlotAttention) -> None:
    """Raises `UnsupportedModel` unless, in a first forward, every layer went through `attention`, which does all that restricts it."""
    name, config = type(model).__name__, model.config.get_text_config()
    layers = int(config.num_hidden_layers)
    if len(attention.shapes) != layers:
        raise UnsupportedModel(
            f"{name} cannot be served: only {len(attention.shapes)} of its {layers} layers use transformers' AttentionInterface"
        )
    kinds = getattr(config, "layer_types", None) or []
    if any(kind != "full_attention" and attention.windows.get(layer) is None for layer, kind in enumerate(kinds)):
        raise UnsupportedModel(
            f"{name} cannot be served: its layers ({', '.join(sorted(set(kinds)))}) restrict attention by masks, which are not used here"
        )


def install_attention(model: PreTrainedModel) -> SlotAttention:
    attention = SlotAttention()
    try:
        model.set_attn_implementation(attention.name)
    except ValueError as error:
        raise UnsupportedModel(f"{type(model).__name__} cannot be served: it does not use transformers' AttentionInterface") from error
    return attention


def _optimize(model: PreTrainedModel, attention: SlotAttention) -> FlatModel:
    decoder = create_fused_decoder(model, attention)
    harmed = prepack_layers(model) if model.device.type == "cpu" else []
    if decoder is not None:
        decoder.bind_layers()
    flat = FlatModel(model, attention, decoder)
    flat.weights = Weights(bytes=weight_bytes(model), inputs_of_16_bits=tuple(harmed))
    return flat


def _allocate_cache(flat: FlatModel, limits: CacheLimits) -> None:
    dtype, weights = flat.model.dtype, flat.weights.bytes
    ledger = Ledger(
        memory=device_memory(flat.device, weights),
        weights=weights,
        activations=step_bytes(flat.model.config.get_text_config(), limits),
        slot=slot_bytes(flat.attention, limits.context, dtype, limits.page_tokens),
        sharers=limits.sharers,
    )
    flat.slots = 0 if limits.slots == 0 else slots_that_fit(ledger, limits, str(flat.device))
    flat.pages, flat.page_tokens = limits.pool_pages(flat.slots), limits.page_tokens
    flat.scoring_pages = range(flat.pages, flat.pages + limits.context_pages)
    flat.attention.allocate(flat.scoring_pages.stop, flat.page_tokens, dtype, flat.device)
    tokens = flat.pages * flat.page_tokens
    log.info("%s on %s: %s; %d slots, a cache of %d tokens", type(flat.model).__name__, flat.device, ledger, flat.slots, tokens)


def slots_that_fit(ledger: Ledger, limits: CacheLimits, device: str) -> int:
    """The number of slots, of a model that generates. Raises `SetupError` if the cache does not fit."""
    if limits.cache_tokens is None:
        return ledger.slots(limits.slots or None, device)
    ledger.check_cache(limits.pool_pages(0) * ledger.slot // limits.context_pages, device)
    return limits.slots or MAX_DEFAULT_SLOTS


def step_bytes(config: PretrainedConfig, limits: CacheLimits) -> int:
    """Declared bytes of the activations of a step, of a model with this text config."""
    hidden = int(config.hidden_size)
    widest = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return activation_bytes(limits.step_tokens, hidden, widest, int(config.vocab_size), max(HEAD_ROWS, limits.slots or 0))


def slot_bytes(attention: SlotAttention, context: int, dtype: torch.dtype, page_tokens: int = PAGE_TOKENS) -> int:
    """Bytes of the pages that `context` tokens take, with the keys and values of all layers."""
    tokens = -(-context // page_tokens) * page_tokens
    return tokens * dtype.itemsize * sum(heads * (key + value) for heads, key, value in attention.shapes.values())


def _forward_in_chunks(flat: FlatModel, ids: list[int]) -> torch.Tensor:
    """Compute hidden states of `ids` as for a request: two prefill chunks, then four decode steps. It has the last pages."""
    half, prefilled, size = len(ids) // 2, len(ids) - 4, flat.page_tokens
    pages, parts = flat.scoring_pages, []
    for start, end in ((0, half), (half, prefilled)):
        span = Span(0, end - start, start, pages)
        parts.append(flat.forward(ids[start:end], list(range(start, end)), layout_of([], [span], size, flat.device)))
    for position in range(prefilled, len(ids)):
        parts.append(flat.forward([ids[position]], [position], layout_of([(pages, position)], [], size, flat.device)))
    return torch.cat(parts)


def _check_logits(name: str, mode: str, flat: FlatModel, hidden: torch.Tensor, expected: torch.Tensor) -> None:
    error = float((flat.head(hidden).float() - expected).norm() / expected.norm())
    if not error <= (MAX_ERROR_FLOAT32 if flat.model.dtype == torch.float32 else MAX_ERROR):
        raise UnsupportedModel(f"{name} cannot be served: computed {mode}, its logits differ by {error:.1%} from its own forward's")
