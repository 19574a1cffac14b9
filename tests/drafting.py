"""Sources of drafts for tests: one that hears what answers become, and one that drafts it again with wrong tokens among it."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from app.engine.acceptance import Acceptance
from app.engine.costs import RowCosts
from app.engine.drafts import Draft, Drafter, Source
from app.engine.request import Generate
from app.engine.scheduler import Scheduler
from app.engine.slot import Slot

WRONG = 0.25  # share of the drafted tokens


class Listener(Source):
    """Expects nothing."""

    def __init__(self, heard: list[list[int]]) -> None:
        self._tokens: list[int] = []
        heard.append(self._tokens)

    def expect(self, tokens: Sequence[int], ahead: Sequence[int], limit: int) -> tuple[tuple[int, ...], list[float]]:
        self._tokens[:] = tokens
        return (), []

    def record(self, sampled: Sequence[int]) -> None:
        self._tokens += sampled


class Guided(Source):
    """Expects what was heard to follow the same tokens before, here and there another token, and is always sure."""

    def __init__(self, heard: list[list[int]], rng: random.Random) -> None:
        self._heard, self._rng = heard, rng

    def expect(self, tokens: Sequence[int], ahead: Sequence[int], limit: int) -> tuple[tuple[int, ...], list[float]]:
        text = [*tokens, *ahead]
        later = next((each[len(text) :] for each in self._heard if each[: len(text)] == text), [])
        drafted = [token ^ 1 if self._rng.random() < WRONG else token for token in later[: self._rng.randint(0, max(0, limit))]]
        return tuple(drafted), [1.0] * len(drafted)

    def record(self, sampled: Sequence[int]) -> None:
        pass


@contextmanager
def listening(drafter: Drafter) -> Iterator[list[list[int]]]:
    """While open, nothing is drafted from texts. Yields what the answers become, with their prompts."""
    heard: list[list[int]] = []
    drafter.create_source = lambda *_: Listener(heard)
    yield heard
    drafter.create_source = Source


@contextmanager
def undrafted(scheduler: Scheduler) -> Iterator[list[list[int]]]:
    """While open, nothing is drafted. Yields what the answers become, with their prompts, of all but searches."""
    heard: list[list[int]] = []

    def draft(slots: Sequence[Slot]) -> dict[Slot, Draft]:
        heard.extend(slot.tokens for slot in slots if not any(slot.tokens is each for each in heard))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "draft", draft)
        yield heard


@contextmanager
def free_rows() -> Iterator[None]:
    """While open, as much is drafted as if rows cost nothing, whatever the machine is busy with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowCosts, "step_s", lambda *_: 1.0)
        yield


@contextmanager
def guided(drafter: Drafter, heard: list[list[int]], seed: int = 0) -> Iterator[None]:
    """While open, answers that were heard are drafted, with wrong tokens among them, as if rows cost nothing."""
    rng = random.Random(seed)

    def create(_: Generate, __: Acceptance) -> Source:
        return Guided(heard, rng)

    with free_rows():
        drafter.create_source = create
        yield
        drafter.create_source = Source
