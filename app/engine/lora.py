"""LoRA adapters beside the weights of their base: each row of a step is computed with its own adapter, or with none (arXiv 2106.09685).

Knows no files and no requests. A step without adapted rows does not come here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from app.engine import linear
from app.engine.experts import Experts
from app.engine.facts import AdapterFacts
from app.engine.kernel import Epilogue, activation_of
from app.engine.ledger import USABLE_SHARE, device_memory
from app.engine.linear import FusedLinear, TiledLinear
from app.errors import SetupError

SMALL_PRODUCT = 1 << 18  # multiplications that one thread does
Matrices = tuple[torch.Tensor, torch.Tensor]  # A [rank, in] and B [out, rank], which is scaled
Rows = slice | torch.Tensor
Changes = Mapping[int, "LowRank"]  # what an adapter adds to layers, by their places in `Adapters.layers`


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that is read and fits, but is not served yet."""

    facts: AdapterFacts
    changes: Changes


class AdapterReader(Protocol):
    def read(self, name: str, path: str) -> LoadedAdapter:
        """Any thread may call it. Raises `SetupError` that says what is wrong with the adapter."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """`layers` has outputs and inputs of each linear layer by its name, `head` is the name of the vocabulary projection."""

    layers: Mapping[str, tuple[int, int]]
    head: str


def shapes_of(model: nn.Module, head: nn.Module) -> Shapes:
    """Ask before layers are joined. Those of experts, which get only the rows that chose them, are left out."""
    layers: dict[str, tuple[int, int]] = {}
    experts = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Experts))
    for name, module in model.named_modules():
        if name.startswith(experts):
            continue
        if isinstance(module, Conv1D):
            layers[name] = module.nf, module.weight.shape[0]
        elif hasattr(module, "in_features") and hasattr(module, "out_features"):
            layers[name] = int(module.out_features), int(module.in_features)
    return Shapes(layers, next((name for name, module in model.named_modules() if module is head), ""))


class LowRank(nn.Module):
    """B A x, by the kind of layer that the base has in this precision."""

    def __init__(self, matrices: Matrices, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.down, self.up = (_layer(matrix, dtype, device) for matrix in matrices)
        self.nbytes = sum(matrix.numel() for matrix in matrices) * dtype.itemsize

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _product(self.up, _product(self.down, x))


def _product(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A thread of its own for a few rows would only be waited for."""
    if isinstance(layer, TiledLinear) and x.numel() * layer.outputs <= SMALL_PRODUCT:
        return layer.kernel.linear(x, layer.packed, Epilogue(layer.outputs), threads=1)
    product: torch.Tensor = layer(x)
    return product


def _layer(weight: torch.Tensor, dtype: torch.dtype, device: torch.device) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(device, dtype).contiguous(), requires_grad=False)
    return (linear.prepack_plain(layer) if device.type == "cpu" else None) or layer


class AdaptedLinear(nn.Module):
    """A layer with what each adapter adds to the outputs of its rows. It is made of the layers `parts` (name, outputs), joined in this
    order. `rows` are those of the running step, by adapter.
    """

    def __init__(self, base: nn.Module, parts: Sequence[tuple[str, int]], rows: Mapping[str, Rows]) -> None:
        super().__init__()
        self.base, self.parts, self._rows = base, parts, rows
        self.changes: dict[str, LowRank] = {}  # by adapter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.add(self.base(x), x)

    def add(self, out: torch.Tensor, x: torch.Tensor, factor: torch.Tensor | None = None) -> torch.Tensor:
        """Add to `out` `[rows, out]`, in place, what the adapters make of `x` `[rows, in]`; times `factor`, if there is one."""
        for rows, change in self._touched():
            added = change(x[rows])
            out[rows] += added if factor is None else added * factor[rows]
        return out

    def add_residual(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.add(linear.add_residual(self.base, x, residual), x)

    def activated(self, x: torch.Tensor, act: nn.Module) -> torch.Tensor:
        """act(layer(x)), where the base applies the activation before it rounds its outputs."""
        touched = list(self._touched())
        if sum(len(x[rows]) for rows, _ in touched) == len(x):
            activated: torch.Tensor = act(self.add(self.base(x), x))
            return activated
        out: torch.Tensor = self.base(x, activation_of(act))
        for rows, change in touched:
            h = x[rows]
            out[rows] = act(self.base(h) + change(h))
        return out

    def _touched(self) -> Iterator[tuple[Rows, LowRank]]:
        return ((rows, self.changes[name]) for name, rows in self._rows.items() if name in self.changes)


def gated_product(gate: nn.Module, up: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """As `linear.gated_product`. Rows without an adapter are computed as there, bit for bit."""
    if not (isinstance(gate, AdaptedLinear) and isinstance(up, AdaptedLinear)):
        return linear.gated_product(gate, up, act, x)
    if isinstance(gate.base, FusedLinear) and isinstance(up.base, FusedLinear) and activation_of(act) != "none":
        gated = gate.activated(x, act)
        return up.add(up.base.combine(x, gated, "mul"), x, gated)
    product: torch.Tensor = act(gate(x)).mul_(up(x))
    return product


def add_residual(layer: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """As `linear.add_residual`."""
    return layer.add_residual(x, residual) if isinstance(layer, AdaptedLinear) else linear.add_residual(layer, x, residual)


class Adapters:
    """The adapters of a model, by name. `hooked` says that the model is run by its own forward, in which hooks change the layers."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype, device: torch.device, hooked: bool) -> None:
        self.shapes = shapes
        self.names: set[str] = set()
        self.layers: list[AdaptedLinear] = []
        self._dtype, self._device, self._hooked = dtype, device, hooked
        self._rows: dict[str, Rows] = {}  # of the running step

    def adapt(self, base: nn.Module, names: Sequence[str]) -> AdaptedLinear:
        """The layer `base`, which is made of the layers `names`, joined in this order."""
        self.layers.append(AdaptedLinear(base, [(name, self.shapes.layers[name][0]) for name in names], self._rows))
        return self.layers[-1]

    def prepare(self, weights: Mapping[str, Matrices]) -> Changes:
        """`weights` are an adapter's matrices by the name of the layer that they change. Changes nothing here: any thread may call it.

        Raises `SetupError` where there is no memory.
        """
        size = sum(down.numel() + up.numel() for down, up in weights.values()) * self._dtype.itemsize
        free = int(USABLE_SHARE * device_memory(self._device, 0))
        if size > free:
            raise SetupError(f"its matrices take {size} bytes of {self._device}, where {free} are free")
        joined = {
            place: _joined([(weights.get(name), outputs) for name, outputs in layer.parts]) for place, layer in enumerate(self.layers)
        }
        return {place: LowRank(matrices, self._dtype, self._device) for place, matrices in joined.items() if matrices is not None}

    def add(self, name: str, changes: Changes) -> None:
        for place, change in changes.items():
            self.layers[place].changes[name] = change
        self.names.add(name)

    def remove(self, name: str) -> None:
        self.names.discard(name)
        for layer in self.layers:
            layer.changes.pop(name, None)

    @torch.inference_mode()
    def prove(self, name: str, run: Callable[[Mapping[str, Sequence[int]]], torch.Tensor], rows: int) -> None:
        """Raises `SetupError` for an adapter that gives no finite states in a step of `rows` rows, or changes a layer that such a step does
        not call once, with all of them in their order.
        """
        changed = [layer for layer in self.layers if name in layer.changes]
        calls: dict[str, list[int]] = {layer.parts[0][0]: [] for layer in changed} if self._hooked else {}
        handles = [layer.base.register_forward_pre_hook(partial(_count, calls[layer.parts[0][0]])) for layer in changed if self._hooked]
        try:
            states = run({name: range(rows)})
        finally:
            for handle in handles:
                handle.remove()
        wrong = [layer for layer, counts in calls.items() if counts != [rows]]
        if wrong:
            raise SetupError(f"it changes {', '.join(wrong[:4])}, which the model does not run once on every token; serve it merged")
        if not states.isfinite().all():
            raise SetupError("the model computes infinite values with it: its matrices are too large")

    @contextmanager
    def running(self, adapted: Mapping[str, Sequence[int]]) -> Iterator[None]:
        """While open, `adapted` says which rows of the step have which adapter."""
        self._rows.update({name: _index(rows, self._device) for name, rows in adapted.items()})
        changed = [layer for layer in self.layers if self._hooked and not adapted.keys().isdisjoint(layer.changes)]
        handles = [layer.base.register_forward_hook(partial(_add, layer)) for layer in changed]
        try:
            yield
        finally:
            self._rows.clear()
            for handle in handles:
                handle.remove()


def _count(counts: list[int], _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    counts.append(args[0].numel() // args[0].shape[-1])


def _add(layer: AdaptedLinear, _module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    flat = output.reshape(-1, output.shape[-1])
    return layer.add(flat, args[0].reshape(-1, args[0].shape[-1])).view(output.shape)


def _joined(parts: Sequence[tuple[Matrices | None, int]]) -> Matrices | None:
    """One pair of matrices for layers that are joined: A's below each other, B's along a diagonal; None if no layer is changed."""
    found = [matrices for matrices, _ in parts if matrices is not None]
    if len(parts) == 1 or not found:
        return found[0] if found else None
    ups = [torch.zeros(outputs, 0) if matrices is None else matrices[1] for matrices, outputs in parts]
    return torch.cat([down for down, _ in found]), torch.block_diag(*ups)


def _index(rows: Sequence[int], device: torch.device) -> Rows:
    """A slice where the rows follow each other: it copies nothing."""
    first = rows[0]
    if list(rows) == list(range(first, first + len(rows))):
        return slice(first, first + len(rows))
    return torch.tensor(rows, device=device)
