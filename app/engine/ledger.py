"""How much memory of a device serving takes, in declared bytes: weights, KV cache, activations. Knows no model's architecture.

The default number of slots and the message that a model does not fit come from here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from app.errors import SetupError

if TYPE_CHECKING:  # the API process has no torch, and asks for the memory of a CPU, too
    import torch

GIB = 2**30
MAX_DEFAULT_SLOTS, MAX_DEFAULT_SLOTS_ON_CUDA = 32, 128  # used when the settings give no number of slots
SLOT_TOKENS = 4096  # that a slot adds at most to the cache of all slots; a longer sequence takes what others leave
USABLE_SHARE = 0.9  # of the memory beside the weights; the rest is left to the allocator and the libraries
CHOSEN_EXPERTS = ("num_experts_per_tok", "top_k_experts")  # how configs name their number
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # a container's, version 2 and 1


@dataclass(frozen=True, slots=True)
class Ledger:
    """All in bytes, except `sharers`. `memory` is what the device has available for Litmus, including its weights.

    `sharers` processes, this one included, take from that memory at the same time. A default number of slots is worked out for an equal
    share of what the weights leave, so that the defaults of all processes together fit. A number of slots from the settings is checked
    against all of it: whoever set the number has already divided.
    """

    memory: int
    weights: int
    activations: int
    slot: int  # keys and values that a slot adds to the cache
    text: int  # those of the one window for long texts
    sharers: int = 1

    @property
    def max_slots(self) -> int:
        """Slots that fit beside the window reserved for long texts, if no other process takes memory."""
        return self._max_slots(1)

    @property
    def most_cache(self) -> int:
        """Bytes of a cache that all slots share, which fit beside the window reserved for long texts, if no other process takes memory."""
        return self.room(1)

    def room(self, sharers: int) -> int:
        """The same in the part of the memory that one of so many processes has."""
        return int(USABLE_SHARE * ((self.memory - self.weights) // sharers - self.activations)) - self.text

    def _max_slots(self, sharers: int) -> int:
        return max(0, self.room(sharers) // max(1, self.slot))  # a card may have no layer

    def weights_that_fit(self, slots: int) -> int:
        """The bytes that weights may have, so that these slots fit beside them; not positive if none may."""
        return self.memory - self.activations - int((slots * self.slot + self.text) / USABLE_SHARE)

    def slots(self, requested: int | None, device: str, most: int = MAX_DEFAULT_SLOTS) -> int:
        """The requested number of slots; for None, as many as fit this process's share, at most `most`. Raises `SetupError` with the
        numbers when they do not fit.
        """
        max_slots = self._max_slots(self.sharers if requested is None else 1)
        if max_slots >= (requested or 1):
            return requested or min(most, max_slots)
        count = requested or 1
        shared = f", shared by {self.sharers} processes" if self.sharers > 1 else ""
        needed = self.weights + self.activations + count * self.slot + self.text
        raise SetupError(
            f"{count} slots do not fit {device}: weights {gib(self.weights)}, activations {gib(self.activations)}, {gib(self.slot)} a "
            f"slot and {gib(self.text)} for long texts need {gib(needed)} of {gib(self.memory)}"
            f"{shared}, and a tenth of what the weights leave is kept free: {max_slots} slots would fit; or lower "
            "--model.context or --model.text_window"
        )

    def check_cache(self, cache: int, device: str, what: str | None = None, advice: str = "lower --model.cache_tokens") -> None:
        """Raises `SetupError`, with the numbers, if a cache of so many bytes does not fit beside one window for long texts. `what` it is
        for is named, and the `advice` given.
        """
        if cache <= self.most_cache:
            return
        needed = self.weights + self.activations + cache + self.text
        raise SetupError(
            f"{what or f'a cache of {gib(cache)}'} does not fit {device}: with weights {gib(self.weights)}, activations "
            f"{gib(self.activations)}, {gib(cache)} for keys and values and a window of {gib(self.text)} for long texts it needs "
            f"{gib(needed)} of {gib(self.memory)}, and a tenth of what the weights leave is kept free: {advice}"
        )

    def __str__(self) -> str:
        return f"weights {gib(self.weights)}, activations {gib(self.activations)}, {gib(self.slot)} a slot, of {gib(self.memory)}"


def fits_beside(memory: int, weights: int, others: int) -> bool:
    """Whether `others` fit beside the weights, by the share of the rest that is used."""
    return others <= USABLE_SHARE * (memory - weights)


@dataclass(frozen=True, slots=True)
class Widths:
    """How many values a model computes of a row."""

    hidden: int
    widest: int  # of a feed-forward network
    vocabulary: int
    experts: int  # of a mixture, that a row chooses


def widths_of(config: Any) -> Widths:
    """Of transformers' config of a text model."""
    hidden = int(config.hidden_size)
    width = getattr(config, "intermediate_size", None) or 4 * hidden
    widest = max(map(int, width if isinstance(width, list | tuple) else [width]))  # Gemma 3n has one for each layer
    experts = next((count for name in CHOSEN_EXPERTS if isinstance(count := getattr(config, name, None), int)), 0)
    return Widths(hidden, widest, int(config.vocab_size), experts)


def activation_bytes(rows: int, widths: Widths, logit_rows: int) -> int:
    """Declared bytes for a step of `rows` tokens: a layer's widest activations and residuals; of a mixture what each of a row's experts is
    given and answers, this in the row's order, and weighed; and for `logit_rows` rows the float32 logits with what sampling and scoring
    derive from them (log-probabilities, probabilities, a mask).
    """
    layer = 4 * widths.hidden + 3 * widths.widest + 4 * widths.experts * widths.hidden
    return 4 * rows * layer + 4 * 4 * logit_rows * widths.vocabulary


def device_memory(device: "torch.device", weights: int) -> int:
    """Free bytes plus `weights`, which are already loaded. On a CPU a container's memory limit counts.

    What a load has used and freed is given back to the card first: torch keeps it, which the card counts as taken.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0]) + weights
    return cpu_memory(psutil.Process().memory_info().rss, weights)


def cpu_memory(resident: int, weights: int = 0) -> int:
    """Free bytes of the machine, and within a container's limit, of which `resident` bytes are used, plus `weights`."""
    available = int(psutil.virtual_memory().available)
    return min([available + weights, *[limit - resident + weights for limit in memory_limits() if limit > resident]])


def memory_limits() -> list[int]:
    """What a container may take of the machine's memory, in bytes; empty without a limit."""
    return [int(text) for path in CGROUP_LIMITS if path.is_file() and (text := path.read_text().strip()).isdigit()]


def weight_bytes(model: "torch.nn.Module", device: "torch.device | None" = None) -> int:
    """Bytes of parameters, buffers, prepacked weights and the scales of bitsandbytes' layers, each storage counted once. With a `device`
    those that are there, of a model without prepacked weights.
    """
    import torch

    tensors = [*model.parameters(), *model.buffers()]
    states = (getattr(tensor, name, None) for tensor in tensors for name in ("quant_state", "SCB"))
    tensors += [scale for state in states if isinstance(scale := getattr(state, "absmax", state), torch.Tensor)]
    storages = {tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor.device.type != "meta" and device in (None, tensor.device)}
    packed = 0 if device is not None else sum(int(getattr(module, "packed_bytes", 0)) for module in model.modules())
    return sum(storages.values()) + packed


def gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
