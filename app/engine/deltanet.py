"""Linear attention by the gated delta rule (arXiv 2412.06464), as in Qwen 3.5 and Qwen3-Next: instead of keys and values a layer keeps a
state, whose size does not depend on the number of tokens.

A page of the cache has room for one state: the one after the page's last token that has been computed. So a full page can be found and gone
on from like any other; of a page that is partly filled the state is that of all its tokens (see `SlotCache`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from app.engine.kernel import Kernel, kernel
from app.engine.layout import Layout, Span
from app.engine.structures import DeltaArgs, DeltaRowsArgs

MAX_TAPS, MAX_KEY_DIM = 16, 256  # of the kernel
TINY_NORM = 1e-6  # is added to the squared length of queries and keys
PAGE_TOKENS = 512  # of models that keep states: fewer would take much memory, more would find less of a prompt


@dataclass(frozen=True, slots=True)
class DeltaShape:
    key_heads: int
    heads: int  # for values; each key head serves as many of them as another
    key_dim: int
    value_dim: int
    taps: int  # tokens that the convolution before it sees

    @property
    def channels(self) -> int:
        """Of queries, keys and values together, which the convolution mixes over tokens."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    def is_supported(self, lanes: int) -> bool:
        """Whether a kernel with so many lanes can compute it."""
        return self.value_dim % lanes == self.key_dim % lanes == 0 and self.key_dim <= MAX_KEY_DIM and self.taps <= MAX_TAPS

    @property
    def size(self) -> int:
        """Numbers in the state of the delta rule."""
        return self.heads * self.key_dim * self.value_dim

    @property
    def token_floats(self) -> int:
        """Numbers that each token of a page has room for, so that a page holds a state and the last inputs of the convolution."""
        return -(-(self.size + (self.taps - 1) * self.channels) // PAGE_TOKENS)


@dataclass(frozen=True, slots=True)
class DeltaInputs:
    """Of the rows of a step: `mixed` `[rows, channels]`, queries, keys and values; `decay` and `rate` `[rows, heads]`. A head's state is
    multiplied by exp(-steepness * softplus(decay + shift)), and sigmoid(rate) of the value is stored.
    """

    mixed: torch.Tensor
    decay: torch.Tensor
    rate: torch.Tensor
    steepness: torch.Tensor  # [heads], float32, as the next one
    shift: torch.Tensor

    def factors(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """What the states of these rows are multiplied by, and how much is stored: `[rows, heads]`, float32."""
        decay = torch.exp(-self.steepness * F.softplus(self.decay[rows].float() + self.shift))
        return decay, self.rate[rows].sigmoid().float()


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of sequences: one row of each of several, or several of one. `sources` and `targets` are pages, -1 for none."""

    rows: slice
    sources: list[int]
    targets: list[int]


class GatedDeltaNet(nn.Module):
    """In place of transformers' module, whose layers it takes over."""

    def __init__(self, own: Any, attention: Any) -> None:
        super().__init__()
        self.layer_idx = int(own.layer_idx)
        self.shape = DeltaShape(own.num_k_heads, own.num_v_heads, own.head_k_dim, own.head_v_dim, int(own.conv_kernel_size))
        for name, child in own.named_children():
            setattr(self, name, child)
        self.dt_bias, self.A_log = own.dt_bias, own.A_log
        self._reorder = getattr(own, "fix_query_key_value_ordering", None)  # of Qwen3-Next, which has two projections
        self._attention = attention
        self._constants: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None  # in float32: weights of the convolution, A, and dt

    def forward(self, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        if self._constants is None:
            weight = self.conv1d.weight.detach()[:, 0].float().t().contiguous()  # type: ignore[operator, union-attr]
            self._constants = weight, self.A_log.detach().float().exp(), self.dt_bias.detach().float()
        mixed, z, rate, decay = self._project(hidden_states)
        weight, steepness, shift = self._constants
        out = self._attention.recur(self.layer_idx, DeltaInputs(mixed, decay, rate, steepness, shift), self.shape, weight)
        width = self.shape.value_dim
        normed = self.norm(out.to(hidden_states.dtype).reshape(-1, width), z.reshape(-1, width))  # type: ignore[operator]
        return self.out_proj(normed.reshape(1, len(mixed), -1))  # type: ignore[operator]

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values together; the gate of what comes out; b and a, of which rate and decay are made: `[rows, ...]` each."""
        if self._reorder is None:
            return tuple(getattr(self, f"in_proj_{name}")(x)[0] for name in ("qkv", "z", "b", "a"))
        query, key, value, z, b, a = self._reorder(self.in_proj_qkvz(x), self.in_proj_ba(x))  # type: ignore[operator]
        return torch.cat([part[0].flatten(1) for part in (query, key, value)], -1), z[0], b[0], a[0]


def install_delta_nets(model: nn.Module, attention: Any) -> None:
    """Let the model's gated delta nets know the sequences of a step, which `attention` tells (a `SlotAttention`)."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_delta_net(child):
                setattr(parent, name, GatedDeltaNet(child, attention))


def is_delta_net(module: nn.Module) -> bool:
    """Whether it is such a module of transformers' models Qwen 3.5, its mixtures, or Qwen3-Next."""
    projections = {"in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"}, {"in_proj_qkvz", "in_proj_ba"}
    return type(module).__name__.endswith("GatedDeltaNet") and {name for name, _ in module.named_children()} in [
        each | {"conv1d", "norm", "out_proj"} for each in projections
    ]


def runs_of(layout: Layout) -> Iterator[tuple[Run, bool]]:
    """The rows of a step in the order in which they are run, and whether they are of a text. The decoding rows first, together as far as
    they are of different sequences; then each span, divided where pages end.
    """
    size = layout.page_tokens
    first, sources, targets = 0, list[int](), list[int]()
    for row, (pages, position) in enumerate(layout.sequences):
        source = -1 if position == 0 else pages[(position - 1) // size]
        if source in targets:  # the row before it is of the same sequence
            yield Run(slice(first, row), sources, targets), False
            first, sources, targets = row, [], []
        sources.append(source)
        targets.append(pages[position // size])
    if targets:
        yield Run(slice(first, layout.decodes), sources, targets), False
    for span in layout.spans:
        yield from ((run, span.is_text) for run in _runs_of_span(span, size))


def _runs_of_span(span: Span, size: int) -> Iterator[Run]:
    if span.pages is None:
        yield Run(slice(span.row_start, span.row_end), [-1], [-1])
        return
    at = span.start
    while at < span.end:
        end = min(span.end, (at // size + 1) * size)
        rows = slice(span.row_start + at - span.start, span.row_start + end - span.start)
        yield Run(rows, [-1 if at == 0 else span.pages[(at - 1) // size]], [span.pages[at // size]])
        at = end


def recur(
    inputs: DeltaInputs, shape: DeltaShape, weight: torch.Tensor, layout: Layout, caches: tuple[torch.Tensor | None, ...]
) -> torch.Tensor:
    """Convolve by `weight` `[taps, channels]`, contiguous, run the rule from the states that the cache has, and write those that come out
    of it. `caches` are those of slots and of texts, float32 `[pages, numbers]`, or None. Returns float32 `[rows, heads, value_dim]`.
    """
    out = torch.empty(len(inputs.mixed), shape.heads, shape.value_dim, device=inputs.mixed.device)
    native = kernel() if out.device.type == "cpu" else None
    if native is not None and not shape.is_supported(native.columns // 2):
        native = None
    for run, is_text in runs_of(layout):
        if native is None:
            out[run.rows] = _run_by_torch(inputs, run, shape, weight, caches[is_text])
        else:
            _run_on_kernel(native, inputs, run, shape, weight, caches[is_text], out[run.rows])
    return out


def _run_on_kernel(  # noqa: PLR0913  (all that `recur` has)
    native: Kernel, inputs: DeltaInputs, run: Run, shape: DeltaShape, weight: torch.Tensor, states: torch.Tensor | None, out: torch.Tensor
) -> None:
    mixed, decay, rate = (part[run.rows].float().contiguous() for part in (inputs.mixed, inputs.decay, inputs.rate))
    each = len(out) // len(run.sources)
    rows = zip(range(0, len(out), each), run.sources, run.targets, strict=True)
    sequences = (DeltaRowsArgs * len(run.sources))(*(DeltaRowsArgs(row, each, source, target) for row, source, target in rows))
    native.run_delta_rule(
        DeltaArgs(
            *(part.data_ptr() for part in (mixed, weight, decay, rate, inputs.steepness, inputs.shift)),
            *(shape.taps, shape.channels, shape.key_heads, shape.heads, shape.key_dim, shape.value_dim),
            *((None, 0) if states is None else (states.data_ptr(), states.stride(0))),
            sequences,
            *(len(out), len(run.sources)),
            inputs.mixed.dtype == torch.bfloat16,
            out.data_ptr(),
        )
    )


def _convolved(mixed: torch.Tensor, run: Run, shape: DeltaShape, weight: torch.Tensor, states: torch.Tensor | None) -> torch.Tensor:
    """swish of the convolution of the run's rows and those before, of which the cache has the last ones; the new last ones are written."""
    before, is_one, part = shape.taps - 1, len(run.sources) == 1, slice(shape.size, shape.size + (shape.taps - 1) * shape.channels)
    known = mixed.new_zeros(len(run.sources), before, shape.channels, dtype=torch.float32)
    begun = [index for index, page in enumerate(run.sources) if page >= 0]
    if begun and states is not None:
        known[begun] = states[[run.sources[index] for index in begun], part].view(len(begun), before, shape.channels)
    rows = mixed.float()
    seen = torch.cat([known, rows[None] if is_one else rows[:, None]], 1)  # [sequences, taps - 1 + rows of each, channels]
    count = seen.shape[1] - before
    out = seen[:, :count] * weight[0]
    for tap in range(1, shape.taps):
        out = out + seen[:, tap : tap + count] * weight[tap]
    if states is not None and run.targets[0] >= 0:
        states[run.targets, part] = seen[:, count:].flatten(1)
    return F.silu(out.to(mixed.dtype)).view(mixed.shape)


def _run_by_torch(inputs: DeltaInputs, run: Run, shape: DeltaShape, weight: torch.Tensor, states: torch.Tensor | None) -> torch.Tensor:
    """Token by token, all sequences of the run together."""
    mixed = _convolved(inputs.mixed[run.rows], run, shape, weight, states).float()
    queries = shape.key_heads * shape.key_dim
    query, key, value = mixed.split([queries, queries, shape.heads * shape.value_dim], -1)
    heads = [part.reshape(len(mixed), shape.key_heads, shape.key_dim) for part in (query, key)]
    query, key = (part * torch.rsqrt(part.square().sum(-1, keepdim=True) + TINY_NORM) for part in heads)
    parts = (query * shape.key_dim**-0.5, key, value.reshape(len(mixed), shape.heads, shape.value_dim))
    count, device = len(run.sources), mixed.device
    state = torch.zeros(count, shape.heads, shape.key_dim, shape.value_dim, device=device)
    begun = [index for index, page in enumerate(run.sources) if page >= 0]
    if begun and states is not None:
        state[begun] = states[[run.sources[index] for index in begun], : shape.size].view(len(begun), *state.shape[1:])
    served = shape.heads // shape.key_heads
    query, key = (part.repeat_interleave(served, 1).unflatten(0, (count, -1)) for part in parts[:2])
    value, decay, rate = (part.unflatten(0, (count, -1)) for part in (parts[2], *inputs.factors(run.rows)))
    out = torch.empty_like(value)
    for at in range(value.shape[1]):
        state = state * decay[:, at, :, None, None]
        known = (state * key[:, at, :, :, None]).sum(2)
        change = (value[:, at] - known) * rate[:, at, :, None]
        state = state + key[:, at, :, :, None] * change[:, :, None]
        out[:, at] = (state * query[:, at, :, :, None]).sum(2)
    if states is not None and run.targets[0] >= 0:
        states[run.targets, : shape.size] = state.flatten(1)
    return out.flatten(0, 1)
