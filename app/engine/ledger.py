"""What serving takes of a device's memory, in declared bytes: weights, keys and values, activations. Arithmetic and sentences.

The default number of slots comes from here.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from app.errors import SetupError

MOST = 32  # slots when none are asked for
SHARE = 0.9  # of the memory that is left beside the weights; the rest is for the allocator and the libraries
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Ledger:
    """Bytes. `memory` is what the device has left for Litmus, weights included.

    `sharers` processes, this one among them, take from that memory at the same time. What is left beside the weights is divided by
    them, so that defaults which all of them work out at once do not add up to more than there is. A number of slots that was asked for
    is held against all of it: whoever asks has done the division.
    """

    memory: int
    weights: int
    activations: int
    slot: int  # keys and values of one context
    sharers: int = 1

    @property
    def fits(self) -> int:
        """Slots beside the one that long texts are read in, if no other process takes any."""
        return self._fits(1)

    def _fits(self, sharers: int) -> int:
        left = (self.memory - self.weights) // sharers - self.activations
        return max(0, int(SHARE * left // self.slot) - 1)

    def slots(self, asked: int | None, device: str) -> int:
        """As many as asked for, or as fit this process's share, up to 32. Raises `SetupError` with the numbers."""
        fits = self._fits(self.sharers if asked is None else 1)
        if fits >= (asked or 1):
            return asked or min(MOST, fits)
        shared = f", shared by {self.sharers} processes" if self.sharers > 1 else ""
        need = self.weights + self.activations + ((asked or 1) + 1) * self.slot
        raise SetupError(
            f"{asked or 1} slots do not fit {device}: weights {_gib(self.weights)}, activations {_gib(self.activations)} and "
            f"{(asked or 1) + 1} contexts of {_gib(self.slot)} (one for long texts) need {_gib(need)} of {_gib(self.memory)}"
            f"{shared}, of which a tenth of what the weights leave is kept free: {fits} slots would fit, or lower --model.context"
        )

    def __str__(self) -> str:
        return f"weights {_gib(self.weights)}, activations {_gib(self.activations)}, a slot {_gib(self.slot)}, of {_gib(self.memory)}"


def activation_bytes(rows: int, hidden: int, widest: int, vocabulary: int, logit_rows: int) -> int:
    """Declared for a step of `rows` tokens: a layer's widest activations and residuals, and float32 logits with what sampling and
    scoring make of them (logits, log-probabilities, probabilities, a mask) for `logit_rows` rows.
    """
    return 4 * rows * (4 * hidden + 3 * widest) + 4 * 4 * logit_rows * vocabulary


def device_memory(device: torch.device, weights: int) -> int:
    """What is free plus the weights that are there already; a container's limit counts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + weights
    limits = [int(text) for path in LIMITS if path.is_file() and (text := path.read_text().strip()).isdigit()]
    own = psutil.Process().memory_info().rss
    return min([int(psutil.virtual_memory().available) + weights, *[limit - own + weights for limit in limits if limit > own]])


def weight_bytes(model: torch.nn.Module) -> int:
    """Parameters, buffers and packed weights, each storage once."""
    tensors = [*model.parameters(), *model.buffers()]
    seen = {tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor.device.type != "meta"}
    return sum(seen.values()) + sum(int(getattr(module, "packed_bytes", 0)) for module in model.modules())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
