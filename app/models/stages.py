"""How long each stage of a start took. Knows nothing of what happens in them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Seconds by stage, in the order in which they were first met."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.read_bytes = 0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started_s)

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def __str__(self) -> str:
        parts = [f"{stage} {seconds:.2f}" for stage, seconds in self.seconds.items()]
        read_s = self.seconds.get("read", 0.0)
        speed = f" ({self.read_bytes / 1e6:,.0f} MB at {self.read_bytes / 1e6 / read_s:,.0f} MB/s)" if self.read_bytes and read_s else ""
        return f"{sum(self.seconds.values()):.2f} s: " + ", ".join(part + (speed if part.startswith("read ") else "") for part in parts)
