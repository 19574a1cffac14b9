"""Helpers for tests that run an engine: step until it is idle, join its deltas, random prompts, the compiled kernel."""

import random

import pytest
from tinymodels import VOCABULARY

from app.engine.engine import Engine
from app.engine.events import Delta, Event
from app.engine.kernel import Kernel, kernel
from app.engine.request import Generate


def kernel_or_skip() -> Kernel:
    """The compiled kernel; skips the test where it cannot be built."""
    library = kernel()
    if library is None:
        pytest.skip("the kernel needs x86-64 or 64-bit ARM, and gcc with OpenMP")
    return library


def drain(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()
    return events


def run_all(engine: Engine, jobs: list[Generate], steps_between: int = 1) -> list[Event]:
    """The events of all jobs, each sent so many steps after the one before."""
    events: list[Event] = []
    for job in jobs:
        engine.submit(job)
        for _ in range(steps_between):
            events += engine.step()
    return events + drain(engine)


def answers_of(events: list[Event]) -> dict[str, str]:
    """The answers, by the ids of their requests."""
    answers: dict[str, str] = {}
    for event in events:
        if isinstance(event, Delta):
            answers[event.id] = answers.get(event.id, "") + event.text
    return answers


def random_prompt(rng: random.Random, max_tokens: int = 40) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, max_tokens)))
