"""The memories that a model could be served from: this machine's, those of its GPUs, and cards that somebody asks about."""

import re
from dataclasses import dataclass

import psutil
import torch

from app.engine.ledger import GIB, device_memory, memory_limits
from app.errors import SetupError

CARD = re.compile(r"(?:([^=]+)=)?(\d+(?:\.\d+)?)\s*(?:G|GB|GiB)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    kind: str  # "cpu" or "cuda"
    free: int  # bytes
    total: int
    is_here: bool = False


def machine() -> list[Device]:
    """This machine's memory as a container's limit leaves it, and that of each CUDA device."""
    cpu = torch.device("cpu")
    found = [Device("cpu", "cpu", device_memory(cpu, 0), min([int(psutil.virtual_memory().total), *memory_limits()]), True)]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Device(f"cuda:{index}", "cuda", int(free), int(total), True))
    return found


def card(text: str) -> Device:
    """A card as somebody writes it: 24GB, or with a name L4=24GB. As vendors do, GB stands for 2^30 bytes. Raises `SetupError`."""
    found = CARD.fullmatch(text.strip())
    if found is None or not float(found[2]):
        raise SetupError(f"--card {text!r} is no card: write its memory, such as 24GB, or a name with it, such as L4=24GB")
    size = int(float(found[2]) * GIB)
    return Device(found[1] or f"card of {found[2]} GB", "cuda", size, size)
