"""Where worker processes come from: forked from a process that has imported torch, transformers and the engine, or started anew.

The imports take most of the start of a worker with a small model. The fork server begins them when the server starts and does them once:
every further worker, and the next one of a worker that died, begins with its model. It runs `multiprocessing`'s loop and no code of ours.
Where a GPU is visible, workers are started anew: CUDA does not survive a fork, and an import may have touched it.
"""

import multiprocessing
import multiprocessing.forkserver
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

PRELOAD = "serve.workers.preload"
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # the drivers of NVIDIA and AMD, and of either below Windows


def context() -> ForkServerContext | SpawnContext:
    """What makes a worker's process."""
    if any(Path(device).exists() for device in GPUS):
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload([PRELOAD])
    return multiprocessing.get_context("forkserver")


def start() -> None:
    """Start the fork server if workers come from it, so that it imports while this process does. Needs the environment of a worker."""
    if isinstance(context(), ForkServerContext):
        multiprocessing.forkserver.ensure_running()
