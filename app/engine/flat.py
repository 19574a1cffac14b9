"""A causal language model seen as two functions: a flat row of tokens to hidden states, hidden states to logits.

Linear layers see one row `[1, T]` without padding, whatever sequences the tokens belong to; only `SlotAttention` tells them apart.
`adopt` proves, before anything is served, that the model gives the same answers this way as by its own forward.
"""

import logging
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.attention import SlotAttention
from app.engine.fused import LeanDecoder, lean
from app.engine.layout import Layout, Span, layout_of
from app.engine.ledger import Ledger, activation_bytes, device_memory, weight_bytes
from app.engine.linear import quicken, round_weights
from app.errors import UnsupportedModel

log = logging.getLogger(__name__)

PROBE = 24  # tokens of the check
TOLERANCE = {torch.float32: 2e-3}  # of the logits' norm; lower precisions: LOOSE
LOOSE = 8e-2
HEAD_ROWS = 256  # rows projected to the vocabulary at a time


@dataclass(frozen=True, slots=True)
class Room:
    """What a model is to hold. `slots` 0: it only reads texts; None: as many contexts as fit this process's share of the device."""

    slots: int | None
    context: int
    step_tokens: int = 512
    sharers: int = 1  # processes that serve from the device's memory


class FlatModel:
    """`slots` contexts, and one more that texts are read in when they are read in pieces."""

    def __init__(self, model: PreTrainedModel, attention: SlotAttention, decoder: LeanDecoder | None) -> None:
        self.model = model
        self.attention = attention
        self.device: torch.device = model.device
        self.slots = 0
        self._decoder = decoder
        self._head: nn.Module = model.get_output_embeddings()

    @property
    def vocabulary(self) -> int:
        """Tokens that have an embedding: a tokenizer may know more."""
        return len(self.model.get_input_embeddings().weight)  # type: ignore[arg-type]

    @property
    def reading_slot(self) -> int:
        return self.slots

    @torch.inference_mode()
    def forward(self, ids: list[int], positions: list[int], layout: Layout) -> torch.Tensor:
        """Hidden states `[T, hidden]` of the step's rows."""
        both = torch.tensor([ids, positions], dtype=torch.long).to(self.device)
        self.attention.layout = layout
        try:
            if self._decoder is not None:
                return self._decoder(both[0], both[1])
            return self.model.base_model(input_ids=both[:1], position_ids=both[1:], use_cache=False).last_hidden_state[0]
        finally:
            self.attention.layout = None

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[rows, vocab]` of hidden states `[rows, hidden]`."""
        return self._head(hidden)

    def read(self, ids: list[int]) -> torch.Tensor:
        """Hidden states `[T, hidden]` of one sequence by itself, nothing cached."""
        return self.forward(ids, list(range(len(ids))), layout_of([], [Span(0, len(ids), 0, None)], len(ids), self.device))

    @torch.inference_mode()
    def copy(self, sources: list[int], targets: list[int], start: int, end: int) -> None:
        """Positions `[start, end)` of the slots `targets` become those of `sources`."""
        self.attention.copy(sources, targets, start, end)


def adopt(model: PreTrainedModel, room: Room, int4: bool = False) -> FlatModel:
    """Make `model` serve flat rows. With `int4` its linear layers are rounded to 4 bits (CPU only).

    Raises `UnsupportedModel` where the architecture does not go through the attention interface or answers differently, and
    `SetupError` where the cache does not fit the device's free memory.
    """
    name = type(model).__name__
    ids = [(7919 * i + 11) % int(model.config.get_text_config().vocab_size) for i in range(PROBE)]
    if int4:
        round_weights(model)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()
    attention = _attention_of(model)
    flat = FlatModel(model, attention, None)
    _compare(name, "read at once", flat.head(flat.read(ids)), wanted)
    layers = int(model.config.get_text_config().num_hidden_layers)
    if len(attention.shapes) != layers:
        seen = len(attention.shapes)
        raise UnsupportedModel(f"{name} cannot be served: {seen} of its {layers} layers take their attention from the interface")
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    if any(kind != "full_attention" and attention.windows.get(layer) is None for layer, kind in enumerate(kinds)):
        raise UnsupportedModel(f"{name} cannot be served: it limits what its layers see ({', '.join(sorted(set(kinds)))}) by masks alone")
    flat = _quick(model, attention, int4)
    _allocate(flat, room)
    _compare(name, "in chunks and steps", flat.head(_in_pieces(flat, ids, room.context)), wanted)
    return flat


def _attention_of(model: PreTrainedModel) -> SlotAttention:
    attention = SlotAttention()
    try:
        model.set_attn_implementation(attention.name)
    except ValueError as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be served: it does not take its attention from transformers' AttentionInterface"
        ) from error
    return attention


def _quick(model: PreTrainedModel, attention: SlotAttention, int4: bool) -> FlatModel:
    decoder = lean(model, attention)
    if model.device.type == "cpu":
        quicken(model, int4)
    if decoder is not None:
        decoder.bind()
    return FlatModel(model, attention, decoder)


def _allocate(flat: FlatModel, room: Room) -> None:
    config, dtype = flat.model.config.get_text_config(), flat.model.dtype
    weights = weight_bytes(flat.model)
    hidden = int(config.hidden_size)
    widest = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    ledger = Ledger(
        memory=device_memory(flat.device, weights),
        weights=weights,
        activations=activation_bytes(room.step_tokens, hidden, widest, int(config.vocab_size), max(HEAD_ROWS, room.slots or 0)),
        slot=slot_bytes(flat.attention, room.context, dtype),
        sharers=room.sharers,
    )
    flat.slots = 0 if room.slots == 0 else ledger.slots(room.slots, str(flat.device))
    flat.attention.allocate(flat.slots + 1, room.context, dtype, flat.device)
    log.info("%s on %s: %s; %d slots", type(flat.model).__name__, flat.device, ledger, flat.slots)


def slot_bytes(attention: SlotAttention, context: int, dtype: torch.dtype) -> int:
    return context * dtype.itemsize * sum(heads * (key + value) for heads, key, value in attention.shapes.values())


def _in_pieces(flat: FlatModel, ids: list[int], context: int) -> torch.Tensor:
    """The probe in two chunks and then token by token through slot 0, as a request would go."""
    half, most = len(ids) // 2, len(ids) - 4
    parts = []
    for start, end in ((0, half), (half, most)):
        span = Span(0, end - start, start, 0)
        parts.append(flat.forward(ids[start:end], list(range(start, end)), layout_of([], [span], context, flat.device)))
    for at in range(most, len(ids)):
        parts.append(flat.forward([ids[at]], [at], layout_of([(0, at)], [], context, flat.device)))
    return torch.cat(parts)


def _compare(name: str, how: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    error = float((found.float() - wanted).norm() / wanted.norm())
    if not error <= TOLERANCE.get(found.dtype, LOOSE):
        raise UnsupportedModel(f"{name} cannot be served: {how}, its logits are off by {error:.1%} of those of its own forward")
