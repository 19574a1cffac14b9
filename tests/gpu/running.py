"""Drives an engine in this process, and what transformers itself makes of the same weights."""

import gc
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from gpu.shapes import VOCABULARY

from app.engine.engine import Engine
from app.engine.events import Delta, Event, Failed, Scored
from app.engine.request import Generate, Job, SamplingParams

GREEDY = SamplingParams(temperature=0.0)
NEW_TOKENS = 16
Tokens = tuple[int, ...]


def random_tokens(rng: random.Random, count: int) -> Tokens:
    return tuple(rng.randrange(2, VOCABULARY) for _ in range(count))


def run(engine: Engine, jobs: Iterable[Job], steps_between: int = 0) -> list[Event]:
    """Submit the jobs, some steps after each other, and step until the engine is idle. Raises `AssertionError` for a job that failed."""
    events: list[Event] = []
    for job in jobs:
        engine.submit(job)
        for _ in range(steps_between):
            events += engine.step()
    while not engine.idle:
        events += engine.step()
    failures = [f"{event.id}: {event.error.message}" for event in events if isinstance(event, Failed)]
    assert not failures, failures
    return events


def tokens_of(events: Iterable[Event]) -> dict[str, Tokens]:
    found: dict[str, Tokens] = {}
    for event in events:
        if isinstance(event, Delta):
            found[event.id] = found.get(event.id, ()) + event.tokens
    return found


def text_of(events: Iterable[Event], id: str) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.id == id)


def columns_of(events: Iterable[Event]) -> dict[str, Any]:
    return {event.id: event.columns for event in events if isinstance(event, Scored)}


def ask(id: str, prompt: Sequence[int], sampling: SamplingParams = GREEDY, new_tokens: int = NEW_TOKENS) -> Generate:
    return Generate(id, tuple(prompt), new_tokens, sampling, ignore_eos=True)


def generated(model: Any, prompt: Sequence[int], new_tokens: int = NEW_TOKENS, **options: Any) -> Tokens:
    """What transformers' `generate` answers."""
    row = torch.tensor([list(prompt)], device=model.device)
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    out = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=new_tokens, **settings)
    return tuple(out[0, len(prompt) :].tolist())


@torch.inference_mode()
def logits_of(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """What transformers' own forward says follows each token: `[tokens, vocabulary]`."""
    return model(torch.tensor([list(tokens)], device=model.device), use_cache=False).logits[0].float()


def error_of(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The difference's norm, relative to what was expected."""
    return float((logits.float() - expected.float()).norm() / expected.float().norm())


def release() -> None:
    """Give back what dropped models held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def timed(call: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Seconds of a call, after three that are not counted."""
    for _ in range(3):
        call()
    wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return (time.perf_counter() - begin) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
