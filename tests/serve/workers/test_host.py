"""Which worker processes are started again, which are ended, and when the server ends."""

import multiprocessing
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.models.device import DeviceAssignment
from app.settings import ModelSettings
from serve.workers.host import Host
from serve.workers.messages import Ended, Message, Start, Stop


@dataclass
class Process:
    exitcode: int | None = None
    asked: bool = False

    def is_alive(self) -> bool:
        return self.exitcode is None

    def terminate(self) -> None:
        self.asked = True

    def kill(self) -> None:
        self.exitcode = -9


@dataclass
class Hands:
    """Takes the place of the server. Ends after a number of looks."""

    ready: set[int] = field(default_factory=set)
    started: list[tuple[int, Process]] = field(default_factory=list)
    told: list[Message] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    lost: bool = False
    drains: bool = False
    looks: int = 4

    @property
    def ends(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def launch(self, number: int) -> Any:
        self.started.append((number, Process()))
        return self.started[-1][1]

    def create(self, start: Start) -> Any:
        return self.launch(start.worker)

    def forget(self, number: int) -> None:
        self.forgotten.append(number)

    def was_ready(self, number: int) -> bool:
        return number in self.ready

    def tell(self, message: Message) -> None:
        self.told.append(message)

    def fail(self, number: int) -> None:
        self.failed.append(number)

    def lose(self) -> None:
        self.lost, self.looks = True, 0


def run(hands: Hands, adopted: dict[int, Process], *orders: Start | Stop) -> Host:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    host = Host(hands, receiver)
    for number, process in adopted.items():
        host.adopt(number, process)  # type: ignore[arg-type]
    for order in orders:
        sender.send(order)
    host.run()
    return host


def start(number: int) -> Start:
    return Start(number, ModelSettings(), DeviceAssignment())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.workers.host.LOOK_INTERVAL_S", 0)


@pytest.mark.parametrize(
    ("exit_code", "ready", "restarted", "failed"),
    [
        (2, set(), False, True),  # it cannot load
        (-9, set(), False, True),  # killed, and none was ever ready
        (-9, {1}, True, False),  # killed while it loaded, beside one that serves
        (2, {1}, False, True),
        (-9, {0}, True, False),
        (3, {0}, True, False),  # the watchdog ended it
    ],
)
def test_a_model_of_the_settings_is_started_again_or_ends_the_server(
    exit_code: int, ready: set[int], restarted: bool, failed: bool
) -> None:
    hands = Hands(ready, looks=3)
    run(hands, {0: Process(exit_code), 1: Process()})
    assert ([number for number, _ in hands.started] == [0], hands.failed[:1] == [0]) == (restarted, failed)
    assert hands.told == []


@pytest.mark.parametrize("exit_code", [2, -9, 0])
def test_a_model_that_came_later_and_cannot_be_loaded_ends_alone(exit_code: int) -> None:
    hands = Hands({0})
    hands.launch = lambda number: hands.started.append((number, Process(exit_code))) or hands.started[-1][1]  # type: ignore[method-assign]
    host = run(hands, {0: Process()}, start(7))
    assert hands.told == [Ended(7, exit_code)] and hands.forgotten == [7] and hands.failed == []
    assert len(host.processes) == 1


def test_a_model_that_came_later_is_started_again_once_it_was_ready() -> None:
    hands = Hands({7})
    processes = iter([Process(-9), Process()])
    hands.launch = lambda number: hands.started.append((number, next(processes))) or hands.started[-1][1]  # type: ignore[method-assign]
    run(hands, {}, start(7))
    assert [number for number, _ in hands.started] == [7, 7] and hands.told == []


def test_a_worker_that_is_stopped_ends_by_itself_or_is_killed_and_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.workers.host.STOP_S", -1)
    hands, process = Hands({0}, looks=9), Process()
    host = run(hands, {0: process}, Stop(0), Stop(5))
    assert process.asked and process.exitcode == -9
    assert hands.told == [Ended(5, 0), Ended(0, -9)] or hands.told == [Ended(0, -9), Ended(5, 0)]
    assert host.processes == [] and hands.started == []


@pytest.mark.parametrize(("error", "looks", "lost"), [(BrokenPipeError, 9, True), (EOFError, 9, True), (BrokenPipeError, 2, False)])
def test_the_server_ends_when_no_worker_can_be_started_any_more(error: type[Exception], looks: int, lost: bool) -> None:
    """The process that holds the queues is gone; in the last case because the server shuts down."""

    def launch(number: int) -> Any:
        raise error

    hands = Hands({0}, looks=looks)
    hands.launch = launch  # type: ignore[method-assign]
    run(hands, {0: Process(-9)})
    assert hands.lost == lost and hands.started == []


def test_the_server_ends_when_nobody_gives_orders_any_more() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    sender.close()
    hands = Hands()
    Host(hands, receiver).run()
    assert hands.lost


@pytest.mark.parametrize(("exitcode", "count"), [(-9, 1), (-11, 1), (0, 0), (-15, 0)])
def test_a_server_that_drains_replaces_only_a_worker_that_was_killed(exitcode: int, count: int) -> None:
    hands = Hands(ready={0}, drains=True)
    run(hands, {0: Process(exitcode)})
    assert len(hands.started) == count and not hands.failed and not hands.forgotten
