"""Short convolutions over a sequence, as in LFM2 (arXiv 2511.23404): a row sees the inputs of its own and some earlier tokens.

The inputs are kept in the pages of the cache, as an attention's keys are, for every token. So prompts that are found in the cache, drafts
and searches are the same with them. It takes more memory than the last inputs of each sequence would.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from app.engine.keyvalues import KeyValues
from app.engine.layout import Layout
from app.engine.transfer import to_device


@dataclass(frozen=True, slots=True)
class Cached:
    """Of a step and one of the caches: the rows whose inputs are written, where to, and which places are read. A place is page * page
    tokens + token of the page.
    """

    rows: torch.Tensor
    places: torch.Tensor
    read: torch.Tensor


@dataclass(frozen=True, slots=True)
class Taps:
    """Where the rows of a step find their inputs `[rows, taps]`, the earliest first: 0 is that of a token before the first one, which is
    zero; then come the step's rows, and what is read of the cache of slots and that of texts.
    """

    index: torch.Tensor
    slots: Cached
    texts: Cached


@dataclass(frozen=True, slots=True)
class Convolution:
    """By channel, over the token of a row and those before it."""

    weight: torch.Tensor  # [channels, taps], the earliest token first
    bias: torch.Tensor | None

    @property
    def taps(self) -> int:
        return self.weight.shape[1]

    @property
    def factors(self) -> torch.Tensor:
        """float32 `[taps, channels]`."""
        return self.weight.float().t().contiguous()

    @property
    def float_bias(self) -> torch.Tensor | None:
        return None if self.bias is None else self.bias.float()


class ShortConvolution(nn.Module):
    """C * conv(B * x), of B, C and x that `in_proj` makes of the states. In place of transformers' module, whose layers it takes over."""

    def __init__(self, own: Any, attention: Any) -> None:
        super().__init__()
        self.layer_idx = int(own.layer_idx)
        self.in_proj, self.out_proj, self.conv = own.in_proj, own.out_proj, own.conv
        self._attention = attention

    def forward(self, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        return self.out_proj(self._attention.convolve(self.layer_idx, self.in_proj(hidden_states[0]), self.convolution))[None]

    @property
    def convolution(self) -> Convolution:
        return Convolution(self.conv.weight.detach()[:, 0], None if self.conv.bias is None else self.conv.bias.detach())


def is_short_convolution(module: nn.Module) -> bool:
    """Whether it is such a module of transformers' models LFM2, LFM2-MoE or LFM3."""
    has_parts = all(hasattr(module, name) for name in ("conv", "in_proj", "out_proj", "layer_idx"))
    return has_parts and type(module).__name__.endswith("ShortConv")


def install_convolutions(model: nn.Module, attention: Any) -> None:
    """Let the model's short convolutions know the sequences of a step, which `attention` tells (a `SlotAttention`)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_short_convolution(child):
                setattr(parent, name, ShortConvolution(child, attention))


def convolve(inputs: torch.Tensor, convolution: Convolution, taps: Taps, caches: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Write `inputs` `[rows, channels]` to `caches` (of slots and of texts, each `[places, channels]`, or None if nothing is cached), and
    convolve them, in float32: a row's result is the same in any step.
    """
    pool, (slots, texts) = [torch.zeros_like(inputs[:1]), inputs], caches
    if slots is not None and len(taps.slots.rows):  # written first: rows of one sequence may be beside each other
        slots.index_copy_(0, taps.slots.places, inputs[taps.slots.rows])
        pool.append(slots[taps.slots.read])
    if texts is not None and len(taps.texts.rows):  # read first: the next text of the step has the same pages
        pool.append(texts[taps.texts.read])
        texts.index_copy_(0, taps.texts.places, inputs[taps.texts.rows])
    found = torch.cat(pool)[taps.index].float()  # [rows, taps, channels]
    factors, bias = convolution.factors, convolution.float_bias
    out = found[:, 0] * factors[0]
    for tap in range(1, len(factors)):
        out = out + found[:, tap] * factors[tap]
    return (out if bias is None else out + bias).to(inputs.dtype)


def places_of(cache: KeyValues, layer: int) -> torch.Tensor | None:
    """The inputs of a layer `[places, channels]`; None if there is no cache."""
    kept = cache.keys.get(layer)
    return None if kept is None else kept.transpose(0, 1).view(-1, kept.shape[3])


def taps_of(layout: Layout, taps: int) -> Taps:
    """For convolutions over so many tokens, the own one included."""
    rows = layout.decodes + sum(span.row_end - span.row_start for span in layout.spans)
    spans = sorted(layout.spans, key=lambda span: span.is_text)  # what is read of a cache lies together
    runs: list[tuple[int, int, int, Sequence[int] | None, bool]] = [
        (row, 1, position, pages, False) for row, (pages, position) in enumerate(layout.sequences)
    ]
    runs += [(span.row_start, span.row_end - span.row_start, span.start, span.pages, span.is_text) for span in spans]
    index = array("q", bytes(8 * rows * taps))
    written, read = [dict[int, int](), dict[int, int]()], [array("q"), array("q")]  # of slots and of texts: rows by place, and places
    reads, size = 1 + rows, layout.page_tokens
    for first, count, start, pages, is_text in runs:
        if pages is not None:
            written[is_text] |= {pages[at // size] * size + at % size: first + at - start for at in range(start, start + count)}
        for row in range(count):
            for tap in range(taps):
                before = taps - 1 - tap
                if before <= row:
                    index[(first + row) * taps + tap] = 1 + first + row - before
                elif (at := start + row - before) >= 0 and pages is not None:
                    index[(first + row) * taps + tap] = reads
                    read[is_text].append(pages[at // size] * size + at % size)
                    reads += 1
    device = layout.pages.device
    flat = [index, *(part for each in (0, 1) for part in (list(written[each].values()), list(written[each]), read[each]))]
    whole = to_device(torch.tensor([number for part in flat for number in part], dtype=torch.long), device)
    parts = whole.split(list(map(len, flat)))
    return Taps(parts[0].view(rows, taps), Cached(*parts[1:4]), Cached(*parts[4:7]))
