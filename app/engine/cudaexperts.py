"""The experts of a mixture on CUDA: a projection of all experts is one product, of rows that are sorted by expert.

The host waits for nothing, so that a step with experts can be recorded. Knows no model.
"""

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from app.engine.experts import Expert, Experts, Routed
from app.engine.grouped import FLOAT_4, GROUP_FORMAT, GROUP_SIZE, MXFP4_VALUES, GroupedLinear, GroupedWeights, GroupFormat, layers_of
from app.engine.packing import factor_of_halves
from app.errors import first_line

log = logging.getLogger(__name__)

BLOCK_INPUTS = 2 * GROUP_SIZE  # whose levels lie in one group's bytes
MAX_PROBE_ERROR = 2e-2  # of a kernel's outputs, relative to their norm

Layer = GroupedLinear | nn.Linear
Product = Callable[["PackedProjection", torch.Tensor, torch.Tensor], torch.Tensor]  # as `PackedProjection.forward`


class PackedProjection(nn.Module):
    """A projection of all experts in 4-bit groups of 32. Of 64 neighbouring inputs, a byte has one of the first 32 in its low half, and of
    the others in its high one.
    """

    levels: torch.Tensor  # uint8 [experts, outputs, inputs / 2], the inputs padded to whole blocks
    scales: torch.Tensor  # float16 [experts, groups, outputs]
    minima: torch.Tensor | None  # the same; None for MXFP4, whose table of values is symmetric
    bias: torch.Tensor | None  # [experts, outputs]

    def __init__(self, experts: Sequence[Sequence[GroupedLinear]], by_turns: bool) -> None:
        """Of each expert the layers whose outputs are one after the other, or `by_turns`. They have one of the two formats."""
        super().__init__()
        first, count = experts[0], len(experts)
        self.dtype, self.inputs, self.outputs = first[0].dtype, first[0].in_features, sum(layer.out_features for layer in first)
        self.is_even, self.factor, self.kernel = first[0].group_format == GROUP_FORMAT, 1.0, cast(Product | None, None)
        blocks = -(-self.inputs // BLOCK_INPUTS)
        scale, minimum = [], []
        for number, layers in enumerate(experts):
            weights = [layer.unpack() for layer in layers]
            levels, *values = (_joined(parts, by_turns) for parts in zip(*((w.levels, w.scale, w.minimum) for w in weights), strict=True))
            scale.append(values[0])
            minimum.append(values[1])
            if not number:
                self.register_buffer("levels", levels.new_empty(count, self.outputs, blocks * GROUP_SIZE))
            halves = F.pad(levels, (0, blocks * BLOCK_INPUTS - self.inputs)).unflatten(1, (blocks, 2, GROUP_SIZE))
            self.levels[number] = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)
        scales, minima = (F.pad(torch.stack(part), (0, 2 * blocks - part[0].shape[1])) for part in (scale, minimum))
        self.factor = factor_of_halves(scales, minima)
        self.register_buffer("scales", self._halves(scales))
        self.register_buffer("minima", self._halves(minima) if self.is_even else None)
        self.register_buffer("bias", _biases(experts, by_turns))

    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """`x` `[rows, inputs]` are sorted by expert, `ends` int32 `[experts]` say where the rows of each end. Returns `[rows, outputs]`;
        what stands in rows behind the last end is nothing.
        """
        return multiply_plainly(self, x, ends) if self.kernel is None else self.kernel(self, x, ends)

    def _halves(self, values: torch.Tensor) -> torch.Tensor:
        return (values / self.factor).half().transpose(1, 2).contiguous()

    def weights(self, expert: int) -> torch.Tensor:
        """Those of one expert, float32 `[outputs, inputs]`."""
        pairs = self.levels[expert].unflatten(1, (-1, 1, GROUP_SIZE))
        levels = torch.cat([pairs & 15, pairs >> 4], 2).flatten(1)
        scale = self.scales[expert].T.float() * self.factor
        minimum = MXFP4_VALUES[-1] * scale if self.minima is None else self.minima[expert].T.float() * self.factor
        return GroupedWeights(levels, scale, minimum, 4, (GROUP_FORMAT if self.is_even else FLOAT_4).table).dequantize()[:, : self.inputs]


class PlainProjection(nn.Module):
    """A projection of all experts in floats."""

    weight: torch.Tensor  # [experts, outputs, inputs]
    bias: torch.Tensor | None  # [experts, outputs]

    def __init__(self, experts: Sequence[Sequence[Layer]], by_turns: bool) -> None:
        """As `PackedProjection`, of layers of any form."""
        super().__init__()
        weights = (_joined([_floats(layer) for layer in layers], by_turns) for layers in experts)
        self.register_buffer("weight", torch.stack(list(weights)))
        self.register_buffer("bias", _biases(experts, by_turns))

    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """As `PackedProjection.forward`."""
        out = F.grouped_mm(x, self.weight.transpose(1, 2), offs=ends)
        return out if self.bias is None else out + self.bias[_experts_of(x, ends).clamp(max=len(ends) - 1)]


class CudaExperts(Routed):
    """Joined from experts with layers of their own, which are on the device."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        parts = cast(Sequence[Expert], list(experts))
        self._apply_gate, by_turns = parts[0].apply_gate, parts[0].interleaved
        self.gate_up = _projection([(part.gate_proj, part.up_proj) for part in parts], by_turns)
        self.down = _projection([(part.down_proj,) for part in parts], False)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """As `Experts.forward`."""
        chosen, weights = self.follow(chosen, weights)
        experts, order = chosen.flatten().sort(stable=True)
        count = len(self.gate_up.weight if isinstance(self.gate_up, PlainProjection) else self.gate_up.levels)
        ends = ends_of(experts, count)
        computed = self.down(self._apply_gate(self.gate_up(hidden[order // chosen.shape[1]], ends)), ends)
        computed = computed.masked_fill((experts >= count)[:, None], 0)  # one number more stands for no expert
        answers = torch.empty_like(computed).index_copy_(0, order, computed).view(*chosen.shape, -1)  # [rows, k, hidden]
        return (answers.float() * weights[..., None]).sum(1).to(hidden.dtype)


def join_experts(model: nn.Module) -> None:
    """Give each mixture of a model on CUDA whose experts have layers of their own its `CudaExperts`, in place."""
    packed: list[PackedProjection] = []
    for parent, name, experts in layers_of(model):
        if isinstance(experts, Experts):
            joined = CudaExperts(experts)
            setattr(parent, name, joined)
            packed += [part for part in (joined.gate_up, joined.down) if isinstance(part, PackedProjection)]
    if packed:
        use_kernel(packed)


def ends_of(sorted_experts: torch.Tensor, count: int) -> torch.Tensor:
    """Where the rows of each of `count` experts end, int32 `[count]`, by the number of each row's expert, in their order."""
    return torch.searchsorted(sorted_experts, torch.arange(count, device=sorted_experts.device), right=True, out_int32=True)


def is_packed(group_format: GroupFormat, dtype: torch.dtype) -> bool:
    """Whether the layers of experts in such groups stay in 4 bits on CUDA."""
    return group_format in (GROUP_FORMAT, FLOAT_4) and dtype == torch.bfloat16


def multiply_plainly(projection: PackedProjection, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """By torch: each expert's weights are dequantized. Waits for the device."""
    out, start = x.new_zeros(len(x), projection.outputs), 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            bias = None if projection.bias is None else projection.bias[expert]
            out[start:end] = F.linear(x[start:end], projection.weights(expert).to(x.dtype), bias)
        start = end
    return out


def use_kernel(projections: Sequence[PackedProjection]) -> None:
    """Let them multiply by Triton's kernel, where it is there and right: the log says so where it is not."""
    if find_spec("triton") is None:
        log.warning("Triton is not installed, so that each step dequantizes its experts")
        return
    from app.engine.tritonexperts import FAILURES, multiply

    for projection in projections:
        try:
            error = probe(projection, multiply)
        except FAILURES as problem:
            log.warning("Triton's kernel for experts does not run here, so that each step dequantizes them: %s", first_line(problem))
            return
        if not error <= MAX_PROBE_ERROR:
            log.warning("Triton's kernel for experts is wrong by %.1f%% here, so that each step dequantizes them", 100 * error)
            return
    for projection in projections:
        projection.kernel = multiply


@torch.inference_mode()
def probe(projection: PackedProjection, kernel: Product) -> float:
    """How far the kernel's outputs for random rows are from those by torch, relative to their norm: with few rows and with many for an
    expert, and with none.
    """
    device, count, errors = projection.levels.device, len(projection.levels), []
    generator = torch.Generator().manual_seed(0)
    for rows in (3, 20 * count):
        chosen = torch.randint(0, count, (rows,), generator=generator).sort().values.to(device)
        ends = ends_of(chosen, count)
        x = torch.randn(rows, projection.inputs, generator=generator).to(device, projection.dtype)
        expected = multiply_plainly(projection, x, ends).float()
        errors.append(float((kernel(projection, x, ends).float() - expected).norm() / expected.norm()))
    return max(errors)


def _projection(experts: Sequence[Sequence[Layer]], by_turns: bool) -> PackedProjection | PlainProjection:
    grouped = [[layer for layer in layers if isinstance(layer, GroupedLinear)] for layers in experts]
    formats = {layer.group_format for layers in grouped for layer in layers}
    is_whole = sum(map(len, grouped)) == sum(map(len, experts)) and len(formats) == 1
    return PackedProjection(grouped, by_turns) if is_whole else PlainProjection(experts, by_turns)


def _floats(layer: Layer) -> torch.Tensor:
    return layer.unpack().dequantize().to(layer.dtype) if isinstance(layer, GroupedLinear) else layer.weight.detach()


def _biases(experts: Sequence[Sequence[Layer]], by_turns: bool) -> torch.Tensor | None:
    if experts[0][0].bias is None:
        return None
    return torch.stack([_joined([cast(torch.Tensor, layer.bias).detach() for layer in layers], by_turns) for layers in experts])


def _joined(parts: Sequence[torch.Tensor], by_turns: bool) -> torch.Tensor:
    """Along the first dimension."""
    return torch.stack(list(parts), 1).flatten(0, 1) if by_turns else torch.cat(list(parts))


def _experts_of(x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """The number of each row's expert; that of all experts behind the last end."""
    return torch.searchsorted(ends, torch.arange(len(x), device=x.device, dtype=ends.dtype), right=True)
