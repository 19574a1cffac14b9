"""The experts of a mixture, each with linear layers of its own: they are rounded, packed and run like all other layers.

transformers keeps the experts of a layer in two tensors of three dimensions, which no quantization and no kernel of ours reads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Gate = Callable[[torch.Tensor], torch.Tensor]


class Expert(nn.Module):
    """One feed-forward network. `apply_gate` makes `[rows, width]` of gate and value side by side, `[rows, 2 * width]`."""

    def __init__(self, hidden: int, width: int, apply_gate: Gate, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False, dtype=dtype, device="meta")
        self.up_proj = nn.Linear(hidden, width, bias=False, dtype=dtype, device="meta")
        self.down_proj = nn.Linear(width, hidden, bias=False, dtype=dtype, device="meta")
        self._apply_gate = apply_gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self._apply_gate(torch.cat([self.gate_proj(x), self.up_proj(x)], dim=-1)))


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
        part = slice(self._at, self._at + len(chosen))
        self._at = part.stop % len(self._rows[0])
        return self._rows[0][part], self._rows[1][part]


class Experts(nn.ModuleList):
    """All experts of a layer. A row's result is the same alone and in any batch: its experts are added in the order of their numbers."""

    routes: Routes | None = None  # while a model is checked

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`hidden` `[rows, hidden]`; `chosen` `[rows, k]` are the numbers of each row's experts, `weights` `[rows, k]` what they count."""
        if self.routes is not None:
            chosen, weights = self.routes.follow(chosen, weights)
        out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        flat = chosen.flatten()
        order, start = flat.argsort(stable=True), 0
        for number, count in enumerate(flat.bincount(minlength=len(self)).tolist()[: len(self)]):  # one number more stands for no expert
            if not count:
                continue
            places = order[start : start + count]
            start += count
            rows = places // chosen.shape[1]
            out.index_add_(0, rows, self[number](hidden[rows]).float() * weights.flatten()[places, None])
        return out.to(hidden.dtype)


def separate_experts(model: nn.Module) -> None:
    """Give each expert layers of its own, in place; their weights are parts of those that were there. Experts of other forms stay."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _can_be_separated(child):
                setattr(module, name, _separated(child))


def set_routes(model: nn.Module, create: Callable[[], Routes | None]) -> None:
    """Let each layer of experts follow the routes of its own that `create` gives, or none."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.routes = create()


def has_joined_experts(model: nn.Module) -> bool:
    """Whether experts are there that have no layers of their own."""
    return any(getattr(module, "has_gate", None) is not None for module in model.modules())


def _can_be_separated(module: Any) -> bool:
    """Whether they are transformers' common kind: gate and value one after the other, no biases, no norm of their own."""
    return (
        getattr(module, "is_concatenated", False)
        and module.has_gate
        and not (module.has_bias or module.is_transposed or module.has_post_expert_norm)
        and {"gate_up_proj", "down_proj"} == {name for name, _ in module.named_parameters()}
    )


def _separated(fused: Any) -> Experts:
    gate_up, down = fused.gate_up_proj.detach(), fused.down_proj.detach()  # [experts, 2 * width, hidden], [experts, hidden, width]
    count, hidden, width = down.shape
    del fused.gate_up_proj, fused.down_proj  # what is left of it is the gate and its settings
    experts = Experts(Expert(hidden, width, fused._apply_gate, down.dtype) for _ in range(count))
    for number, expert in enumerate(experts):
        assert isinstance(expert, Expert)
        weights = (gate_up[number, :width], gate_up[number, width:], down[number])
        for layer, weight in zip((expert.gate_proj, expert.up_proj, expert.down_proj), weights, strict=True):
            layer.weight = nn.Parameter(weight, requires_grad=False)
    return experts
