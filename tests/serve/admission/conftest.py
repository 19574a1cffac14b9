from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from admitting import LINES, serving
from fastapi.testclient import TestClient
from limits.aio.storage import memory

from serve.admission import store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time of day that the library of limits counts by: a multiple of a minute, so that a period begins. Debts are paid by it, too."""
    clock = SimpleNamespace(now=60_000.0)
    monkeypatch.setattr(memory, "time", SimpleNamespace(time=lambda: clock.now))
    monkeypatch.setattr(store, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture(scope="module")
def guarded(tiny_folder: Path) -> Iterator[TestClient]:
    with serving(tiny_folder, keys=LINES, cors_origins=("https://page.example",)) as client:
        yield client


@pytest.fixture(scope="module")
def alone(tiny_folder: Path) -> Iterator[TestClient]:
    with serving(tiny_folder) as client:
        yield client
