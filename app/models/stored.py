"""Tensors of safetensors files by the names that a model has for them which has linear layers for each expert. Knows no model."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

# Tensors of GPT-OSS's experts, those of all experts together: gates and values by turns.
JOINED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)_(blocks|scales|bias)")
PARTS_OF = {"gate_up_proj": {"gate_proj": (0, 2), "up_proj": (1, 2)}, "down_proj": {"down_proj": (0, 1)}}  # their first row, and the step


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor, or what an `expert` has in one: the rows from `first` on, each `step`. It stays in the file."""

    file: Any  # an open one
    name: str
    expert: int | None = None
    first: int = 0
    step: int = 1

    def tensor(self) -> torch.Tensor:
        if self.expert is None:
            return self.file.get_tensor(self.name)
        return self._slice[self.expert][self.first :: self.step].contiguous()

    @property
    def shape(self) -> tuple[int, ...]:
        whole: list[int] = self._slice.get_shape()
        return tuple(whole) if self.expert is None else (len(range(self.first, whole[1], self.step)), *whole[2:])

    @property
    def dtype(self) -> str:
        """As safetensors names it."""
        return str(self._slice.get_dtype())

    @property
    def _slice(self) -> Any:
        return self.file.get_slice(self.name)


def tensors_of(path: object) -> dict[str, Stored]:
    """Those of a file. Raises `OSError` and `SafetensorError`."""
    file: Any = safe_open(path, "pt")
    found: dict[str, Stored] = {}
    for name in file.keys():  # noqa: SIM118  (not a dict)
        joined, shape = JOINED.fullmatch(name), file.get_slice(name).get_shape()
        if joined is None or len(shape) < 2:
            found[_renamed(name)] = Stored(file, name)
            continue
        experts, layer, kind = joined.groups()
        for expert in range(shape[0]):
            for part, (first, step) in PARTS_OF[layer].items():
                found[f"{experts}.{expert}.{part}.{kind}"] = Stored(file, name, expert, first, step)
    return found


def _renamed(name: str) -> str:
    """As transformers names it today: GPT-NeoX called its vocabulary projection embed_out."""
    return name.replace("embed_out.", "lm_head.", 1) if name.startswith("embed_out.") else name
