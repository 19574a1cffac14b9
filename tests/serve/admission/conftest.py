from types import SimpleNamespace

import pytest
from limits.aio.storage import memory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time of day that the library of limits counts by: a multiple of a minute, so that a period begins."""
    clock = SimpleNamespace(now=60_000.0)
    monkeypatch.setattr(memory, "time", SimpleNamespace(time=lambda: clock.now))
    return clock
