"""Weights in groups: levels of 4 or 8 bits, and for each group of a row a scale and a minimum. A weight is level * scale + minimum, or
table[level] * scale + minimum.

GGUF's block types and Litmus's own int4 and int8 all come as these. Knows no file format and no kernel.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeGuard

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

GROUP_SIZE = 32  # of Litmus's own rounding


Table = tuple[int, ...]


class GroupFormat(NamedTuple):
    """How a layer's weights lie in groups."""

    bits: int  # of a level: 4 or 8
    size: int  # weights of a group: 16 or 32
    table: Table | None = None  # of 16 values, 0 to 255, which levels of 4 bits in groups of 32 stand for; None: themselves


GROUP_FORMAT = GroupFormat(4, GROUP_SIZE)  # of Litmus's own int4, and what torch's products read
MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice those of a float of 4 bits, e2m1 (OCP MX, version 1.0)
FLOAT_4 = GroupFormat(4, GROUP_SIZE, tuple(value + 12 for value in MXFP4_VALUES))


@dataclass(frozen=True, slots=True)
class GroupedWeights:
    """A layer's weights `[out, in]` in groups along a row."""

    levels: torch.Tensor  # uint8 [out, in]
    scale: torch.Tensor  # float32 [out, groups]
    minimum: torch.Tensor  # float32 [out, groups]: the value of level 0
    bits: int
    table: Table | None = None

    @property
    def group_size(self) -> int:
        return self.levels.shape[1] // self.scale.shape[1]

    @property
    def format(self) -> GroupFormat:
        return GroupFormat(self.bits, self.group_size, self.table)

    def dequantize(self) -> torch.Tensor:
        """Return the values, float32 `[out, in]`."""
        levels = self.levels
        if self.table is not None:
            levels = torch.tensor(self.table, dtype=torch.uint8, device=levels.device)[levels.int()]
        grouped = levels.view(*self.scale.shape, self.group_size).float()
        return grouped.mul_(self.scale[..., None]).add_(self.minimum[..., None]).view_as(self.levels)


class GroupedLinear(nn.Module):
    """A layer that unpacks its weights in every call: the reference that a packed layer is checked against, and the form in which a model
    waits to be packed. `unpack` is called again each time, so that a whole model is never unpacked at once.
    """

    def __init__(
        self,
        unpack: Callable[[], GroupedWeights],
        shape: tuple[int, int],
        group_format: GroupFormat,
        dtype: torch.dtype,
        bias: torch.Tensor | None = None,
    ) -> None:
        """`shape` is `[out, in]`, `group_format` that of what `unpack` gives, `dtype` that of the products."""
        super().__init__()
        self.unpack, self.group_format, self.dtype = unpack, group_format, dtype
        self.out_features, self.in_features = shape
        self.bias = bias
        self.check_inputs: torch.Tensor | None = None  # inputs [1, tokens, in] of a first forward; see `keep_inputs`
        self.is_harmed: bool | None = None  # whether inputs of 8 bits change its outputs too much; None: not known yet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, self.unpack())

    def multiply(self, x: torch.Tensor, weights: GroupedWeights) -> torch.Tensor:
        """The layer's outputs for `weights` that were unpacked before."""
        return F.linear(x, weights.dequantize().to(self.dtype), self.bias)

    def plain(self, tied: nn.Linear | nn.Embedding | None = None) -> nn.Linear:
        """The same layer with its weights dequantized for good, or with those of what is `tied` to it."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight = _dequantized(self) if tied is None else tied.weight
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach(), requires_grad=False)
        return plain


class ScaledEmbedding(nn.Embedding):
    """An embedding whose rows are multiplied by `embed_scale`, as Gemma's are."""

    def __init__(self, num_embeddings: int, width: int, embed_scale: float) -> None:
        super().__init__(num_embeddings, width, device="meta")
        self.embed_scale = embed_scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return scaled(super().forward(ids), self.embed_scale)


class GroupedEmbedding(nn.Module):
    """An embedding that unpacks its weights in every call, until it is packed. A tied vocabulary projection has the same `unpack`."""

    def __init__(self, unpack: Callable[[], GroupedWeights], replaced: nn.Embedding) -> None:
        """`replaced` is one that `is_groupable`: its scale, its dtype and the number of its rows are kept."""
        super().__init__()
        self.unpack, self.num_embeddings, self.width = unpack, replaced.num_embeddings, replaced.embedding_dim
        self.dtype = replaced.weight.dtype
        self.embed_scale = float(torch.as_tensor(getattr(replaced, "embed_scale", 1.0), dtype=self.dtype))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        weights = self.unpack()
        levels, scale, minimum = (part[ids.flatten()] for part in (weights.levels, weights.scale, weights.minimum))
        rows = replace(weights, levels=levels, scale=scale, minimum=minimum)
        return scaled(rows.dequantize().to(self.dtype).view(*ids.shape, -1), self.embed_scale)

    def plain(self, tied: nn.Linear | nn.Embedding | None = None) -> nn.Embedding:
        """As `GroupedLinear.plain`."""
        plain = ScaledEmbedding(self.num_embeddings, self.width, self.embed_scale)
        plain.weight = _dequantized(self) if tied is None else tied.weight
        return plain


def scaled(rows: torch.Tensor, scale: float) -> torch.Tensor:
    return rows if scale == 1.0 else rows * scale


def is_groupable(module: nn.Module | None) -> TypeGuard[nn.Embedding]:
    """Whether it is an embedding that does no more than to look rows up, and perhaps to multiply them by its `embed_scale`."""
    return type(module) is nn.Embedding or (isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"))


def _dequantized(layer: GroupedLinear | GroupedEmbedding) -> nn.Parameter:
    return nn.Parameter(layer.unpack().dequantize().to(layer.dtype), requires_grad=False)


def layers_of(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module inside another as (parent, name, module). What the caller replaces meanwhile is not visited."""
    for parent in [module for module in model.modules() if next(module.children(), None) is not None]:
        for name, layer in list(parent.named_children()):
            yield parent, name, layer


def dequantize_layers(model: PreTrainedModel, stays: Callable[[nn.Module], bool] = lambda _: False) -> None:
    """Make the layers in groups plain ones again, but those of which `stays` says that the device has a kernel for them. An embedding and
    a projection that are tied are dequantized once.
    """
    plain: dict[int, nn.Linear | nn.Embedding] = {}  # by what unpacked their weights
    for parent, name, layer in layers_of(model):
        if isinstance(layer, GroupedEmbedding | GroupedLinear) and not stays(layer):
            key = id(layer.unpack)
            plain[key] = layer.plain(plain.get(key))
            setattr(parent, name, plain[key])


@contextmanager
def keep_inputs(model: nn.Module) -> Iterator[None]:
    """While open, each layer in groups, or that `fourbits.group_layers` makes one, keeps the inputs of its last call as `check_inputs`."""
    layers = [module for module in model.modules() if isinstance(module, GroupedLinear) or is_four_bit_layer(module)]
    hooks = [layer.register_forward_pre_hook(_keep_inputs) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keep_inputs(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    layer.check_inputs = args[0].detach()


def is_four_bit_layer(layer: nn.Module) -> bool:
    """Whether it is one of bitsandbytes' nf4 or fp4."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def can_concatenate(parts: Sequence[GroupedLinear]) -> bool:
    """Whether the parts' weights lie in the same groups."""
    return len({part.group_format for part in parts}) == 1


def concatenate(parts: Sequence[GroupedLinear]) -> GroupedLinear:
    """Return one layer whose outputs are those of the parts, one after the other. They lie in the same groups."""

    def unpack() -> GroupedWeights:
        weights = [part.unpack() for part in parts]
        levels, scale, minimum = (torch.cat(column) for column in zip(*((w.levels, w.scale, w.minimum) for w in weights), strict=True))
        return replace(weights[0], levels=levels, scale=scale, minimum=minimum)

    biases = [part.bias for part in parts if part.bias is not None]
    shape = (sum(part.out_features for part in parts), parts[0].in_features)
    made = GroupedLinear(unpack, shape, parts[0].group_format, parts[0].dtype, torch.cat(biases) if biases else None)
    made.check_inputs = parts[0].check_inputs
    return made
