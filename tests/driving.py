"""Helpers for tests that run an engine: tiny models that are made once, what `generate` answers, step until it is idle, join its deltas,
random prompts, the compiled kernel.
"""

import platform
import random
import shutil
from functools import cache

import pytest
import torch
from tinymodels import VOCABULARY, tiny
from transformers import PreTrainedModel

from app.engine.capacity import CacheLimits
from app.engine.compiler import MACHINES
from app.engine.conversion import create_flat_model
from app.engine.engine import Engine
from app.engine.events import Delta, Event
from app.engine.flat import FlatModel
from app.engine.kernel import Kernel, kernel
from app.engine.request import Generate


def kernel_or_skip() -> Kernel:
    """The compiled kernel; skips the test where it cannot be built, and fails it where it should have been."""
    library = kernel()
    if library is None and platform.machine() in MACHINES and shutil.which("gcc"):
        pytest.fail("the kernel was not compiled, or computes wrong products: the log says why")
    if library is None:
        pytest.skip("the kernel needs x86-64 or 64-bit ARM, and gcc with OpenMP")
    return library


@cache
def flat_model(name: str, limits: CacheLimits, seed: int = 0) -> FlatModel:
    """For engines of any number, one after another: each has pages of its own and looks at nothing that it has not written."""
    return create_flat_model(tiny(name, seed), limits)


@cache
def reference_model(name: str, seed: int = 0) -> PreTrainedModel:
    return tiny(name, seed)


@cache
def generated(name: str, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The greedy answer of transformers."""
    row, options = torch.tensor([prompt]), {"do_sample": False, "eos_token_id": None}
    out = reference_model(name).generate(row, attention_mask=torch.ones_like(row), max_new_tokens=count, **options)
    return tuple(out[0, len(prompt) :].tolist())


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
