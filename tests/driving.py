"""What the tests of the engine do with one: run it dry, and put its deltas together; and the kernel where there is one."""

import random

import pytest
from conftest import VOCABULARY

from app.engine.engine import Engine
from app.engine.kernel import Kernel, kernel
from app.engine.request import Delta, Event


def compiled() -> Kernel:
    """The kernel, or a skip where it is not to be had."""
    made = kernel()
    if made is None:
        pytest.skip("the kernel is for x86-64 with gcc and its OpenMP")
    return made


def drain(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    return events


def texts(events: list[Event]) -> dict[str, str]:
    found: dict[str, str] = {}
    for event in events:
        if isinstance(event, Delta):
            found[event.id] = found.get(event.id, "") + event.text
    return found


def prompt(rng: random.Random, most: int = 40) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, most)))
