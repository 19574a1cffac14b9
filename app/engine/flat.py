"""A causal language model seen as two functions: a flat row of tokens to hidden states, hidden states to logits.

Linear layers see one row `[1, T]` without padding, whatever sequences the tokens belong to; only `SlotAttention` tells them apart.
`adopt` proves, before anything is served, that the model gives the same answers this way as by its own forward.
"""

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.attention import Layout, SlotAttention, Span, layout_of
from app.errors import SetupError, UnsupportedModel

PROBE = 24  # tokens of the check
TOLERANCE = {torch.float32: 2e-3}  # of the logits' norm; lower precisions: LOOSE
LOOSE = 8e-2
MOST = 32  # slots when none are asked for
SHARE = 0.8  # of the free memory that those may take: the rest is for activations


class FlatModel:
    def __init__(self, model: PreTrainedModel, attention: SlotAttention) -> None:
        self.model = model
        self.attention = attention
        self.device: torch.device = model.device
        self._head: nn.Module = model.get_output_embeddings()

    @torch.inference_mode()
    def forward(self, ids: list[int], positions: list[int], layout: Layout) -> torch.Tensor:
        """Hidden states `[T, hidden]` of the step's rows."""
        both = torch.tensor([ids, positions], dtype=torch.long).to(self.device)
        self.attention.layout = layout
        try:
            out = self.model.base_model(input_ids=both[:1], position_ids=both[1:], use_cache=False)
        finally:
            self.attention.layout = None
        return out.last_hidden_state[0]

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[rows, vocab]` of hidden states `[rows, hidden]`."""
        return self._head(hidden)

    def read(self, ids: list[int]) -> torch.Tensor:
        """Hidden states `[T, hidden]` of one sequence by itself, nothing cached."""
        span = Span(0, len(ids), 0, None)
        return self.forward(ids, list(range(len(ids))), layout_of([], [span], len(ids), self.device))


def adopt(model: PreTrainedModel, slots: int | None, context: int) -> FlatModel:
    """Make `model` serve flat rows with a cache of `slots` x `context` tokens (0: it only reads; None: as many as fit).

    Raises `UnsupportedModel` where the architecture does not go through the attention interface or answers differently, and
    `SetupError` where the cache does not fit the device's free memory.
    """
    name = type(model).__name__
    ids = [(7919 * i + 11) % int(model.config.get_text_config().vocab_size) for i in range(PROBE)]
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float()
    attention = SlotAttention()
    try:
        model.set_attn_implementation(attention.name)
    except ValueError as error:
        raise UnsupportedModel(f"{name} cannot be served: it does not take its attention from transformers' AttentionInterface") from error
    flat = FlatModel(model, attention)
    _compare(name, "read at once", flat.head(flat.read(ids)), wanted)
    layers = int(model.config.get_text_config().num_hidden_layers)
    if len(attention.shapes) != layers:
        seen = len(attention.shapes)
        raise UnsupportedModel(f"{name} cannot be served: {seen} of its {layers} layers take their attention from the interface")
    if slots != 0:
        attention.allocate(_fitting(attention, slots, context, model.dtype, flat.device), context, model.dtype, flat.device)
        _compare(name, "in chunks and steps", flat.head(_in_pieces(flat, ids, context)), wanted)
    return flat


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


def _fitting(attention: SlotAttention, slots: int | None, context: int, dtype: torch.dtype, device: torch.device) -> int:
    """The slots to allocate: those asked for if they fit, else as many as fit into most of what is free."""
    one, free = slot_bytes(attention, context, dtype), free_bytes(device)
    fits = int(free * (1.0 if slots else SHARE) // one)
    if fits >= (slots or 1):
        return slots or min(MOST, fits)
    raise SetupError(
        f"{slots or 1} slots of {context} tokens need {(slots or 1) * one / 2**30:.2f} GiB for keys and values, but {free / 2**30:.2f} GiB "
        f"are free on {device} with the weights loaded: {fits} slots would fit, or lower --model.context"
    )


def free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else int(psutil.virtual_memory().available)
