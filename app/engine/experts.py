"""The experts of a mixture, each with linear layers of its own: they are rounded, packed and run like all other layers.

transformers keeps the experts of a layer in two tensors of three dimensions, which no quantization and no kernel of ours reads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.integrations import moe

from app.engine.kernel import SWISH

Gate = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Gating:
    """What is done between an expert's layers: swish(gate) * up. With a limit, as in GPT-OSS (arXiv 2508.10925), the swish is
    x * sigmoid(steepness * x) of a gate of at most the limit, and multiplies 1 more than up, which is kept within it.
    """

    steepness: float = 1
    limit: float | None = None


class Expert(nn.Module):
    """One feed-forward network. `apply_gate` makes `[rows, width]` of gate and value, `[rows, 2 * width]`: one after the other, or, if they
    are `interleaved`, by turns.
    """

    def __init__(self, sizes: tuple[int, int], apply_gate: Gate, dtype: torch.dtype, bias: bool, interleaved: bool) -> None:
        """`sizes` are those of the hidden states and of the network."""
        super().__init__()
        hidden, width = sizes
        self.gate_proj = nn.Linear(hidden, width, bias, dtype=dtype, device="meta")
        self.up_proj = nn.Linear(hidden, width, bias, dtype=dtype, device="meta")
        self.down_proj = nn.Linear(width, hidden, bias, dtype=dtype, device="meta")
        self.apply_gate, self.interleaved = apply_gate, interleaved

    @property
    def gating(self) -> Gating | None:
        """None if it is of another kind."""
        joined: Any = getattr(self.apply_gate, "__self__", None)
        apply = getattr(self.apply_gate, "__func__", None)
        if getattr(apply, "__qualname__", "") == "GptOssExperts._apply_gate":
            return Gating(float(joined.alpha), float(joined.limit))
        is_swish = apply is moe._default_apply_gate and isinstance(getattr(joined, "act_fn", None), SWISH)
        return Gating() if is_swish else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.gate_proj(x), self.up_proj(x)]
        return self.down_proj(self.apply_gate(torch.stack(parts, -1).flatten(-2) if self.interleaved else torch.cat(parts, -1)))


class Routes:
    """What a first forward chose, for later ones over the same rows, perhaps in parts. So these can be compared with it: where two experts
    are almost as good, a rounding decides, and the whole of the layer is another one.
    """

    def __init__(self) -> None:
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None
        self._at = 0

    def follow(self, chosen: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The numbers of the experts and what they count, `[rows, k]`."""
        if self._rows is None:
            self._rows = chosen, weights
            return self._rows
        return self.next_rows(len(chosen))

    def next_rows(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `follow`, of the next rows, after a first forward."""
        assert self._rows is not None
        part = slice(self._at, self._at + count)
        self._at = part.stop % len(self._rows[0])
        return self._rows[0][part], self._rows[1][part]


class Routed(nn.Module):
    """All experts of a layer."""

    routes: Routes | None = None  # while a model is checked

    def follow(self, chosen: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (chosen, weights) if self.routes is None else self.routes.follow(chosen, weights)


class Experts(Routed, nn.ModuleList):
    """A row's result is the same alone and in any batch: its experts are added in the order of its own choice.

    `compiled` computes sorted rows, of which each expert has so many, in one call.
    """

    compiled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`hidden` `[rows, hidden]`; `chosen` `[rows, k]` are the numbers of each row's experts, `weights` `[rows, k]` what they count."""
        if hidden.is_meta:  # of a model without weights, whose shapes are wanted
            return torch.empty_like(hidden)
        chosen, weights = self.follow(chosen, weights)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        states, counts = hidden[order // chosen.shape[1]], flat.bincount(minlength=len(self))
        computed = self._compute(states, counts) if self.compiled is None else self.compiled(states, counts)
        computed = computed[order.argsort()].view(*chosen.shape, -1)  # [rows, k, hidden]
        return (computed.float() * weights[..., None]).sum(1).to(hidden.dtype)

    def _compute(self, states: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        parts, start = [], 0
        for number, count in enumerate(counts.tolist()):
            if count:
                part = states[start : start + count]
                parts.append(self[number](part) if number < len(self) else torch.zeros_like(part))  # one number more stands for no expert
            start += count
        return torch.cat(parts)


def separate_experts(model: nn.Module) -> None:
    """Give each expert layers of its own, in place; their weights are parts of those that were there. Experts of other forms stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _can_be_separated(child):
                setattr(module, name, _separated(child))


def set_routes(model: nn.Module, create: Callable[[], Routes | None]) -> None:
    """Let each layer of experts follow the routes of its own that `create` gives, or none."""
    for module in model.modules():
        if isinstance(module, Routed):
            module.routes = create()


def has_joined_experts(model: nn.Module) -> bool:
    """Whether experts are there that have no layers of their own."""
    return any(getattr(module, "has_gate", None) is not None for module in model.modules())


def _can_be_separated(module: Any) -> bool:
    """Whether they are transformers' common kind: with a gate, no norm of their own, and a layout that is told (older versions do not)."""
    if not getattr(module, "has_gate", False) or not hasattr(module, "is_concatenated") or getattr(module, "has_post_expert_norm", False):
        return False
    biases = {"gate_up_proj_bias", "down_proj_bias"} if module.has_bias else set()
    return {"gate_up_proj", "down_proj"} | biases == {name for name, _ in module.named_parameters()}


def _separated(fused: Any) -> Experts:
    gate_up, down = fused.gate_up_proj.detach(), fused.down_proj.detach()
    if fused.is_transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    gate, up = _gate_and_up(fused, gate_up)  # [experts, width, hidden] each; down is [experts, hidden, width]
    parts = {"gate_proj": {"weight": gate}, "up_proj": {"weight": up}, "down_proj": {"weight": down}}
    if fused.has_bias:
        parts["gate_proj"]["bias"], parts["up_proj"]["bias"] = _gate_and_up(fused, fused.gate_up_proj_bias.detach())
        parts["down_proj"]["bias"] = fused.down_proj_bias.detach()
    for name in [name for name, _ in fused.named_parameters()]:
        delattr(fused, name)  # what is left of it is the gate and its settings
    sizes, form = (down.shape[1], down.shape[2]), (down.dtype, fused.has_bias, not fused.is_concatenated)
    experts = Experts(Expert(sizes, fused._apply_gate, *form) for _ in range(len(down)))
    for number, expert in enumerate(experts):
        for layer, tensors in parts.items():
            for kind, tensor in tensors.items():
                setattr(getattr(expert, layer), kind, nn.Parameter(tensor[number], requires_grad=False))
    return experts


def _gate_and_up(fused: Any, joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`joined` has both along its second dimension."""
    if fused.is_concatenated:
        width = joined.shape[1] // 2
        return joined[:, :width], joined[:, width:]
    return joined[:, ::2], joined[:, 1::2]
