"""Mixtures of experts on the compiled kernel: a layer's experts in one call, and with what chooses them in one.

Knows no architecture: who creates a `CompiledMixture` says how its router chooses.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from app.engine import packing
from app.engine.experts import Expert, Experts, Gating
from app.engine.linear import TiledLinear
from app.engine.structures import ACTIVATIONS, BINARY_OPS, EpilogueArgs, ExpertsArgs, LinearArgs, MixtureArgs, groups_args, weights_args

Parts = tuple[TiledLinear, TiledLinear, TiledLinear]  # gate, up and down of an expert, or of a feed-forward network


@dataclass(frozen=True, slots=True)
class Router:
    """Takes the `chosen` experts of the largest logits; each counts its share of the softmax over them, or, `of_all`, over all experts."""

    weight: torch.Tensor  # [experts, hidden]
    bias: torch.Tensor | None
    chosen: int
    of_all: bool = False


class CompiledExperts:
    """The experts of a layer in one call."""

    def __init__(self, experts: Sequence[Parts], gating: Gating) -> None:
        self.kernel = experts[0][0].kernel
        self.referenced: list[object] = [experts]  # by pointers inside of `args`
        layers = [
            (LinearArgs * len(experts))(*(linear_args(layer, self.referenced) for layer in column)) for column in zip(*experts, strict=True)
        ]
        self.hidden, self._width = experts[0][2].outputs, experts[0][0].outputs
        self.args = ExpertsArgs(*layers, len(experts), self.hidden, self._width, *_endings(gating))

    def __call__(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Compute rows `x` `[rows, hidden]` in bfloat16, of which each expert has the next `counts` `[experts or more]`. What is left of
        the rows gives 0. Raises `MemoryError`.
        """
        x, args = x.contiguous(), self.args
        out, activated = torch.zeros(len(x), self.hidden, dtype=torch.bfloat16), torch.empty(len(x), self._width, dtype=torch.bfloat16)
        args.counts, args.x, args.activated, args.out = counts.data_ptr(), x.data_ptr(), activated.data_ptr(), out.data_ptr()
        self.kernel.run_experts(args)
        return out


class CompiledMixture:
    """A router and its `experts` in one call."""

    def __init__(self, router: Router, experts: Experts, compiled: CompiledExperts) -> None:
        kernel = compiled.kernel
        packed = packing.pack_bfloat16(router.weight.detach(), kernel.columns)
        self._router, self._experts = TiledLinear(packed, len(router.weight), router.bias, kernel), experts
        self.kernel = kernel
        self._referenced: list[object] = [compiled]
        self.args = MixtureArgs(linear_args(self._router, self._referenced), router.chosen, router.of_all, compiled.args)
        self._given: tuple[torch.Tensor, ...] = ()

    @staticmethod
    def is_supported(router: Router, compiled: CompiledExperts) -> bool:
        fits = router.weight.shape == (compiled.args.experts, compiled.hidden)
        return fits and compiled.hidden % compiled.kernel.columns == 0 and router.weight.dtype == torch.bfloat16

    def follow_routes(self, rows: int) -> None:
        """Let the next call, of so many rows, take the experts that another forward chose, if a check wants that."""
        routes = self._experts.routes
        if routes is None:
            self.args.given = self.args.given_shares = None
            return
        chosen, shares = routes.next_rows(rows)
        self._given = chosen.long().contiguous(), shares.float().contiguous()
        self.args.given, self.args.given_shares = (part.data_ptr() for part in self._given)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Compute rows `x` and add the `residual`, both `[rows, hidden]` in bfloat16. Raises `MemoryError`."""
        x, residual = x.contiguous(), residual.contiguous()
        out = torch.empty_like(x)
        self.follow_routes(len(x))
        self.kernel.run_mixture(self.args, x, residual, out)
        return out


def create_compiled_experts(experts: Experts) -> CompiledExperts | None:
    """None unless all layers are the kernel's, it knows what the experts do between them, and no inputs would have to be padded."""
    own = [each for each in experts if isinstance(each, Expert)]
    parts = [part for each in own if (part := tiled_parts(each.gate_proj, each.up_proj, each.down_proj))]
    gating = own[0].gating if own else None
    if gating is None or len(parts) < len(experts):
        return None
    hidden, width = parts[0][2].outputs, parts[0][0].outputs
    fit = [(hidden, width), (hidden, width), (width, hidden)]
    is_whole = all([(layer.packed.inputs, layer.outputs) for layer in part] == fit for part in parts)
    return CompiledExperts(parts, gating) if is_whole else None


def linear_args(layer: TiledLinear, referenced: list[object]) -> LinearArgs:
    """The layer for the compiled kernel. What is pointed at is added to `referenced`, to be kept as long."""
    packed = layer.packed
    weights = None if packed.is_grouped else ctypes.pointer(weights_args(packed))
    groups = ctypes.pointer(groups_args(packed)) if packed.is_grouped else None
    referenced += [weights, groups]
    return LinearArgs(weights, groups, None if layer.bias is None else layer.bias.data_ptr(), packed.inputs, layer.outputs)


def tiled_parts(gate: nn.Module, up: nn.Module, down: nn.Module) -> Parts | None:
    """Gate, up and down; None unless all are the kernel's."""
    if isinstance(gate, TiledLinear) and isinstance(up, TiledLinear) and isinstance(down, TiledLinear):
        return gate, up, down
    return None


def _endings(gating: Gating) -> tuple[EpilogueArgs, EpilogueArgs]:
    """What is applied to the sums of gate and up."""
    gated = EpilogueArgs(activation=ACTIVATIONS["swish"])
    product = EpilogueArgs(binary_op=BINARY_OPS["mul"])
    if gating.limit is not None:
        gated.activation, product.activation = ACTIVATIONS["limited swish"], ACTIVATIONS["limited plus one"]
        for ending in (gated, product):
            ending.steepness, ending.limit = gating.steepness, gating.limit
    return gated, product
