"""`GET /metrics` where there are GPUs: what their driver tells, and one that hangs."""

import asyncio
import threading
from typing import Any

import pytest
from observing import Observed, value_of

from serve.observe import gpu


class FakeDriver:
    """Two GPUs; the second, a part of one, does not tell its utilization."""

    class NVMLError(Exception):
        pass

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def nvmlInit(self) -> None:  # noqa: N802
        if self.fails:
            raise self.NVMLError

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return type("Memory", (), {"used": 100 + handle, "total": 1000})

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        if handle == 1:
            raise self.NVMLError
        return type("Rates", (), {"gpu": 40})


def test_gpus_are_read_where_there_is_a_driver(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver())
    samples = observed.scrape()
    assert [value_of(samples, "gpu_memory_used_bytes", gpu=index) for index in (0, 1)] == [100, 101]
    assert value_of(samples, "gpu_memory_total_bytes", gpu=1) == 1000
    assert value_of(samples, "gpu_utilization_perc", gpu=0) == 0.4
    assert ("litmus:gpu_utilization_perc", (("gpu", "1"),)) not in samples
    monkeypatch.setitem(sys.modules, "pynvml", FakeDriver(fails=True))
    assert not [name for name, _ in observed.scrape() if name.startswith("litmus:gpu_")]


def test_a_driver_that_hangs_does_not_hold_up_a_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(gpu, "DRIVER_WAIT_S", 0.02)
    monkeypatch.setattr(gpu, "ask_driver", lambda: goes_on.wait() and [gpu.GPU(0, 1, 2, None)])

    async def main() -> None:
        gpus = gpu.GPUs()
        assert await gpus.read() == []
        assert await gpus.read() == []  # the same question, not a second one
        monkeypatch.setattr(gpu, "DRIVER_WAIT_S", 60)
        goes_on.set()
        assert await gpus.read() == [gpu.GPU(0, 1, 2, None)]

    asyncio.run(main())
