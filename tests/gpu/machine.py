"""What this machine is: versions, card, driver, and how much of the card's memory is in use. Asks the driver, without torch."""

import contextlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "litserve", "llguidance", "tokenizers", "triton")


def facts(root: Path) -> dict[str, Any]:
    return {"python": platform.python_version(), "versions": versions(), "commit": commit(root), **card()}


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def commit(root: Path) -> str | None:
    """None where the sources came without their history."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
        return done.stdout.strip() or None
    return None


def card() -> dict[str, Any]:
    with contextlib.suppress(ImportError):
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            driver, name = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetName(handle)
            return {"card": name, "driver": driver, "card_bytes": memory.total}
    return {"card": None}


def card_used() -> int | None:
    """Bytes of the first card's memory that are in use, by all processes; None without a card."""
    with contextlib.suppress(ImportError):
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    return None
