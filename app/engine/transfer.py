"""Numbers on their way to a device. To a GPU they go from pinned memory, so that neither side waits for the other."""

import torch


def to_device(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`numbers`, of the CPU, on `device`; a GPU has them in order with what it is given after this."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)
