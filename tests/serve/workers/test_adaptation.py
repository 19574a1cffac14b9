"""A worker that reads an adapter: the jobs that name it wait, all others do not."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeEngine

from app.engine.events import Failed
from app.engine.facts import AdapterFacts
from app.engine.request import Generate
from app.errors import SetupError
from serve.workers.adaptation import Adaptation, Outcome
from serve.workers.messages import AdapterRead, Events, LoadAdapter, UnloadAdapter

FACTS = AdapterFacts("tuned", "/tuned", "1+2", "fp")
ORDER = LoadAdapter("tuned", "/tuned")


class Engine(FakeEngine):
    """Its reader does what a test says, when the thread comes to it."""

    def __init__(self, read: Callable[[], Any]) -> None:
        super().__init__()
        self.reader: Any = self
        self.added: list[str] = []
        self._read = read

    def read(self, name: str, path: str) -> Any:
        assert (name, path) == ("tuned", "/tuned")
        return self._read()

    def add_adapter(self, loaded: Any) -> None:
        if loaded is Broken:
            raise SetupError("infinite values")
        self.added.append(loaded.facts.name)

    def remove_adapter(self, name: str) -> list[Any]:
        return [Failed("running", SetupError("gone"))] if name in self.added else []


class Loaded:
    facts = FACTS


class Broken:
    facts = FACTS


class Worker:
    def __init__(self, read: Callable[[], Any]) -> None:
        self.engine, self.outcomes, self.sent = Engine(read), [], []
        self.adaptation = Adaptation(self.engine, 3, self._hand_in, self.sent.append)  # type: ignore[arg-type]

    def _hand_in(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def load(self) -> Outcome:
        """The outcome, which the worker's loop has not seen yet."""
        self.adaptation.obey(ORDER)
        thread = self.adaptation._readings["tuned"].thread
        assert thread is not None
        thread.join(60)
        return self.outcomes.pop()


def job(id: str, adapter: str | None = "tuned") -> Generate:
    return Generate(id, (1,), 2, adapter=adapter)


def test_jobs_wait_for_the_adapter_that_they_name() -> None:
    worker = Worker(lambda: Loaded)
    outcome = worker.load()
    assert [worker.adaptation.holds(job(*each)) for each in (("a",), ("base", None), ("other", "another"), ("left",))] == [
        True,
        False,
        False,
        True,
    ]
    worker.adaptation.cancel("left")
    assert worker.engine.submitted == [] and worker.sent == []
    worker.adaptation.obey(outcome)
    assert worker.sent == [AdapterRead(os.getpid(), 3, "tuned", FACTS)] and worker.engine.submitted == [job("a")]
    assert not worker.adaptation.holds(job("later"))
    worker.adaptation.obey(UnloadAdapter("tuned"))
    assert worker.sent[1].events[0].id == "running"


@pytest.mark.parametrize("error", [SetupError("it has use_dora"), FileNotFoundError("it has use_dora"), None])
def test_they_fail_if_it_cannot_be_served(error: Exception | None) -> None:
    def read() -> Any:
        if error is None:
            return Broken
        raise error

    worker = Worker(read)
    outcome = worker.load()
    assert worker.adaptation.holds(job("a"))
    worker.adaptation.obey(outcome)
    answer, events = worker.sent
    assert answer.facts is None and ("infinite values" if error is None else "it has use_dora") in answer.reason
    (failed,) = events.events
    assert (failed.id, failed.error.code) == ("a", "adapter_not_loaded") and "use_dora" not in failed.error.message
    assert worker.engine.added == [] and not worker.adaptation.holds(job("b"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_that_nobody_foresaw_is_an_outcome_too() -> None:
    def read() -> Any:
        raise KeyError("lora_alpha")

    worker = Worker(read)
    worker.adaptation.obey(worker.load())
    (answer,) = worker.sent
    assert answer.facts is None and answer.reason == "adapter 'tuned' (/tuned) cannot be read; the server's log says why"


def test_one_that_is_unloaded_while_it_is_read_is_not_served() -> None:
    worker = Worker(lambda: Loaded)
    outcome = worker.load()
    worker.adaptation.holds(job("a"))
    worker.adaptation.obey(UnloadAdapter("tuned"))
    worker.adaptation.obey(outcome)
    assert isinstance(worker.sent[0], Events) and [event.id for event in worker.sent[0].events] == ["a"]
    assert worker.engine.added == [] and len(worker.sent) == 1
    again = worker.load()
    worker.adaptation.obey(outcome)  # that of the first order says nothing of the second
    assert worker.engine.added == []
    worker.adaptation.obey(again)
    assert worker.engine.added == ["tuned"]
