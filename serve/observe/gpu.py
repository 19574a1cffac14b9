"""Memory and use of the GPUs, as NVIDIA's driver tells them. Not yet run on CUDA. Without a driver there are no such metrics.

The driver may hang when a GPU does: it is asked in a thread of its own, and a scrape waits a bounded time for it.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from serve.observe.metrics import PREFIX

DRIVER_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class GPU:
    index: int
    used_bytes: int
    total_bytes: int
    utilization: float | None  # 0 to 1; None where the driver does not say, as for a part of a GPU


class GPUs:
    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "gpu")
        self._asked: asyncio.Future[list[GPU]] | None = None  # the question that the driver has not answered yet

    async def read(self) -> list[GPU]:
        """Empty without a driver, and while the driver does not answer."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().run_in_executor(self._thread, ask_driver)
        done, _ = await asyncio.wait({self._asked}, timeout=DRIVER_WAIT_S)
        return self._asked.result() if done else []


def ask_driver() -> list[GPU]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_read(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # a GPU that has been lost: the others cannot be told apart from it any more
        return []
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read(pynvml: Any, index: int) -> GPU:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        utilization = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except pynvml.NVMLError:
        utilization = None
    return GPU(index, memory.used, memory.total, utilization)


def gpu_families(gpus: list[GPU]) -> Iterator[Metric]:
    used = GaugeMetricFamily(PREFIX + "gpu_memory_used_bytes", "memory of a GPU in use, by all processes", labels=["gpu"])
    total = GaugeMetricFamily(PREFIX + "gpu_memory_total_bytes", "memory of a GPU", labels=["gpu"])
    utilization = GaugeMetricFamily(PREFIX + "gpu_utilization_perc", "share of the time in which a GPU computed; 1 is all", labels=["gpu"])
    for gpu in gpus:
        used.add_metric([str(gpu.index)], gpu.used_bytes)
        total.add_metric([str(gpu.index)], gpu.total_bytes)
        if gpu.utilization is not None:
            utilization.add_metric([str(gpu.index)], gpu.utilization)
    yield from (used, total, utilization)
